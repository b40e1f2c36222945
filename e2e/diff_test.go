//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestDiffBeforeTheCutOver looks at a gateway before and after it moves from Consul's own xDS to Usher.
func TestDiffBeforeTheCutOver(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, true)
	token := l.Consul.NewToken(t, "usher", testprocess.ReadFile(t, "../docs/usher-policy.hcl"))
	own := l.Consul.NewToken(t, "ingress-gateway", gatewayRules)
	secrets := []string{"PRIVATE KEY", lab.ManagementToken, l.Consul.Security.GossipKey, token, own}
	usher := func(args ...string) testprocess.Result {
		t.Helper()
		args = append(args, "--gateway", "ingress-gateway")
		end := testprocess.Run(t, testprocess.Command{Path: testprocess.Usher(t), Args: args, Env: l.Consul.Env(token), Host: l.Gateway}, "")
		for _, secret := range secrets {
			if strings.Contains(end.Stdout+end.Stderr, secret) {
				t.Errorf("usher %s prints a secret: %s", args[0], secret)
			}
		}
		return end
	}
	wantSame := func(args ...string) {
		t.Helper()
		if end := usher(args...); end.Code != 0 || end.Stdout != "" {
			t.Errorf("usher %q: exit status %d, want no difference: %s%s", args, end.Code, end.Stdout, end.Stderr)
		}
	}
	// The filter, what finds the client's address after it, and what the access logs have to say because of it.
	want := testprocess.ReadFile(t, "testdata/diff/permissive.txt")
	wantOn := func(args ...string) {
		t.Helper()
		end := usher(args...)
		if diff := cmp.Diff(want, changedLines(end.Stdout)); end.Code != 1 || diff != "" {
			t.Errorf("usher %q: exit status %d: %s\n-want +got\n%s", args, end.Code, end.Stderr, diff)
		}
		if n := strings.Count(end.Stdout, "\n+++ usher/listener/http:"+lab.GatewayIP+":8080\n"); n != 1 || strings.Count(end.Stdout, "\n+++ ") != 1 {
			t.Errorf("usher %q: want differences in the listener alone:\n%s", args, end.Stdout)
		}
	}
	gateway := lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, Token: own}
	first := lab.StartGateway(t, gateway)
	first.WaitListener(t, 8080)
	permissive := pages.Find(t, "docs/cutover.md", "gateway \"ingress-gateway\"")[0].Text
	config := lab.WriteFile(t, testprocess.NewDir(t), "usher.hcl", permissive)
	off := lab.WriteFile(t, testprocess.NewDir(t), "off.hcl", "usher {}\n")
	const admin = "http://127.0.0.1:19000"

	wantSame("diff")
	wantSame("diff", "--envoy-admin", admin)
	wantOn("diff", "--config", config, "--envoy-version", lab.EnvoyNew)
	wantOn("diff", "--config", config, "--envoy-admin", admin)
	wantOn("diff", "--config", config, "--against", off)

	first.Stop(t)
	server := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Token: token, Config: permissive})
	gateway.GRPCAddr = server.GRPCAddr
	lab.StartGateway(t, gateway).WaitListener(t, 8080)
	wantSame("diff", "--config", config, "--envoy-admin", admin)

	for with, says := range map[string]string{
		own: "modes        ok: " + lab.GatewayIP + ":8080 stays permissive\n",
		"":  "target       REFUSED: Usher at http://127.0.0.1:18000: the stream came without x-consul-token; ",
	} {
		end := testprocess.Run(t, testprocess.Command{Path: testprocess.Usher(t), Args: []string{"cutover", "--dry-run"}, Env: l.Consul.Env(with), Host: l.Gateway}, "")
		if !strings.Contains(end.Stdout, says) || strings.Contains(end.Stdout, own) {
			t.Errorf("usher cutover --dry-run: want %q, and no token:\n%s%s", says, end.Stdout, end.Stderr)
		}
	}

	fake := lab.ConnectFakeEnvoy(t, lab.XDSPort{From: l.Gateway}.Dial(t), fakeenvoy.Delta, own)
	for line := range strings.Lines(lab.FetchPrivateKey(t, fake)) {
		secrets = append(secrets, strings.TrimSpace(line))
	}
	end := usher("render", "--config", config)
	for _, text := range []string{"name: " + lab.LeafSecret, "private_key: '[redacted]'", fmt.Sprintf("name: http:%s:8080", lab.GatewayIP)} {
		if !strings.Contains(end.Stdout, text) {
			t.Errorf("render has no %q: exit status %d: %s%s", text, end.Code, end.Stdout, end.Stderr)
		}
	}
	if end := usher("diff", "--consul-grpc-addr", "127.0.0.1:1", "--timeout", "2s"); end.Code != 2 || !strings.Contains(end.Stderr, "usher: consul's xDS at ") {
		t.Errorf("without Consul's gRPC port: exit status %d: %s%s", end.Code, end.Stdout, end.Stderr)
	}
}

// changedLines returns the lines of a unified diff that differ, without the names of the resources.
func changedLines(diff string) string {
	var changed strings.Builder
	for line := range strings.Lines(diff) {
		isName := strings.HasPrefix(line, "--- ") || strings.HasPrefix(line, "+++ ")
		if !isName && (line[0] == '+' || line[0] == '-') {
			changed.WriteString(line)
		}
	}
	return changed.String()
}
