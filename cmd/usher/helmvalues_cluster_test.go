//go:build e2e

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// checkedCluster is a real API server and a real Consul. The test does what Helm, the controllers and the kubelet would.
type checkedCluster struct {
	kubernetes rest.Interface
	consul     *api.Client
	kubeconfig string
	flags      []string
}

func newCheckedCluster(t *testing.T, o apiserver.Options) *checkedCluster {
	t.Helper()
	server := apiserver.Start(t, o)
	consulAddr, client := startConsul(t)
	kubeconfig := server.Kubeconfig(t, apiserver.Admin)
	c := &checkedCluster{consul: client, kubeconfig: kubeconfig, flags: []string{
		"--check", "-f", chartValues + "lab.yaml", "--kubeconfig", kubeconfig, "--kube-context", "lab", "--consul-http-addr", consulAddr,
	}}
	var err error
	if c.kubernetes, err = (&checkOptions{kubeconfig: kubeconfig}).connectKubernetes(); err != nil {
		t.Fatal(err)
	}
	account := map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": "default"}}
	c.put(t, "/api/v1/namespaces/consul/serviceaccounts", "default", account)
	return c
}

// startConsul starts a Consul server on loopback, and waits until it has a leader.
func startConsul(t *testing.T) (addr string, client *api.Client) {
	t.Helper()
	port := func() string { return strconv.Itoa(testprocess.FreePort(t)) }
	http := port()
	process := testprocess.Start(t, testprocess.Command{
		Name: "consul", Path: testprocess.Tool(t, testprocess.Consul, "consul"), Args: []string{
			"agent", "-dev", "-node", "test", "-bind", "127.0.0.1", "-http-port", http, "-server-port", port(),
			"-serf-lan-port", port(), "-serf-wan-port", port(), "-dns-port", "-1", "-grpc-port", "-1", "-grpc-tls-port", "-1",
		},
	})
	addr = "127.0.0.1:" + http
	client, err := api.NewClient(&api.Config{Address: addr})
	if err != nil {
		t.Fatal(err)
	}
	testprocess.Eventually(t, "Consul has a leader", testprocess.StartDeadline, func() error {
		leader, err := client.Status().Leader()
		if err == nil && leader == "" {
			err = errors.New("no leader")
		}
		return errors.Join(err, process.Alive())
	})
	return addr, client
}

// put creates an object, or replaces the one that has the name.
func (c *checkedCluster) put(t *testing.T, collection, name string, object any) {
	t.Helper()
	body, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	testprocess.Eventually(t, "write "+collection, testprocess.StartDeadline, func() error {
		err := c.kubernetes.Post().AbsPath(collection).SetHeader("Content-Type", "application/json").Body(body).Do(t.Context()).Error()
		if apierrors.IsAlreadyExists(err) {
			return c.kubernetes.Put().AbsPath(collection, name).SetHeader("Content-Type", "application/json").Body(body).Do(t.Context()).Error()
		}
		return err
	})
}

// deploy does what helm upgrade does.
func (c *checkedCluster) deploy(t *testing.T, annotation string) {
	t.Helper()
	d := labDeployment(annotation)
	d.APIVersion, d.Kind = "apps/v1", "Deployment"
	c.put(t, path.Dir(deploymentPath), d.Name, d)
}

// startPod does what the Deployment's controller does.
func (c *checkedCluster) startPod(t *testing.T, name, annotation string) {
	t.Helper()
	p := labPod(labDeployment(annotation), name)
	p.APIVersion, p.Kind = "v1", "Pod"
	c.put(t, podsPath, name, p)
}

// setReady does what the kubelet does.
func (c *checkedCluster) setReady(t *testing.T, name string, ready corev1.ConditionStatus) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"status": corev1.PodStatus{Conditions: []corev1.PodCondition{{
		Type: corev1.PodReady, Status: ready, Reason: "ContainersNotReady", Message: "containers with unready status: [ingress-gateway]",
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.kubernetes.Patch(types.MergePatchType).AbsPath(podsPath, name, "status").Body(patch).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
}

func (c *checkedCluster) deletePod(t *testing.T, name string) {
	t.Helper()
	now := strings.NewReader(`{"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}`)
	if err := c.kubernetes.Delete().AbsPath(podsPath, name).SetHeader("Content-Type", "application/json").Body(now).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
}

// register does what the chart's endpoints controller does; it drops an annotation that is not JSON.
func (c *checkedCluster) register(t *testing.T, pod, annotation string) {
	t.Helper()
	config := map[string]any{}
	_ = json.Unmarshal([]byte(annotation), &config)
	_, err := c.consul.Catalog().Register(&api.CatalogRegistration{
		Node: "node-1-virtual", Address: "10.0.0.1", NodeMeta: map[string]string{"synthetic-node": "true"},
		Service: &api.AgentService{
			Kind: api.ServiceKindIngressGateway, ID: pod, Service: "ingress-gateway", Address: "10.0.0.2", Port: 21000,
			Proxy: &api.AgentServiceConnectProxyConfig{Config: config},
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// TestCheckFollowsARollOut goes through an upgrade: each step leaves one difference fewer, and the first is the one
// that counts.
func TestCheckFollowsARollOut(t *testing.T) {
	c := newCheckedCluster(t, apiserver.Options{})
	annotation := labAnnotation(t)
	broken := "{" + annotation
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() {}, "Deployment consul/consul-consul-ingress-gateway: it does not exist; "},
		{func() {
			c.deploy(t, "{}")
			c.startPod(t, "old", "{}")
			c.setReady(t, "old", corev1.ConditionTrue)
			c.register(t, "old", "{}")
		}, "Deployment consul/consul-consul-ingress-gateway: the annotation consul.hashicorp.com/proxy-config-map has no envoy_bootstrap_json_tpl"},
		{func() { c.deploy(t, broken) }, "is not a JSON object"},
		{func() { c.deploy(t, annotation) }, "Pod old: the annotation consul.hashicorp.com/proxy-config-map has no envoy_bootstrap_json_tpl"},
		{func() {
			c.deletePod(t, "old")
			c.startPod(t, "new", annotation)
			c.setReady(t, "new", corev1.ConditionFalse)
		}, "Pod new: Consul has no instance"},
		{func() { c.register(t, "new", broken) }, "Pod new: its registration in Consul has no envoy_bootstrap_json_tpl"},
		{func() { c.register(t, "new", annotation) }, "Pod new: it is not ready: containers with unready status: [ingress-gateway]; "},
		{func() { c.setReady(t, "new", corev1.ConditionTrue) }, `all 1 pods of gateway "ingress-gateway" use Usher, by the annotation`},
	} {
		step.do()
		stdout, _, err := helmValues(t, "", c.flags...)
		if strings.Count(stdout, "\n") != 1 || !strings.Contains(stdout, step.want) {
			t.Errorf("it prints\n%swant one line with %q", stdout, step.want)
		}
		wantErr := differs
		if strings.HasPrefix(step.want, "all ") {
			wantErr = ""
		}
		if got := fmt.Sprint(err); err != nil && got != wantErr || err == nil && wantErr != "" {
			t.Errorf("%s: the error is %v", step.want, err)
		}
	}

	c.put(t, servicesPath, labService().Name, labService())
	c.deploy(t, "{}")
	c.startPod(t, "back", "{}")
	const headers = "its annotations make the load balancer send PROXY headers, and 1 of 2 pods do not use Usher, "
	if stdout, _, _ := helmValues(t, "", c.flags...); !strings.Contains(stdout, headers) {
		t.Errorf("it prints\n%swant %q", stdout, headers)
	}
}
