package main

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/metadata"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/reportkey"
	"github.com/usherproxy/usher/internal/testing/apiserver"
)

// TestWhereTheReportKeyComesFrom has every place that gives a key, and every one that gives none, which the log says.
func TestWhereTheReportKeyComesFrom(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fileKey := evidence.NewKey([]byte("0123456789abcdef"))
	for name, c := range map[string]struct {
		args             string
		token, tokenFile string
		want             evidence.Key
		logged           bool
	}{
		"nothing":              {want: evidence.NewKey([]byte("token "))},
		"a token":              {token: "sesame", want: evidence.NewKey([]byte("token sesame"))},
		"a token in a file":    {tokenFile: file, logged: true},
		"a login":              {args: "--login-auth-method=m", token: "sesame", logged: true},
		"config files":         {args: "--config-dir=d", want: evidence.NewKey([]byte("files"))},
		"a file":               {args: "--connection-report-key-file=" + file, token: "sesame", want: fileKey},
		"a file beside others": {args: "--login-auth-method=m --connection-report-key-file=" + file, tokenFile: file, want: fileKey},
		"switched off":         {args: "--connection-reports=false --login-auth-method=m"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("CONSUL_HTTP_TOKEN", c.token)
			t.Setenv("CONSUL_HTTP_TOKEN_FILE", c.tokenFile)
			var o serveOptions
			command := serveCommand()
			command.ResetFlags()
			o.register(command)
			if err := command.ParseFlags(strings.Fields(c.args)); err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			got, err := o.startReports(t.Context(), reportParts{log: slog.New(slog.NewTextHandler(&log, nil)), metrics: prometheus.NewRegistry()})
			if err != nil {
				t.Fatal(err)
			}
			if got.key != c.want || (got.taker() != nil) == c.want.IsZero() || (got.shown() != nil) == c.want.IsZero() {
				t.Errorf("the key is another one, or reports are taken without one: %v, %v", got.key, got.taker())
			}
			const line = "set --connection-report-key-secret or --connection-report-key-file"
			if strings.Count(log.String(), line) != map[bool]int{true: 1}[c.logged] {
				t.Errorf("the log says: %s", log.String())
			}
		})
	}
}

// The key of a Secret is there before the first Envoy connects.
func TestReportsAreKnownByTheKeyOfTheSecret(t *testing.T) {
	const secret = "0123456789abcdef"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/namespaces/consul/secrets/usher-report-key" {
			t.Errorf("a request for %s", r.URL.Path)
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "usher-report-key", Namespace: "consul"}, Data: map[string][]byte{reportkey.DataKey: []byte(secret)},
		})
	}))
	defer server.Close()
	client, err := kubeapi.Connect(apiserver.KubeconfigFor(t, server.URL))
	if err != nil {
		t.Fatal(err)
	}
	o := serveOptions{connectionReports: true, reportKeySecret: "consul/usher-report-key"}
	log, metrics := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	reports, err := o.startReports(t.Context(), reportParts{log: log, metrics: metrics, problems: controlplane.NewProblems(log, metrics), kubernetes: client})
	if err != nil {
		t.Fatal(err)
	}
	key := evidence.NewKey([]byte(secret))
	if reports.key != key {
		t.Error("listeners get another key")
	}
	listener, signature, _ := key.Metadata(evidence.Listener{Gateway: gateway.ID{Name: "ingress-gateway"}, Port: 8080})
	if _, _, err := reports.taker().Authenticate(metadata.Pairs(evidence.ListenerKey, listener, evidence.SignatureKey, signature)); err != nil {
		t.Errorf("a report that the key signed: %v", err)
	}
}
