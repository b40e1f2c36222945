//go:build e2e

package charts

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	"sigs.k8s.io/yaml"

	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// gateway is the pod of a gateway, whose node runs on this machine.
type gateway struct {
	consul *consulServer
	pod    string // its name, and its service ID in Consul
	port   int    // of its listener
	admin  int    // port of its Envoy's admin interface
}

const (
	gatewayService = "ingress-gateway"        // in Consul
	gatewayAccount = "consul-ingress-gateway" // of the Consul chart
)

// newGateway does what the Consul chart, its controllers and a user do for a gateway whose pod is created: a service
// account with the gateway's role, the pod, its registration with the annotation, and a config entry with a service
// behind it that is part of the mesh.
func newGateway(t *testing.T, c *cluster, consul *consulServer, config map[string]any) *gateway {
	t.Helper()
	g := &gateway{consul: consul, pod: "ingress-gateway-0", port: testprocess.FreePort(t), admin: testprocess.FreePort(t)}
	c.create(t, serviceAccount(gatewayAccount))
	pod := gatewayPod(t)
	pod.metadata()["name"] = g.pod
	pod.at("spec").(map[string]any)["serviceAccountName"] = gatewayAccount
	c.create(t, pod)
	g.bindRole(t)

	agent := consul.client.Agent()
	web := serveInMesh(t, agent)
	config["envoy_gateway_no_default_bind"] = true
	config["envoy_gateway_bind_addresses"] = map[string]any{"loopback": map[string]any{"address": "127.0.0.1", "port": g.port}}
	for _, s := range []*api.AgentServiceRegistration{
		{
			Kind: api.ServiceKindIngressGateway, ID: g.pod, Name: gatewayService, Address: "127.0.0.1", Port: g.port,
			Meta: map[string]string{"k8s-namespace": namespaceOfRelease, "pod-name": g.pod}, Proxy: &api.AgentServiceConnectProxyConfig{Config: config},
		},
		{Name: "web", Address: "127.0.0.1", Port: web, Connect: &api.AgentServiceConnect{Native: true}},
	} {
		if err := agent.ServiceRegister(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, entry := range []api.ConfigEntry{
		&api.ServiceConfigEntry{Kind: api.ServiceDefaults, Name: "web", Protocol: "http"},
		&api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: gatewayService, Listeners: []api.IngressListener{
			{Port: g.port, Protocol: "http", Services: []api.IngressService{{Name: "web", Hosts: []string{"web.example.com"}}}},
		}},
	} {
		if _, _, err := consul.client.ConfigEntries().Set(entry, nil); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// bindRole gives the gateway's service account what the Consul chart gives it.
func (g *gateway) bindRole(t *testing.T) {
	t.Helper()
	acl := g.consul.client.ACL()
	_, _, err := acl.PolicyCreate(&api.ACLPolicy{Name: gatewayService + "-policy", Rules: `
service "ingress-gateway" { policy = "write" }
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }`}, nil)
	if err == nil {
		_, _, err = acl.RoleCreate(&api.ACLRole{Name: gatewayAccount, Policies: []*api.ACLRolePolicyLink{{Name: gatewayService + "-policy"}}}, nil)
	}
	if err == nil {
		_, _, err = acl.BindingRuleCreate(&api.ACLBindingRule{
			AuthMethod: authMethod, BindType: api.BindingRuleBindTypeRole, BindName: gatewayAccount,
			Selector: fmt.Sprintf("serviceaccount.name==%q", gatewayAccount),
		}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// serveInMesh serves "hello" as the service web with its certificate from Consul, and returns the port.
func serveInMesh(t *testing.T, agent *api.Agent) int {
	t.Helper()
	leaf, _, err := agent.ConnectCALeaf("web", nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM))
	if err != nil {
		t.Fatal(err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })}
	ended := make(chan error, 1)
	go func() {
		ended <- server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert}))
	}()
	t.Cleanup(func() {
		server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the service ended: %v", err)
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}

// annotatedConfig is the Proxy.Config that the pods of the gateway get from `usher helm-values` by the real Helm, in a
// chart that does with annotations what the Consul chart does. tokenFile is where this pod has its token.
func annotatedConfig(t *testing.T, values, tokenFile string, flags ...string) map[string]any {
	t.Helper()
	got := testprocess.Run(t, testprocess.Command{
		Name: "usher helm-values", Path: testprocess.Usher(t), Args: append([]string{"helm-values", "-f", values}, flags...),
	}, "")
	if got.Code != 0 {
		t.Fatalf("usher helm-values: %s", got.Stderr)
	}
	dir := testprocess.NewDir(t)
	writeFile(t, filepath.Join(dir, "Chart.yaml"), "apiVersion: v2\nname: consul\nversion: 1.0.0\n")
	writeFile(t, filepath.Join(dir, "templates", "pod.yaml"), `apiVersion: v1
kind: Pod
metadata:
  name: gateway
  annotations:
    {{- tpl .Values.ingressGateways.defaults.annotations . | nindent 4 }}
`)
	rendered, failure := template(t, dir, "-f", values, "-f", writeFile(t, filepath.Join(dir, "override.yaml"), got.Stdout))
	if failure != "" {
		t.Fatal(failure)
	}
	text := rendered[0].metadata()["annotations"].(map[string]any)["consul.hashicorp.com/proxy-config-map"].(string)
	const podTokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	if !strings.Contains(text, podTokenFile) {
		t.Fatalf("the bootstrap sends no token: %s", text)
	}
	var config map[string]any
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(text, podTokenFile, tokenFile)), &config); err != nil {
		t.Fatal(err)
	}
	return config
}

// writeToken writes the token of the pod's service account.
func (g *gateway) writeToken(t *testing.T, c *cluster, file string) {
	t.Helper()
	writeFile(t, file, c.server.Token(t, gatewayAccount, apiserver.TokenOptions{Pod: g.pod}))
}

// startEnvoy starts the pod's Envoy. `consul connect envoy` fills the template in with the code of consul-dataplane.
func (g *gateway) startEnvoy(t *testing.T) *testprocess.Process {
	t.Helper()
	ca := writeFile(t, filepath.Join(testprocess.NewDir(t), "ca.pem"), g.consul.ca)
	filled := testprocess.Run(t, testprocess.Command{
		Name: "consul connect envoy", Path: testprocess.Tool(t, testprocess.Consul, "consul"),
		Args: []string{
			"connect", "envoy", "-gateway=ingress", "-proxy-id", g.pod, "-bootstrap", "-ignore-envoy-compatibility",
			"-admin-bind", fmt.Sprint("127.0.0.1:", g.admin), "-envoy-binary", testprocess.Tool(t, testprocess.Envoy, "envoy"),
		},
		Env: []string{"CONSUL_HTTP_ADDR=" + g.consul.http, "CONSUL_GRPC_ADDR=" + g.consul.grpc, "CONSUL_CACERT=" + ca, "CONSUL_HTTP_TOKEN=" + managementToken},
	}, "")
	if filled.Code != 0 || !json.Valid([]byte(filled.Stdout)) {
		t.Fatalf("consul connect envoy: %s%s", filled.Stdout, filled.Stderr)
	}
	return testprocess.Start(t, testprocess.Command{
		Name: "envoy", Path: testprocess.Tool(t, testprocess.Envoy, "envoy"), Args: []string{"--config-yaml", filled.Stdout, "--disable-hot-restart", "--concurrency", "1"},
	})
}

// waitHello waits until a client gets the answer of the service through the gateway.
func (g *gateway) waitHello(t *testing.T, envoy *testprocess.Process) {
	t.Helper()
	testprocess.Eventually(t, "the gateway answers", testprocess.StartDeadline, func() error {
		if err := envoy.Alive(); err != nil {
			return testprocess.Permanent(err)
		}
		return g.hello(t)
	})
}

// hello makes a request to the service through the gateway.
func (g *gateway) hello(t *testing.T) error {
	t.Helper()
	body, err := getText(t, "http://127.0.0.1:"+strconv.Itoa(g.port), "web.example.com")
	if err == nil && body != "hello" {
		err = fmt.Errorf("the answer is %q", body)
	}
	return err
}

// waitReported makes connections until the gateway's Envoy has reported some to the Usher with this admin port.
func (g *gateway) waitReported(t *testing.T, admin string) {
	t.Helper()
	series := fmt.Sprintf("usher_reported_connections_total{gateway=%q,port=\"%d\",type=\"no_header\"} ", gatewayService, g.port)
	testprocess.Eventually(t, "Usher counts what the Envoy reports", testprocess.StartDeadline, func() error {
		if err := g.hello(t); err != nil {
			return testprocess.Permanent(err)
		}
		metrics, err := getText(t, "http://"+admin+"/metrics", "")
		if err == nil && !strings.Contains(metrics, series) {
			err = errors.New("it counts nothing")
		}
		return err
	})
}

// wantListenersUnchanged checks that the gateway's Envoy has got its listeners once.
func (g *gateway) wantListenersUnchanged(t *testing.T) {
	t.Helper()
	stats, err := getText(t, fmt.Sprintf("http://127.0.0.1:%d/stats?filter=^listener_manager", g.admin), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, stat := range []string{"listener_modified", "listener_in_place_updated", "listener_removed"} {
		if !strings.Contains(stats, "listener_manager."+stat+": 0\n") {
			t.Errorf("%s is not 0: Usher has sent another listener:\n%s", stat, stats)
		}
	}
}
