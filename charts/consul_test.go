//go:build e2e

package charts

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// managementToken may do everything in Consul.
const managementToken = "11111111-2222-3333-4444-555555555555"

// consulServer is a real Consul with ACLs.
type consulServer struct {
	client     *api.Client // with managementToken
	http, grpc string      // host:port, or with TLS https://host:port
	tokenFile  string      // has managementToken
	ca         string      // certificate of its CA; "" without TLS
}

// startConsul starts a Consul, with TLS or without.
func startConsul(t *testing.T, tls bool) *consulServer {
	t.Helper()
	ports := map[string]any{"http": -1, "https": -1, "grpc": -1, "grpc_tls": -1, "dns": -1}
	for _, name := range []string{"server", "serf_lan", "serf_wan"} {
		ports[name] = testprocess.FreePort(t)
	}
	config := map[string]any{"ports": ports, "acl": map[string]any{
		"enabled": true, "default_policy": "deny",
		"tokens": map[string]any{"initial_management": managementToken, "agent": managementToken},
	}}
	dir := testprocess.NewDir(t)
	s := &consulServer{tokenFile: writeFile(t, filepath.Join(dir, "token"), managementToken+"\n")}
	http, grpc := testprocess.FreePort(t), testprocess.FreePort(t)
	if tls {
		ports["https"], ports["grpc_tls"] = http, grpc
		s.http, s.grpc = fmt.Sprint("https://127.0.0.1:", http), fmt.Sprint("https://127.0.0.1:", grpc)
		maps.Copy(config, s.createCertificate(t, dir))
	} else {
		ports["http"], ports["grpc"] = http, grpc
		s.http, s.grpc = fmt.Sprint("127.0.0.1:", http), fmt.Sprint("127.0.0.1:", grpc)
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	process := testprocess.Start(t, testprocess.Command{
		Name: "consul", Path: testprocess.Tool(t, testprocess.Consul, "consul"), Args: []string{
			"agent", "-dev", "-bind", "127.0.0.1", "-client", "127.0.0.1", "-config-file", writeFile(t, filepath.Join(dir, "config.json"), string(text)),
		},
	})
	s.client, err = api.NewClient(&api.Config{Address: s.http, Token: managementToken, TLSConfig: api.TLSConfig{CAPem: []byte(s.ca)}})
	if err != nil {
		t.Fatal(err)
	}
	testprocess.Eventually(t, "Consul has a leader and its tokens", testprocess.StartDeadline, func() error {
		if err := process.Alive(); err != nil {
			return testprocess.Permanent(err)
		}
		_, _, err := s.client.ACL().TokenReadSelf(nil)
		return err
	})
	return s
}

// createCertificate makes a CA and a certificate with Consul's own commands, and returns the configuration with them.
func (s *consulServer) createCertificate(t *testing.T, dir string) map[string]any {
	t.Helper()
	end := testprocess.Run(t, testprocess.Command{
		Name: "consul tls", Path: "/bin/sh", Env: []string{"DIR=" + dir, "CONSUL=" + testprocess.Tool(t, testprocess.Consul, "consul")},
		Args: []string{"-euc", `cd "$DIR"; "$CONSUL" tls ca create; "$CONSUL" tls cert create -server`},
	}, "")
	if end.Code != 0 {
		t.Fatalf("consul tls: %s%s", end.Stdout, end.Stderr)
	}
	s.ca = testprocess.ReadFile(t, filepath.Join(dir, "consul-agent-ca.pem"))
	return map[string]any{"tls": map[string]any{"defaults": map[string]any{
		"ca_file":   filepath.Join(dir, "consul-agent-ca.pem"),
		"cert_file": filepath.Join(dir, "dc1-server-consul-0.pem"), "key_file": filepath.Join(dir, "dc1-server-consul-0-key.pem"),
	}}}
}

// writeFile writes a file and returns its path.
func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// createToken creates a token with a policy.
func (s *consulServer) createToken(t *testing.T, rules string) string {
	t.Helper()
	policy, _, err := s.client.ACL().PolicyCreate(&api.ACLPolicy{Name: "usher", Rules: strings.TrimSpace(rules)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := s.client.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{ID: policy.ID}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return token.SecretID
}
