package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/controlplane"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/testing/messages"
	"github.com/usherproxy/usher/internal/tokenreview"
	"github.com/usherproxy/usher/xds"
)

// helmValuesErrors returns every error of usher helm-values that this package makes.
func helmValuesErrors(t *testing.T) []error {
	t.Helper()
	dir := t.TempDir()
	lab := "-f " + chartValues + "lab.yaml "
	t.Setenv("KUBECONFIG", dir+"/none")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	var errs []error
	run := func(args ...string) {
		t.Helper()
		_, _, err := helmValues(t, "", args...)
		if err == nil {
			t.Fatalf("no error for %q", args)
		}
		text := strings.ReplaceAll(err.Error(), dir, "DIR")
		errs = append(errs, errors.New(regexp.MustCompile(`127\.0\.0\.1:[0-9]+`).ReplaceAllString(text, "ADDRESS")))
	}
	for _, args := range []string{
		"", "-f " + dir + "/none", "-f - -f -", lab + "--usher-service a/b/c", lab + "--ca-file a --ca-path-in-pod /b", lab + "--ca-file " + dir + "/none",
		"-f " + chartValues + "enterprise.yaml", lab + "--check", lab + "--check --kubeconfig " + dir + "/none",
		lab + "--drain-time 25h",
	} {
		run(strings.Fields(args)...)
	}
	for path, answer := range map[string]string{
		deploymentPath: "{", podsPath: "{", catalogPath: "{", envoysPath: "{", "other": "",
		usherPath: "{", webhooksPath: "{", policiesPath: "{",
	} {
		c := newChecked(t)
		c.useUsher(t)
		c.answers[path] = answer
		if path == "other" {
			delete(c.answers, envoysPath)
		}
		run(c.flags(t)...)
	}
	c := newChecked(t)
	run(c.flags(t)[:7]...) // it has no Deployment
	return errs
}

// diffErrors returns every error of usher diff about something that it compares with. gateways is a directory for --config-dir.
func diffErrors(t *testing.T, gateways string) []error {
	t.Helper()
	var answer string
	envoy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, answer) }))
	defer envoy.Close()
	broken := httptest.NewServer(http.NotFoundHandler())
	defer broken.Close()
	permissive := filepath.Join(t.TempDir(), "usher.hcl")
	if err := os.WriteFile(permissive, []byte(`usher { proxy_protocol { mode = "permissive" } }`), 0o600); err != nil {
		t.Fatal(err)
	}
	errs := []error{consulXDSError("dns:///127.0.0.1:8502", status.Error(codes.PermissionDenied, "REASON"))}
	run := func(args ...string) {
		t.Helper()
		_, err := usher(t, append([]string{"diff", "--gateway", "edge", "--config-dir", gateways}, args...)...)
		if err == nil {
			t.Fatalf("no error for %q", args)
		}
		text := strings.NewReplacer(envoy.URL, "http://ADDRESS", broken.URL, "http://ADDRESS", filepath.Dir(permissive), "DIR").Replace(err.Error())
		errs = append(errs, errors.New(text))
	}
	run("--envoy-admin", broken.URL)
	for _, answer = range []string{"{", `{"version": "a/b"}`} {
		run("--envoy-admin", envoy.URL)
	}
	run("--against", permissive, "--envoy-version", "1.22")
	run("--config", permissive, "--envoy-version", "1.22", "--against", gateways)
	return errs
}

