//go:build e2e

package lab

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"
	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// KubernetesLab is the lab in Kubernetes: the gateway is behind a Service, and
// its pods are registered as consul-k8s registers them.
type KubernetesLab struct {
	*Lab
	API *apiserver.Server
}

// StartKubernetesLab starts the lab without a Service and without a pod. Usher has
// the rights in docs/.
func StartKubernetesLab(t *testing.T) *KubernetesLab {
	t.Helper()
	l := &KubernetesLab{Lab: Start(t, ConsulNew, EnvoyNew, false)}
	l.API = apiserver.Start(t, apiserver.Options{Host: l.Control, IP: ControlIP, Dial: l.Control.Dial})
	l.API.Grant(t, "../docs/kubernetes-role.yaml")
	l.API.Grant(t, "../docs/kubernetes-record.yaml")
	return l
}

// Pod is an instance of the gateway.
type Pod struct {
	*Host
	lab     *KubernetesLab
	service string // in front of it
	options UsherOptions
	Usher   *Usher // its own, or one for many
	Envoy   *Envoy
}

// StartPod registers a pod of the Service that runs on a host, and starts its Envoy
// and beside it an Usher with this grace period and further flags.
func (l *KubernetesLab) StartPod(t *testing.T, h *Host, grace time.Duration, args ...string) *Pod {
	t.Helper()
	p := &Pod{Host: h, lab: l, service: apiserver.Service, options: l.UsherOptions(t, h, grace, args...)}
	p.register(t)
	p.Usher = StartUsher(t, p.options)
	p.startEnvoy(t)
	p.Envoy.WaitListener(t, 8080)
	return p
}

// StartPodOf registers a pod of a Service that runs on a host, and starts its Envoy,
// which an Usher on another host serves. It does not wait for configuration.
func (l *KubernetesLab) StartPodOf(t *testing.T, service string, h *Host, u *Usher) *Pod {
	t.Helper()
	p := &Pod{Host: h, lab: l, service: service, Usher: u}
	p.register(t)
	p.startEnvoy(t, "--concurrency", "1")
	return p
}

// UsherOptions are those of an Usher on a host with this grace period and further flags.
func (l *KubernetesLab) UsherOptions(t *testing.T, h *Host, grace time.Duration, args ...string) UsherOptions {
	t.Helper()
	return UsherOptions{Host: h, Consul: l.Consul, Args: append([]string{
		"--kubeconfig", l.API.Kubeconfig(t, apiserver.Usher), "--balancer-grace", grace.String(),
		"--balancer-record", apiserver.Namespace + "/usher-balancers",
	}, args...)}
}

func (p *Pod) register(t *testing.T) {
	t.Helper()
	if _, err := p.lab.Consul.Client.Catalog().Register(p.registration(), nil); err != nil {
		t.Fatal(err)
	}
}

func (p *Pod) startEnvoy(t *testing.T, args ...string) {
	t.Helper()
	p.Envoy = StartBootstrapped(t, BootstrapOptions{
		Host: p.Host, Envoy: EnvoyNew, XDSAddr: p.Usher.GRPCAddr, Args: []string{"--service-id", p.id(), "--node-name", p.node()},
		// So long may connections of a changed listener end with an answer.
		EnvoyArgs: append([]string{"--drain-time-s", "2", "--parent-shutdown-time-s", "3"}, args...),
	})
}

func (p *Pod) id() string   { return "consul-ingress-gateway-" + p.Name }
func (p *Pod) node() string { return p.Name + "-virtual" }

// registration is what the endpoints controller of consul-k8s puts into the
// catalog.
func (p *Pod) registration() *api.CatalogRegistration {
	ip := p.IP.String()
	return &api.CatalogRegistration{
		Node: p.node(), Address: ip, NodeMeta: map[string]string{"synthetic-node": "true"}, SkipNodeUpdate: true,
		Service: &api.AgentService{
			Kind: api.ServiceKindIngressGateway, ID: p.id(), Service: "ingress-gateway", Address: ip, Port: 21000,
			Meta: map[string]string{
				"pod-name": p.id(), "k8s-service-name": p.service, "k8s-namespace": apiserver.Namespace,
				"managed-by": "consul-k8s-endpoints-controller", "synthetic-node": "true",
			},
			Proxy: &api.AgentServiceConnectProxyConfig{Config: map[string]any{
				"envoy_gateway_no_default_bind": true,
				"envoy_gateway_bind_addresses":  map[string]any{"all-interfaces": map[string]any{"address": "0.0.0.0"}},
			}},
		},
	}
}

// Restart kills the pod's Usher and starts another one, which its Envoy comes
// back to.
func (p *Pod) Restart(t *testing.T) {
	t.Helper()
	p.Usher.Kill()
	p.Usher = StartUsher(t, p.options)
	p.Usher.WaitStream(t)
}

