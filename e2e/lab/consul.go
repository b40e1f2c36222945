//go:build e2e

package lab

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// ManagementToken has all rights at an agent with ACLs.
const ManagementToken = "5ec2e7a0-0000-4000-8000-000000000001"

// ConsulOptions describe a Consul agent.
type ConsulOptions struct {
	Version string
	Host    *Host
	// Secure enables ACLs that deny by default, TLS on the HTTP and gRPC
	// ports and gossip encryption, and leaves no port without TLS.
	Secure bool
	// ACLs enables the same ACLs, over plain HTTP.
	ACLs bool
	// Join makes a client agent of that server; Secure is then the server's.
	Join *Consul
	// Cluster are the hosts of all servers of the agent's cluster, which keeps its
	// data on disk. Without it, a server is alone and has its data in memory.
	Cluster []*Host
	Args    []string // more arguments of `consul agent`
}

// Consul is a running agent, a server unless it joined one.
type Consul struct {
	*testprocess.Process
	Version string
	Host    *Host
	// Client connects to the agent from its own host, with the management token
	// where the agent is secure.
	Client *api.Client
	// HTTPAddr and GRPCAddr are the agent's addresses on the lab's network, as
	// CONSUL_HTTP_ADDR and -grpc-addr take them.
	HTTPAddr, GRPCAddr string

	Security *Security // nil unless secure
	acls     bool
	// TLSDir has the certificate and the key of an agent that is secure.
	TLSDir     string
	ConfigFile string
	Binary     string
}

// Security is what the agents of a secure datacenter share.
type Security struct {
	CA        *CertificateAuthority
	CAFile    string
	GossipKey string
	// ClientCertificates is what the tests' own clients show the agents, which ask for it only
	// with tls.verify_incoming.
	ClientCertificates []tls.Certificate
}

// StartConsul starts an agent and waits until it has a leader.
func StartConsul(t *testing.T, o ConsulOptions) *Consul {
	t.Helper()
	a := launchConsul(t, o)
	a.waitReady(t)
	return a
}

// StartConsulCluster starts a server on each host, and waits until each has the same leader.
func StartConsulCluster(t *testing.T, o ConsulOptions, hosts []*Host) []*Consul {
	t.Helper()
	o.Cluster = hosts
	var servers []*Consul
	for _, h := range hosts {
		o.Host = h
		servers = append(servers, launchConsul(t, o))
	}
	for _, a := range servers {
		a.waitReady(t)
	}
	return servers
}

// launchConsul starts an agent and does not wait.
func launchConsul(t *testing.T, o ConsulOptions) *Consul {
	t.Helper()
	a := &Consul{
		Version:  o.Version,
		Host:     o.Host,
		HTTPAddr: "http://" + o.Host.Addr(8500),
		GRPCAddr: "http://" + o.Host.Addr(8502),
		Binary:   consulBinary(t, o.Version),
	}
	switch {
	case o.Join != nil:
		a.Security = o.Join.Security
	case o.Secure:
		a.Security = newSecurity(t)
	}
	a.acls = o.ACLs || a.Security != nil
	if a.Security != nil {
		a.HTTPAddr, a.GRPCAddr = "https://"+o.Host.Addr(8501), "https://"+o.Host.Addr(8503)
	}
	a.Client = a.NewClient(t, a.DefaultToken())

	a.ConfigFile = WriteFile(t, testprocess.NewDir(t), "agent.json", a.config(t, o.Join))
	args := []string{"agent", "-config-file", a.ConfigFile, "-bind", o.Host.IP.String(), "-client", "0.0.0.0", "-node", o.Host.Name}
	switch {
	case o.Join != nil:
		args = append(args, "-data-dir", testprocess.NewDir(t), "-retry-join", o.Join.Host.IP.String())
	case o.Cluster != nil:
		args = append(args, "-server", "-data-dir", testprocess.NewDir(t), "-bootstrap-expect", strconv.Itoa(len(o.Cluster)),
			"-hcl", "connect { enabled = true } performance { raft_multiplier = 1 }")
		for _, h := range o.Cluster {
			args = append(args, "-retry-join", h.IP.String())
		}
	default:
		args = append(args, "-dev")
	}
	a.Process = testprocess.Start(t, testprocess.Command{
		Name: "consul " + o.Version + " on " + o.Host.Name, Path: a.Binary, Args: append(args, o.Args...), Host: o.Host,
	})
	return a
}

