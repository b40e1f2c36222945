package main

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/gateway"
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
	} {
		run(strings.Fields(args)...)
	}
	for path, answer := range map[string]string{
		deploymentPath: "{", podsPath: "{", catalogPath: "{", envoysPath: "{", "other": "",
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
		"serve --max-streams 0", "serve --gateway edge/", "serve --gateway a --gateway b --max-gateways 1", "serve --log-level inof", "serve --log-format xml", "serve --balancer-record usher",
		"serve --config-dir " + dir + " --consul-http-addr 127.0.0.1:8500",
		"serve --token-review", "serve --config-dir " + dir + " --login-auth-method usher",
		"serve --envoy-login-auth-method usher --token-review", "serve --tls-cert x", "serve --xds-addr 0.0.0.0:18000",
		"serve --config-dir " + dir + " --dataplane-addr 127.0.0.1:8502", "serve --dataplane-addr 0.0.0.0:8502",
		"serve --xds-addr unix://" + filepath.Join(dir, "xds") + " --dataplane-addr unix://" + file,
		"serve --xds-addr unix://" + file, "serve --xds-addr unix://" + socket, "serve --xds-addr unix://" + filepath.Join(dir, "xds") + " --admin-addr 18001",
		"bootstrap --gateway edge --ca-file " + filepath.Join(dir, "none"), "bootstrap --gateway edge --token-file " + filepath.Join(dir, "none"),
	} {
		_, err := execute(t, strings.Fields(args)...)
		add(err)
	}
	tooMany := (&serveOptions{maxGateways: 1, limits: xds.Limits{
		Connections: 1 << 40, ConnectionsPerPeer: 1, Streams: 1, StreamsPerPeer: 1, StreamRate: 1, StreamRatePerPeer: 1,
	}}).checkLimits()
	add(errors.New(regexp.MustCompile(`[0-9]+`).ReplaceAllString(tooMany.Error(), "N")))
	add(errShuttingDown)
	add(otherCluster(t))
	admin, err := newAdmin(t.Context(), "127.0.0.1:0", slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	admin.listener.Close()
	if err := admin.run(); err == nil || !strings.HasPrefix(err.Error(), "admin server: ") {
		t.Errorf("the admin server without its port: %v", err)
	}
	lines = append(lines, "admin server: …")
	for _, err := range []error{
		consul.ErrUnknownToken, consul.ErrDenied, consul.ErrBearerUnused, consul.ErrBearerInvalid, consul.ErrBearerExpired,
		consul.ErrLoginRefused, tokenreview.ErrRefused, errOtherPod,
	} {
		add(refusal(err, gateway.ID{Name: "edge"}, xds.Credential{}))
	}
	add(refusal(consul.ErrDenied, gateway.ID{Name: "edge"}, xds.Credential{Bearer: "b"}))
	pods := newFakePods()
	for token, serviceID := range map[string]string{"one": "edge-2", "before": "edge-1", "alone": "edge-3"} {
		add(newPodCheck(pods, pods).authorize(t.Context(), token, gateway.ID{Name: "edge"}, serviceID))
	}
	pods.err = errors.New("consul answered 403: Permission denied")
	add(newPodCheck(pods, pods).authorize(t.Context(), "one", gateway.ID{Name: "edge"}, "edge-1"))
	for _, err := range helmValuesErrors(t) {
		add(err)
	}
	messages.Check(t, lines, "errors.New", "fmt.Errorf", "status.Errorf")
}
