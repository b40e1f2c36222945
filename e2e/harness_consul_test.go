//go:build e2e

package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"testing"

	"github.com/hashicorp/consul/api"
)

// managementToken may do everything at an agent that is secure.
const managementToken = "5ec2e7a0-0000-4000-8000-000000000001"

// consulOptions describe a Consul agent.
type consulOptions struct {
	Version string
	Host    *host
	// Secure switches on ACLs that deny by default, TLS on the HTTP and gRPC
	// ports and gossip encryption, and leaves no port without TLS.
	Secure bool
	// ACLs switches on the same ACLs, over plain HTTP.
	ACLs bool
	// Join makes a client agent of that server; Secure is then the server's.
	Join *consulAgent
	Args []string // more arguments of `consul agent`
}

// consulAgent is a running agent, a server unless it joined one.
type consulAgent struct {
	*process
	Version string
	Host    *host
	// Client speaks with the agent from its own host, with the management token
	// where the agent is secure.
	Client *api.Client
	// HTTPAddr and GRPCAddr are the agent's addresses on the lab's network, as
	// CONSUL_HTTP_ADDR and -grpc-addr take them.
	HTTPAddr, GRPCAddr string

	security *security // nil unless secure
	acls     bool
	// tlsDir has the certificate and the key of an agent that is secure.
	tlsDir     string
	configFile string
	binary     string
}

// security is what the agents of a secure datacenter share.
type security struct {
	ca     *authority
	CAFile string
	gossip string
	// clients is what the tests' own clients show the agents, which do not ask for
	// it unless they are told to.
	clients []tls.Certificate
}

// startConsul starts an agent and waits until it has a leader.
func startConsul(t *testing.T, o consulOptions) *consulAgent {
	t.Helper()
	a := &consulAgent{
		Version:  o.Version,
		Host:     o.Host,
		HTTPAddr: "http://" + o.Host.addr(8500),
		GRPCAddr: "http://" + o.Host.addr(8502),
		binary:   consulBinary(t, o.Version),
	}
	switch {
	case o.Join != nil:
		a.security = o.Join.security
	case o.Secure:
		a.security = newSecurity(t)
	}
	a.acls = o.ACLs || a.security != nil
	if a.security != nil {
		a.HTTPAddr, a.GRPCAddr = "https://"+o.Host.addr(8501), "https://"+o.Host.addr(8503)
	}
	a.Client = a.newClient(t, a.managementToken())

	a.configFile = writeFile(t, newDir(t), "agent.json", a.config(t, o.Join))
	args := []string{"agent", "-config-file", a.configFile, "-bind", o.Host.IP.String(), "-client", "0.0.0.0", "-node", o.Host.Name}
	if o.Join == nil {
		args = append(args, "-dev")
	} else {
		args = append(args, "-data-dir", newDir(t), "-retry-join", o.Join.Host.IP.String())
	}
	a.process = startProcess(t, command{
		Name: "consul " + o.Version + " on " + o.Host.Name, Path: a.binary, Args: append(args, o.Args...), Host: o.Host,
	})
	a.waitReady(t)
	return a
}

// waitReady waits until the agent answers from a leader that knows its node.
func (a *consulAgent) waitReady(t *testing.T) {
	t.Helper()
	eventually(t, a.Name+" knows its own node", startDeadline, func() error {
		node, _, err := a.Client.Catalog().Node(a.Host.Name, nil)
		if err == nil && node == nil {
			err = errors.New("not in the catalog yet")
		}
		if err != nil {
			return errors.Join(err, a.Alive())
		}
		return nil
	})
}

// config is the agent's configuration file.
func (a *consulAgent) config(t *testing.T, join *consulAgent) string {
	t.Helper()
	config := map[string]any{
		"ports":                map[string]int{"grpc": 8502},
		"log_level":            "info",
		"disable_update_check": true,
	}
	if a.security != nil {
		a.tlsDir = newDir(t)
		cert, key := a.security.ca.issue(t, a.tlsDir, "server.dc1.consul", a.Host.IP)
		config["ports"] = map[string]int{"http": -1, "https": 8501, "grpc": -1, "grpc_tls": 8503}
		config["encrypt"] = a.security.gossip
		config["tls"] = map[string]any{"defaults": map[string]any{
			"ca_file": a.security.CAFile, "cert_file": cert, "key_file": key, "verify_outgoing": true,
		}}
	}
	if a.acls {
		config["acl"] = map[string]any{
			"enabled": true, "default_policy": "deny", "down_policy": "extend-cache",
			"tokens": map[string]string{"initial_management": managementToken, "agent": managementToken},
		}
	}
	if join != nil {
		config["server"] = false
	}
	content, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// newClient speaks with the agent from the agent's own host.
func (a *consulAgent) newClient(t *testing.T, token string) *api.Client {
	t.Helper()
	transport := &http.Transport{DialContext: a.Host.dial}
	if a.security != nil {
		transport.TLSClientConfig = &tls.Config{RootCAs: a.security.ca.pool(), Certificates: a.security.clients}
	}
	t.Cleanup(transport.CloseIdleConnections)
	client, err := api.NewClient(&api.Config{
		Address:    a.HTTPAddr,
		Token:      token,
		HttpClient: &http.Client{Transport: transport},
	})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// env is what Consul's CLI and Usher need to reach the agent with a token, or
// with none.
func (a *consulAgent) env(token string) []string {
	env := []string{"CONSUL_HTTP_ADDR=" + a.HTTPAddr}
	if a.security != nil {
		env = append(env, "CONSUL_CACERT="+a.security.CAFile, "CONSUL_GRPC_CACERT="+a.security.CAFile)
	}
	if token != "" {
		env = append(env, "CONSUL_HTTP_TOKEN="+token)
	}
	return env
}

func (a *consulAgent) managementToken() string {
	if !a.acls {
		return ""
	}
	return managementToken
}

// writeEntry writes a config entry as an operator does: HCL or JSON through
// Consul's CLI.
func (a *consulAgent) writeEntry(t *testing.T, entry string) {
	t.Helper()
	output, err := runProcess(t, command{
		Name: "consul config write", Path: a.binary, Args: []string{"config", "write", "-"},
		Env: a.env(a.managementToken()), Host: a.Host,
	}, entry)
	if err != nil {
		t.Fatalf("consul config write: %v: %s%s", err, output, entry)
	}
}

// newToken makes an ACL token with the rules.
func (a *consulAgent) newToken(t *testing.T, name, rules string) string {
	t.Helper()
	policy, _, err := a.Client.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil)
	if err != nil {
		t.Fatalf("ACL policy %s: %v", name, err)
	}
	token, _, err := a.Client.ACL().TokenCreate(&api.ACLToken{
		Description: name,
		Policies:    []*api.ACLLink{{ID: policy.ID}},
	}, nil)
	if err != nil {
		t.Fatalf("ACL token %s: %v", name, err)
	}
	return token.SecretID
}

func newSecurity(t *testing.T) *security {
	t.Helper()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	ca := newAuthority(t, "Lab CA")
	return &security{
		ca:     ca,
		CAFile: writeFile(t, newDir(t), "ca.pem", ca.pem()),
		gossip: base64.StdEncoding.EncodeToString(key),
	}
}

// tokenWhereSecure makes a token with the rules where the agent has ACLs, and
// is "" elsewhere.
func (a *consulAgent) tokenWhereSecure(t *testing.T, name, rules string) string {
	t.Helper()
	if a.security == nil {
		return ""
	}
	return a.newToken(t, name, rules)
}
