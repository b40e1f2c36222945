//go:build e2e

package e2e

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// hiddenIP is an address of Consul's that its certificate does not have.
const hiddenIP = "198.18.0.41"

// TestConsulsEnvironment starts Usher with the environment in which Consul's
// commands work. Consul's variables mean for Usher what they mean for `consul
// catalog services`: Usher serves where the command lists the service, and logs
// the reason where it does not.
func TestConsulsEnvironment(t *testing.T) {
	t.Parallel()
	for _, version := range []string{lab.ConsulNew, lab.ConsulOld} {
		t.Run("consul "+version, func(t *testing.T) {
			t.Parallel()
			e := startEnvironment(t, version)
			for _, c := range e.working(t) {
				t.Run(c.name, func(t *testing.T) { e.wantServed(t, c.env) })
			}
			for _, c := range e.failing(t) {
				t.Run(c.name, func(t *testing.T) { e.wantReason(t, c.env, c.reason) })
			}
		})
	}
}

// environment is a secure Consul with a registered gateway and a service, and a
// proxy in front of it that wants a client's certificate and a password.
type environment struct {
	*lab.Network
	Consul *lab.Consul
	proxy  string // address:port
	token  string // the gateway's
}

func startEnvironment(t *testing.T, consulVersion string) *environment {
	t.Helper()
	e := &environment{Network: lab.NewNetwork(t)}
	e.Consul = lab.StartConsul(t, lab.ConsulOptions{Version: consulVersion, Host: e.Control, Secure: true})
	e.Control.RunIP(t, "address add "+hiddenIP+"/32 dev eth0")
	e.proxy = e.startStrictProxy(t)
	e.RegisterCatalog(t, e.Consul)
	e.token = e.Consul.NewToken(t, "ingress-gateway", gatewayRules)
	return e
}

// startStrictProxy serves Consul's API over TLS to who shows a certificate of
// Consul's authority and the user's password.
func (e *environment) startStrictProxy(t *testing.T) string {
	t.Helper()
	ca := e.Consul.Security.CA
	certFile, keyFile := ca.Issue(t, testprocess.NewDir(t), "proxy.example.com", e.Control.IP)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(e.Consul.HTTPAddr)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{DialContext: e.Control.Dial, TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "operator" || password != "correct horse" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	server.Listener.Close()
	server.Listener = e.Control.Listen(t, ":8601")
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool()}
	server.StartTLS()
	t.Cleanup(server.Close)
	return e.Control.Addr(8601)
}

// environmentCase is an environment, and why it does not work if it does not.
type environmentCase struct {
	name   string
	env    []string
	reason string
}

func (e *environment) working(t *testing.T) []environmentCase {
	t.Helper()
	token := e.Consul.NewToken(t, "usher", testprocess.ReadFile(t, "../docs/usher-policy.hcl"))
	tokenFile := lab.WriteFile(t, testprocess.NewDir(t), "token", token+"\n")
	cert, key := e.Consul.Security.CA.Issue(t, testprocess.NewDir(t), "operator")
	var (
		secretID = "CONSUL_HTTP_TOKEN=" + token
		caFile   = "CONSUL_CACERT=" + e.Consul.Security.CAFile
		address  = "CONSUL_HTTP_ADDR=" + e.Consul.HTTPAddr
	)
	return []environmentCase{
		{name: "https and a CA file", env: []string{address, caFile, secretID}},
		{name: "CONSUL_HTTP_SSL and a CA directory", env: []string{
			"CONSUL_HTTP_ADDR=" + e.Control.Addr(8501), "CONSUL_HTTP_SSL=true",
			"CONSUL_CAPATH=" + filepath.Dir(e.Consul.Security.CAFile), secretID,
		}},
		{name: "no verification", env: []string{address, "CONSUL_HTTP_SSL_VERIFY=false", secretID}},
		{name: "server name", env: []string{
			"CONSUL_HTTP_ADDR=https://" + hiddenIP + ":8501", "CONSUL_TLS_SERVER_NAME=server.dc1.consul", caFile, secretID,
		}},
		{name: "token file", env: []string{address, caFile, "CONSUL_HTTP_TOKEN_FILE=" + tokenFile}},
		{name: "token file before token", env: []string{
			address, caFile, "CONSUL_HTTP_TOKEN_FILE=" + tokenFile, "CONSUL_HTTP_TOKEN=" + unknownToken,
		}},
		{name: "client certificate and password", env: []string{
			"CONSUL_HTTP_ADDR=https://" + e.proxy, caFile, secretID,
			"CONSUL_CLIENT_CERT=" + cert, "CONSUL_CLIENT_KEY=" + key, "CONSUL_HTTP_AUTH=operator:correct horse",
		}},
	}
}