// waitReady waits until the agent answers from a leader that knows its node.
func (a *Consul) waitReady(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, a.Name+" knows its own node", testprocess.StartDeadline, func() error {
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
func (a *Consul) config(t *testing.T, join *Consul) string {
	t.Helper()
	config := map[string]any{
		"ports":                map[string]int{"grpc": 8502},
		"log_level":            "info",
		"disable_update_check": true,
	}
	if a.Security != nil {
		a.TLSDir = testprocess.NewDir(t)
		cert, key := a.Security.CA.Issue(t, a.TLSDir, "server.dc1.consul", a.Host.IP)
		config["ports"] = map[string]int{"http": -1, "https": 8501, "grpc": -1, "grpc_tls": 8503}
		config["encrypt"] = a.Security.GossipKey
		config["tls"] = map[string]any{"defaults": map[string]any{
			"ca_file": a.Security.CAFile, "cert_file": cert, "key_file": key, "verify_outgoing": true,
		}}
	}
	if a.acls {
		config["acl"] = map[string]any{
			"enabled": true, "default_policy": "deny", "down_policy": "extend-cache",
			"tokens": map[string]string{"initial_management": ManagementToken, "agent": ManagementToken},
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

// NewClient returns a client that connects to the agent from the agent's own host.
func (a *Consul) NewClient(t *testing.T, token string) *api.Client {
	t.Helper()
	transport := &http.Transport{DialContext: a.Host.Dial}
	if a.Security != nil {
		transport.TLSClientConfig = &tls.Config{RootCAs: a.Security.CA.Pool(), Certificates: a.Security.ClientCertificates}
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

// Env is what Consul's CLI and Usher need to reach the agent with a token, or
// with none.
func (a *Consul) Env(token string) []string {
	env := []string{"CONSUL_HTTP_ADDR=" + a.HTTPAddr}
	if a.Security != nil {
		env = append(env, "CONSUL_CACERT="+a.Security.CAFile, "CONSUL_GRPC_CACERT="+a.Security.CAFile)
	}
	if token != "" {
		env = append(env, "CONSUL_HTTP_TOKEN="+token)
	}
	return env
}

// DefaultToken is the management token where the agent has ACLs, and "" elsewhere.
func (a *Consul) DefaultToken() string {
	if !a.acls {
		return ""
	}
	return ManagementToken
}

// WriteEntry writes a config entry as users do: HCL or JSON through
// Consul's CLI.
func (a *Consul) WriteEntry(t *testing.T, entry string) {
	t.Helper()
	output, err := testprocess.RunOutput(t, testprocess.Command{
		Name: "consul config write", Path: a.Binary, Args: []string{"config", "write", "-"},
		Env: a.Env(a.DefaultToken()), Host: a.Host,
	}, entry)
	if err != nil {
		t.Fatalf("consul config write: %v: %s%s", err, output, entry)
	}
}

// NewToken makes an ACL token with the rules.
func (a *Consul) NewToken(t *testing.T, name, rules string) string {
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

func newSecurity(t *testing.T) *Security {
	t.Helper()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	ca := NewCertificateAuthority(t, "Lab CA")
	return &Security{
		CA:        ca,
		CAFile:    WriteFile(t, testprocess.NewDir(t), "ca.pem", ca.PEM()),
		GossipKey: base64.StdEncoding.EncodeToString(key),
	}
}

// NewTokenIfSecure makes a token with the rules where the agent has ACLs, and
// is "" elsewhere.
func (a *Consul) NewTokenIfSecure(t *testing.T, name, rules string) string {
	t.Helper()
	if a.Security == nil {
		return ""
	}
	return a.NewToken(t, name, rules)
}
