package kubeapi

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/messages"
)

// TestMessages provokes every message of the package.
func TestMessages(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	var lines []string
	for _, file := range []string{"", "testdata/no-such-file", "testdata/empty-token.kubeconfig", "testdata/garbage.kubeconfig", "testdata/empty.kubeconfig", apiserver.KubeconfigFor(t, "://")} {
		_, err := Connect(file)
		here, _ := filepath.Abs(".")
		lines = append(lines, strings.ReplaceAll(err.Error(), here+"/", ""))
		lines = append(lines, strings.ReplaceAll((&Client{}).problem(err).String(), here+"/", ""))
	}
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "edge", errors.New(`User "usher" cannot list resource "services"`))
	address := net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 443}
	for _, err := range []error{
		forbidden,
		apierrors.NewUnauthorized("Unauthorized"),
		apierrors.NewTooManyRequests("too many requests, please try again later", 1),
		ErrNoAnswer,
		&url.Error{Op: "Get", URL: "https://kube", Err: &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}},
		&url.Error{Op: "Get", URL: "https://kube", Err: &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired, Detail: "current time …"}}},
		&url.Error{Op: "Get", URL: "https://kube", Err: &net.OpError{Op: "dial", Addr: &address, Err: errors.New("connection refused")}},
		&url.Error{Op: "Get", URL: "https://kube", Err: errors.New("EOF")},
		errors.New("the server is currently unable to handle the request"),
		&guard.Error{Part: "kubernetes", Value: "oops", At: "file.go:1"},
		errOtherObject,
	} {
		lines = append(lines, Explain(err, "get, list and watch on this Service"))
	}
	o := Object{Kind: "ConfigMap", At: types.NamespacedName{Namespace: "consul", Name: "usher-balancers"}, Manifest: "docs/kubernetes-record.yaml"}
	for _, err := range []error{apierrors.NewNotFound(schema.GroupResource{}, ""), forbidden} {
		lines = append(lines, o.String()+": "+o.Explain(err))
	}
	notKubernetes := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	defer notKubernetes.Close()
	client, err := Connect(apiserver.KubeconfigFor(t, notKubernetes.URL))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Allowed(t.Context(), client, authorizationv1.ResourceAttributes{Verb: "get", Resource: "services"})
	messages.Check(t, append(lines, fmt.Sprint(err)), "fmt.Errorf", "fmt.Sprintf")
}

func TestNames(t *testing.T) {
	t.Parallel()
	if got, ok := ParseName("consul/usher"); !ok || got.String() != "consul/usher" {
		t.Errorf("consul/usher is %v, %t", got, ok)
	}
	for _, text := range []string{"", "usher", "/usher", "consul/", "a/b/c"} {
		if got, ok := ParseName(text); ok {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestUpdateFailsAtTheEndOfItsContext(t *testing.T) {
	t.Parallel()
	client, err := Connect(apiserver.KubeconfigFor(t, "http://127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	o := Object{Client: client, Log: slog.New(slog.DiscardHandler), Kind: "ConfigMap", At: types.NamespacedName{Namespace: "consul", Name: "usher"}}
	if err := Update(ctx, o, func(*corev1.ConfigMap) bool { return true }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// warnings fails the test when client-go would log a warning, in another form than Usher's log.
type warnings struct{ t *testing.T }

func (w warnings) HandleWarningHeader(_ int, _, text string) { w.t.Errorf("it logs %q", text) }

func TestWarningsAreNotLogged(t *testing.T) {
	rest.SetDefaultWarningHandler(warnings{t})
	t.Cleanup(func() { rest.SetDefaultWarningHandler(rest.WarningLogger{}) })
	deprecates := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Warning", `299 - "v1 is deprecated"`)
		fmt.Fprint(w, "{}")
	}))
	defer deprecates.Close()
	client, err := Connect(apiserver.KubeconfigFor(t, deprecates.URL))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Get().AbsPath("/").Do(t.Context()).Error(); err != nil {
		t.Error(err)
	}
}

// TestPanicInAGoroutineOfTheClientIsCounted has a panic in client-go, which would end the process.
func TestPanicInAGoroutineOfTheClientIsCounted(t *testing.T) {
	before := testutil.ToFloat64(guard.Panics.WithLabelValues("kubernetes"))
	func() {
		defer utilruntime.HandleCrash()
		panic("a bug in client-go, which is logged here")
	}()
	if testutil.ToFloat64(guard.Panics.WithLabelValues("kubernetes")) == before {
		t.Error("usher_panics_total did not grow")
	}
}