// TestMessages provokes every error of this package.
func TestMessages(t *testing.T) {
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "file"), filepath.Join(dir, "socket")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	gateways := filepath.Join(dir, "gateways")
	if err := os.Mkdir(gateways, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"edge.hcl": gatewayFiles()["gateways/edge.hcl"], "web.hcl": gatewayFiles()["gateways/web.hcl"], "both.hcl": "kind = \"ingress-gateway\"\nname = \"both\"",
		"instances.json": `{"services": [{"kind": "ingress-gateway", "name": "both", "id": "a"}, {"kind": "ingress-gateway", "name": "both", "id": "b"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(gateways, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var lines []string
	add := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
		text := strings.ReplaceAll(err.Error(), dir, "DIR")
		if s, ok := status.FromError(err); ok {
			text = s.Message()
		}
		lines = append(lines, text)
	}
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", "")
	for _, args := range []string{
		"serve --balancer-grace -1s", "serve --reauthorize-interval 0s", "serve --authorization-stale-if-error -1h", "serve --drain-time 11m",
		"serve --dataplane-drain-time 25h", "serve --max-streams 0", "serve --gateway edge/", "serve --gateway a --gateway b --max-gateways 1",
		"serve --log-level inof", "serve --log-format xml", "serve --balancer-record usher", "serve --balancer-record consul/usher",
		"serve -config x", "serve --confg x", "bootstrap edge", "version x",
		"serve --config-dir " + dir + " --consul-http-addr 127.0.0.1:8500",
		"serve --token-review", "serve --config-dir " + dir + " --login-auth-method usher",
		"serve --envoy-login-auth-method usher --token-review", "serve --tls-cert x",
		"serve --connection-reports=false --connection-report-key-file none", "serve --connection-report-key-file none --connection-report-key-secret a/b",
		"serve --connection-report-key-file none", "serve --connection-report-key-file " + file,
		"serve --state-key-file x", "serve --state-dir x --config-dir " + dir, "serve --state-dir " + file, "serve --state-dir " + dir + "/state --state-key-file " + dir + "/none",
		"serve --state-dir " + dir + "/state --state-key-file " + file,
		"serve --connection-report-key-secret usher", "serve --connection-report-key-secret consul/usher", "serve --xds-addr 0.0.0.0:18000",
		"serve --config-dir " + dir + " --dataplane-addr 127.0.0.1:8502", "serve --dataplane-addr 0.0.0.0:8502",
		"serve --xds-addr unix://" + filepath.Join(dir, "xds") + " --dataplane-addr unix://" + file,
		"serve --webhook-addr 127.0.0.1:0", "serve --webhook-arg -a", "serve --webhook-addr 127.0.0.1:0 --webhook-arg -a",
		"serve --webhook-termination-grace-period 1ms",
		"cutover --accept kernal", "cutover --timeout 1ms", "cutover --old 127.0.0.1:19000 --new 127.0.0.1:19000",
		"support-bundle --timeout 0s", "status -o xml", "status --timeout 0s", "probe --expect on gateway:8080", "probe --output xml gateway:8080", "probe --source gateway gateway:8080",
		"doctor --output xml", "doctor --observe -1s", "doctor --probe-timeout 0s", "doctor --login-auth-method usher", "doctor --balancer lb:80", "doctor gateway",
		"serve --xds-addr unix://" + file, "serve --xds-addr unix://" + socket, "serve --xds-addr unix://" + filepath.Join(dir, "xds") + " --admin-addr 18001",
		"diff --gateway edge --envoy-admin a --against b", "diff --gateway edge --config-dir a", "diff --gateway edge --config-dir " + gateways + " --against none",
		"render", "render --timeout 1ms", "render --gateway edge -o xml", "render --gateway edge -o json --explain", "render --gateway edge --config-dir " + gateways + " --mode strcit", "render --gateway edje --config-dir " + gateways,
		"render --gateway edge --config-dir " + gateways + " --service-id none", "render --gateway both --config-dir " + gateways,
		"validate -o xml " + file, "validate --envoy-version x " + file,
		"bootstrap --gateway edge --ca-file " + filepath.Join(dir, "none"), "bootstrap --gateway edge --token-file " + filepath.Join(dir, "none"),
	} {
		_, err := usher(t, strings.Fields(args)...)
		add(err)
	}
	t.Setenv(stateKeyEnv, "short")
	for _, args := range []string{"serve --state-dir " + dir + "/state", "serve --state-dir " + dir + "/state --state-key-file " + file} {
		_, err := usher(t, strings.Fields(args)...)
		add(err)
	}
	tooMany := (&serveOptions{maxGateways: 1, limits: xds.Limits{
		Connections: 1 << 40, ConnectionsPerPeer: 1, Streams: 1, StreamsPerPeer: 1, StreamRate: 1, StreamRatePerPeer: 1,
	}}).checkLimits()
	add(errors.New(regexp.MustCompile(`[0-9]+`).ReplaceAllString(tooMany.Error(), "N")))
	add(errShuttingDown)
	view := &viewOptions{id: gateway.ID{Name: "edge"}, timeout: time.Second}
	for _, p := range []controlplane.Preview{
		{},
		{Snapshot: &gateway.Snapshot{}},
		{Snapshot: &gateway.Snapshot{Entry: &gateway.Entry{}}},
		{
			Snapshot: &gateway.Snapshot{Entry: &gateway.Entry{}}, Problems: []problem.Problem{{Where: "gateway \"edge\"", What: "bug in Usher"}},
			Instances: []controlplane.InstancePreview{{Instance: &gateway.Instance{}}},
		},
	} {
		_, err := view.instanceOf(p)
		add(err)
	}
	add(otherCluster(t))
	_, err = healthService{}.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "other"})
	add(err)
	add(healthService{}.Watch(nil, nil)) // it serves none
	admin, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	admin.listener.Close()
	if err := admin.run(); err == nil || !strings.HasPrefix(err.Error(), "admin server: ") {
		t.Errorf("the admin server without its port: %v", err)
	}
	lines = append(lines, "admin server: …")
	if err := (&webhook{server: &http.Server{ReadTimeout: time.Second}}).serve(admin.listener); err == nil || !strings.HasPrefix(err.Error(), "webhook server: ") {
		t.Errorf("the webhook without its port: %v", err)
	}
	lines = append(lines, "webhook server: …")
	_, err = (&webhookOptions{addr: "18003"}).listen(t.Context(), transport{}, slog.New(slog.DiscardHandler))
	add(err)
	for _, err := range []error{
		consul.ErrUnknownToken, consul.ErrDenied, consul.ErrBearerUnused, consul.ErrBearerInvalid, consul.ErrBearerExpired,
		consul.ErrLoginRefused, tokenreview.ErrRefused, errOtherPod,
	} {
		add(refusal(err, gateway.ID{Name: "edge"}, xds.Credential{Token: "t"}))
	}
	add(refusal(consul.ErrDenied, gateway.ID{Name: "edge"}, xds.Credential{Bearer: "b"}))
	add(refusal(consul.ErrDenied, gateway.ID{Name: "edge"}, xds.Credential{}))
	pods := newFakePods()
	for token, serviceID := range map[string]string{"one": "edge-2", "before": "edge-1", "alone": "edge-3"} {
		add(newPodCheck(pods, pods).authorize(t.Context(), token, gateway.ID{Name: "edge"}, serviceID))
	}
	pods.err = errors.New("consul answered 403: Permission denied")
	add(newPodCheck(pods, pods).authorize(t.Context(), "one", gateway.ID{Name: "edge"}, "edge-1"))
	for _, err := range slices.Concat(helmValuesErrors(t), probeErrors(), supportBundleErrors(t)) {
		add(err)
	}
	for _, err := range diffErrors(t, gateways) {
		add(err)
	}
	lines = append(lines, cutoverErrors(t)...)
	messages.Check(t, lines, "errors.New", "fmt.Errorf", "status.Errorf")
}
