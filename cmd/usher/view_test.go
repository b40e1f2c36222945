package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/services"
)

// kubernetesSource has one gateway with a listener and the mode auto, whose instance has a Service in Kubernetes.
type kubernetesSource struct{ configSource }

func (kubernetesSource) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (kubernetesSource) Watch(ctx context.Context, id gateway.ID, put func(*gateway.Snapshot)) error {
	put(&gateway.Snapshot{
		ID: id, Datacenter: "dc1", Plain: true, Entry: &gateway.Entry{Name: id.Name, Listeners: []gateway.Listener{{Port: 80, Protocol: "tcp"}, {Port: 8080, Protocol: "tcp"}}},
		Instances: []*gateway.Instance{{ServiceID: "edge-1", Node: "n", Kubernetes: gateway.KubernetesService{Namespace: "consul", Name: "edge"}}},
	})
	<-ctx.Done()
	return nil
}

// TestAutoIsWhatTheFlagAssumes previews a gateway in Kubernetes without a cluster.
func TestAutoIsWhatTheFlagAssumes(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, tc := range []struct {
		mode string
		want settings.Mode
		note string
	}{
		{"", settings.Off, "mode auto is assumed to be off: there is no cluster; name it with --kubeconfig, or assume another mode with --mode"},
		{"strict", settings.Strict, "mode auto is assumed to be strict (--mode)"},
	} {
		o := viewOptions{id: gateway.ID{Name: "edge"}, mode: tc.mode}
		p := previewer{source: kubernetesSource{}}
		var err error
		if p.balancers, err = o.balancers(nil, nil); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var mode settings.Mode
		var note string
		err = p.run(ctx, []gateway.ID{o.id}, func(next controlplane.Preview) bool {
			in, err := o.instanceOf(next)
			if err != nil {
				t.Error(err)
				return true
			}
			l, known := next.Snapshot.ListenerSettings(in.Instance, 80)
			mode, note = l.ProxyProtocol.Mode, o.autoNote(next.Snapshot, in)
			return known
		})
		if err != nil || mode != tc.want || note != tc.note {
			t.Errorf("--mode %q: %q, and the note %q; error %v", tc.mode, mode, note, err)
		}
	}
}

// newServiceServer is an API server with the Service of kubernetesSource, whose annotation was set a minute ago. Nothing
// changes.
func newServiceServer(t *testing.T) *httptest.Server {
	s := services.Balanced(map[string]string{"service.beta.kubernetes.io/aws-load-balancer-proxy-protocol": "*"})
	hour := metav1.NewTime(time.Now().Add(-time.Hour))
	minute := metav1.NewTime(time.Now().Add(-time.Minute))
	s.CreationTimestamp, s.ResourceVersion = hour, "7"
	s.ManagedFields = []metav1.ManagedFieldsEntry{
		{Manager: "helm", Operation: metav1.ManagedFieldsOperationUpdate, Time: &hour, FieldsV1: metav1.NewFieldsV1(`{"f:spec": {"f:type": {}}}`)},
		{
			Manager: "kubectl-annotate", Operation: metav1.ManagedFieldsOperationUpdate, Time: &minute,
			FieldsV1: metav1.NewFieldsV1(`{"f:metadata": {"f:annotations": {"f:service.beta.kubernetes.io/aws-load-balancer-proxy-protocol": {}}}}`),
		},
	}
	list := corev1.ServiceList{
		TypeMeta: metav1.TypeMeta{Kind: "ServiceList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: []corev1.Service{*s},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch q := r.URL.Query(); {
		case q.Get("sendInitialEvents") != "": // the client lists instead
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422}`)
		case q.Get("watch") != "":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			_ = json.NewEncoder(w).Encode(list)
		}
	}))
	t.Cleanup(server.Close)
	return server
}

// usher serve would accept connections with and without a header for nine minutes more.
func TestAViewIsPermissiveDuringTheGracePeriod(t *testing.T) {
	kubeconfig := apiserver.KubeconfigFor(t, newServiceServer(t).URL)
	for flags, want := range map[string]settings.Mode{"": settings.Permissive, "--balancer-grace 30s": settings.Strict} {
		var o viewOptions
		cmd := &cobra.Command{}
		o.register(cmd)
		if err := cmd.ParseFlags(strings.Fields("--gateway edge --kubeconfig " + kubeconfig + " " + flags)); err != nil {
			t.Fatal(err)
		}
		p := previewer{source: kubernetesSource{}}
		var err error
		if p.balancers, err = o.balancers(slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var mode settings.Mode
		err = p.run(ctx, []gateway.ID{o.id}, func(next controlplane.Preview) bool {
			in, err := o.instanceOf(next)
			if err != nil {
				return false
			}
			l, known := next.Snapshot.ListenerSettings(in.Instance, 8080)
			mode = l.ProxyProtocol.Mode
			return known
		})
		if err != nil || mode != want {
			t.Errorf("%q: mode %q, want %q; error %v", flags, mode, want, err)
		}
	}
	if _, err := usher(t, "render", "--gateway", "edge", "--balancer-grace", "-1s"); err == nil || !strings.Contains(err.Error(), "--balancer-grace -1s: it must be at least 1s") {
		t.Errorf("error %v", err)
	}
}

func TestAWarningSaysWhatIsHeldBack(t *testing.T) {
	files := gatewayFiles()
	files["usher.hcl"] = `usher { proxy_protocol { mode = "auto" } }`
	newFiles(t, files)
	o := viewOptions{id: gateway.ID{Name: "edge"}, timeout: time.Second}
	o.serve.configDir, o.serve.configFile, o.serve.balancerGrace = "gateways", "usher.hcl", time.Minute
	v, err := o.view(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if v.warn(&out) || out.String() != "note: mode auto is off: the instance's registration names no Service in Kubernetes\n" {
		t.Errorf("it warns: %s", out.String())
	}
}