func (e *environment) failing(t *testing.T) []environmentCase {
	t.Helper()
	cert, key := e.Consul.Security.CA.Issue(t, testprocess.NewDir(t), "operator")
	var (
		secretID = "CONSUL_HTTP_TOKEN=" + lab.ManagementToken
		caFile   = "CONSUL_CACERT=" + e.Consul.Security.CAFile
		address  = "CONSUL_HTTP_ADDR=" + e.Consul.HTTPAddr
		proxy    = "CONSUL_HTTP_ADDR=https://" + e.proxy
	)
	return []environmentCase{
		{name: "no CA", env: []string{address, secretID}, reason: "certificate signed by unknown authority"},
		{name: "another server name", env: []string{
			address, caFile, secretID, "CONSUL_TLS_SERVER_NAME=server.dc2.consul",
		}, reason: "not server.dc2.consul"},
		{name: "an address that the certificate lacks", env: []string{
			"CONSUL_HTTP_ADDR=https://" + hiddenIP + ":8501", caFile, secretID,
		}, reason: hiddenIP},
		{name: "plain HTTP to a TLS port", env: []string{
			"CONSUL_HTTP_ADDR=http://" + e.Control.Addr(8501), caFile, secretID,
		}, reason: "HTTP request to an HTTPS server"},
		{name: "unknown token", env: []string{address, caFile, "CONSUL_HTTP_TOKEN=" + unknownToken}, reason: "ACL not found"},
		{name: "no client certificate", env: []string{proxy, caFile, secretID}, reason: "certificate required"},
		{name: "another password", env: []string{
			proxy, caFile, secretID, "CONSUL_CLIENT_CERT=" + cert, "CONSUL_CLIENT_KEY=" + key, "CONSUL_HTTP_AUTH=operator:battery",
		}, reason: "who are you?"},
	}
}

// wantServed wants Consul's command to list the service, and Usher to serve its
// gateway.
func (e *environment) wantServed(t *testing.T, env []string) {
	t.Helper()
	if services, err := e.catalogServices(t, env); err != nil || !strings.Contains(services, "static-server") {
		t.Errorf("consul catalog services: %v: %s", err, services)
	}
	u := lab.StartUsher(t, lab.UsherOptions{Host: e.Gateway, Env: env})
	defer u.Stop(t)
	lab.FetchPrivateKey(t, lab.ConnectFakeEnvoy(t, lab.XDSPort{From: e.Gateway}.Dial(t), fakeenvoy.Delta, e.token))
}

// wantReason wants Consul's command to fail, and Usher to say why it does not
// serve.
func (e *environment) wantReason(t *testing.T, env []string, reason string) {
	t.Helper()
	services, err := e.catalogServices(t, env)
	if err == nil {
		t.Errorf("consul catalog services works and lists %q", services)
	}
	u := lab.LaunchUsher(t, lab.UsherOptions{Host: e.Gateway, Env: env})
	defer u.Stop(t)
	u.WantNotReady(t, reason)
	_, err = u.Admin("/readyz")
	t.Logf("consul says %s, usher says %v", strings.TrimSpace(services), err)
	if strings.Contains(u.Output(t), "battery") {
		t.Error("the log has the password")
	}
}

// catalogServices is what `consul catalog services` prints on the gateway's
// host.
func (e *environment) catalogServices(t *testing.T, env []string, args ...string) (string, error) {
	t.Helper()
	return testprocess.RunOutput(t, testprocess.Command{
		Name: "consul catalog services", Path: e.Consul.Binary,
		Args: append([]string{"catalog", "services"}, args...), Env: env, Host: e.Gateway,
	}, "")
}