// WaitMode waits until the pod's Usher has given its listener this mode, and its
// Envoy applies it.
func (p *Pod) WaitMode(t *testing.T, mode string, within time.Duration) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%s says that the listener is %s", p.Usher.Name, mode), within, func() error {
		if last := LastMode(p.Usher.Output(t)); !slices.Contains(last, "mode="+mode) {
			return errors.Join(fmt.Errorf("it says %q", last), p.Usher.Alive())
		}
		return nil
	})
	if mode == "strict" {
		// A connection without a header that is still served would be evidence against the Service.
		testprocess.Eventually(t, p.Envoy.Name+" has the strict listener", testprocess.ChangeDeadline, func() error { return p.Envoy.isStrict(8080) })
	}
	p.lab.WaitMode(t, p.Host, mode)
}

// LastMode returns the fields of the last line in Usher's log about the mode of listener 8080.
func LastMode(log string) []string {
	var last []string
	for line := range strings.Lines(log) {
		if strings.Contains(line, `msg="listener mode changed `) && strings.Contains(line, " port=8080 ") {
			last = strings.Fields(strings.Replace(line, " to=", " mode=", 1)) // because of its connections
		}
	}
	return last
}

var graceEnds = regexp.MustCompile(`(?m)^usher_kubernetes_grace_end_timestamp_seconds\{.*port="8080".*\} (\S+)$`)

// GracePeriodEnd is when the grace period of listener 8080 ends, in Usher's metrics;
// "" where there is none.
func (u *Usher) GracePeriodEnd(t *testing.T) string {
	t.Helper()
	if found := graceEnds.FindStringSubmatch(u.Metrics(t)); found != nil {
		return found[1]
	}
	return ""
}

// resourceVersions are the versions of the resources that the pod's Usher sends to an Envoy
// of the other pod, by type and name.
func (p *Pod) resourceVersions(t *testing.T, as *Pod) map[string]string {
	t.Helper()
	conn := XDSPort{From: p.Host}.Dial(t)
	defer conn.Close()
	e := fakeenvoy.Connect(t, conn, fakeenvoy.Delta, fakeenvoy.Options{Node: &corev3.Node{Id: as.id(), Cluster: "ingress-gateway"}})
	missing := map[string]bool{
		resource.ClusterType: true, resource.EndpointType: true, resource.SecretType: true, resource.ListenerType: true, resource.RouteType: true,
	}
	for typeURL := range missing {
		e.Subscribe(typeURL, "*")
	}
	versions := map[string]string{}
	for len(missing) > 0 {
		r := e.Next()
		e.Ack(r)
		delete(missing, r.Type)
		for name, version := range r.Versions {
			versions[r.Type+" "+name] = version
		}
	}
	return versions
}

// WantSameResources wants all pods' Ushers to send the same versions, and returns them.
func WantSameResources(t *testing.T, when string, pods ...*Pod) map[string]string {
	t.Helper()
	first := pods[0].resourceVersions(t, pods[0])
	for _, p := range pods[1:] {
		if diff := cmp.Diff(first, p.resourceVersions(t, pods[0])); diff != "" {
			t.Errorf("%s: versions of %s -, of %s +:\n%s", when, pods[0].Usher.Name, p.Usher.Name, diff)
		}
	}
	return first
}

// chartValues are what the chart reads of a values file to make the gateway's
// Service.
type chartValues struct {
	IngressGateways struct {
		Defaults struct {
			Service struct{ Type, Annotations string }
		}
	} `yaml:"ingressGateways"`
}

// ServiceFromValues is the Service that the chart makes of a values file, in which the
// annotations are a text of YAML. The error is the one that Helm ends with.
func ServiceFromValues(values string) (*corev1.Service, error) {
	var v chartValues
	if err := yaml.Unmarshal([]byte(values), &v); err != nil {
		return nil, err
	}
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: apiserver.Service}}
	if err := yaml.Unmarshal([]byte(v.IngressGateways.Defaults.Service.Annotations), &s.Annotations); err != nil {
		return nil, err
	}
	s.Spec.Type = corev1.ServiceType(v.IngressGateways.Defaults.Service.Type)
	s.Spec.Selector = map[string]string{"app": "consul", "component": "ingress-gateway"}
	s.Spec.Ports = []corev1.ServicePort{{Name: "gateway-0", Port: 8080}, {Name: "gateway-1", Port: 8443}}
	return s, nil
}

// ApplyChart makes the Service of one of the lab's values files, or, where there is
// one, gives it the annotations.
func (l *KubernetesLab) ApplyChart(t *testing.T, file string, upgrade bool) {
	t.Helper()
	s, err := ServiceFromValues(testprocess.ReadFile(t, file))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if !upgrade {
		l.API.Create(t, s)
		return
	}
	for key, value := range s.Annotations {
		l.API.Annotate(t, key, &value)
	}
}
