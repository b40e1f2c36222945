//go:build e2e

package charts

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestAdmissionFollowsTheCluster checks what changes the pods in clusters that have policies, and in those that do not.
func TestAdmissionFollowsTheCluster(t *testing.T) {
	const group = "admissionregistration.k8s.io/"
	for _, c := range []struct {
		served, asked string
		want          string // the kind, with the version of a policy; or what Helm says
	}{
		{"", "auto", "MutatingWebhookConfiguration v1"},
		{"v1alpha1", "auto", "MutatingWebhookConfiguration v1"},
		{"v1beta1", "auto", "MutatingAdmissionPolicy v1beta1"},
		{"v1beta1 v1", "auto", "MutatingAdmissionPolicy v1"},
		{"v1", "policy", "MutatingAdmissionPolicy v1"},
		{"v1", "webhook", "MutatingWebhookConfiguration v1"},
		{"v1", "none", ""},
		{"", "policy", "admission.type=policy: the cluster serves no MutatingAdmissionPolicy in v1 or v1beta1 of admissionregistration.k8s.io; " +
			"set admission.type to webhook, or to none and give the pods the flags yourself; " +
			"if Helm does not talk to the cluster (helm template), give it --api-versions admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy"},
	} {
		args := []string{
			"template", release, absolute(t, "usher"), "--namespace", namespaceOfRelease,
			"--set", "ingressGateways.enabled=true,dataplane.enabled=true,admission.type=" + c.asked,
		}
		for version := range strings.FieldsSeq(c.served) {
			args = append(args, "--api-versions", group+version+"/MutatingAdmissionPolicy")
		}
		end := helm(t, args...)
		if end.Code != 0 {
			if c.want == "" || !strings.Contains(end.Stderr, c.want) {
				t.Errorf("with %q, %s: Helm says %q, want %q", c.served, c.asked, end.Stderr, c.want)
			}
			continue
		}
		got := ""
		for _, o := range objects(t, end.Stdout) {
			if version, ok := strings.CutPrefix(o["apiVersion"].(string), group); ok && o.kind() != "MutatingAdmissionPolicyBinding" {
				got += o.kind() + " " + version
			}
		}
		if got != c.want {
			t.Errorf("with %q, %s: the chart has %q, want %q", c.served, c.asked, got, c.want)
		}
	}
}

// gatewayPod is a pod of the Consul chart's gateway, with the parts that admission looks at, and with a sidecar of
// another one before it.
func gatewayPod(t *testing.T) object {
	t.Helper()
	var pod object
	err := json.Unmarshal([]byte(`{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": {"name": "gateway", "namespace": "consul", "labels": {
			"component": "ingress-gateway", "release": "consul", "ingress-gateway-name": "consul-consul-ingress-gateway"}},
		"spec": {
			"serviceAccountName": "gateway", "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 10,
			"securityContext": {"runAsNonRoot": true, "runAsUser": 100, "seccompProfile": {"type": "RuntimeDefault"}},
			"volumes": [{"name": "tmp", "emptyDir": {}}],
			"containers": [
				{"name": "agent", "image": "agent", "args": ["-addresses=agent"]},
				{"name": "ingress-gateway", "image": "hashicorp/consul-dataplane", "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
					"args": ["-addresses=consul-consul-server.consul.svc", "-grpc-port=8502", "-tls-disabled"]}
			]}}`), (*map[string]any)(&pod))
	if err != nil {
		t.Fatal(err)
	}
	for _, container := range pod.at("spec", "containers").([]any) {
		container.(map[string]any)["securityContext"] = map[string]any{
			"allowPrivilegeEscalation": false, "capabilities": map[string]any{"drop": []any{"ALL"}},
		}
	}
	return pod
}

// gatewayContainer is the container of consul-dataplane.
func gatewayContainer(t *testing.T, pod object) map[string]any {
	t.Helper()
	for _, c := range pod.at("spec", "containers").([]any) {
		if c := c.(map[string]any); c["name"] == "ingress-gateway" {
			return c
		}
	}
	t.Fatalf("the pod has no container of a gateway: %v", pod)
	return nil
}

// admitted is what an API server makes of a new pod: its spec, or why it is refused.
type admitted struct {
	Spec    any
	Refused string
}

// admit asks an API server what it would make of a new pod.
func (c *cluster) admit(t *testing.T, pod object) admitted {
	t.Helper()
	namespace := pod.metadata()["namespace"].(string)
	code, text := c.do(t, http.MethodPost, collection("Pod", namespace)+"?dryRun=All", pod)
	if code != http.StatusCreated {
		return admitted{Refused: text}
	}
	var created object
	if err := json.Unmarshal([]byte(text), (*map[string]any)(&created)); err != nil {
		t.Fatal(err)
	}
	return admitted{Spec: created["spec"]}
}

// changedPods are pods that admission changes.
func changedPods(t *testing.T) map[string]object {
	t.Helper()
	first, other := gatewayPod(t), gatewayPod(t)
	slices.Reverse(first.at("spec", "containers").([]any))
	other.at("spec").(map[string]any)["terminationGracePeriodSeconds"] = 900.0
	return map[string]object{"a gateway": gatewayPod(t), "its container is the first": first, "it has more time": other}
}

// otherPods are pods that admission leaves alone.
func otherPods(t *testing.T) map[string]object {
	t.Helper()
	relabel := func(key string, value any) object {
		pod := gatewayPod(t)
		labels := pod.at("metadata", "labels").(map[string]any)
		labels[key] = value
		if value == nil {
			delete(labels, key)
		}
		return pod
	}
	elsewhere := gatewayPod(t)
	elsewhere.metadata()["namespace"] = "team"
	return map[string]object{
		"a sidecar": relabel("component", nil), "an API gateway": relabel("component", "api-gateway"), "another namespace": elsewhere,
		"another gateway": relabel("ingress-gateway-name", "consul-consul-canary-gateway"), "no gateway": relabel("ingress-gateway-name", nil),
	}
}

// unknownPods have the labels of a gateway, and are not as the Consul chart makes them.
func unknownPods(t *testing.T) map[string]object {
	t.Helper()
	renamed, bare := gatewayPod(t), gatewayPod(t)
	gatewayContainer(t, renamed)["name"] = "gateway"
	delete(gatewayContainer(t, bare), "args")
	return map[string]object{"another container": renamed, "no arguments": bare}
}

// TestPolicyAndWebhookMakeTheSameChange installs the chart with a policy and then with a webhook, and compares what a
// real API server makes of the same pods. Neither touches other pods, and a pod that cannot be changed is refused.
func TestPolicyAndWebhookMakeTheSameChange(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	c.create(t, serviceAccount("gateway"))
	account := serviceAccount("gateway")
	account.metadata()["namespace"] = "team"
	c.create(t, account)
	before := map[string]admitted{}
	for name, pod := range otherPods(t) {
		before[name] = c.admit(t, pod)
	}
	for _, values := range []struct{ set, wantArg string }{
		{"dataplane.enabled=true,admission.shutdownGracePeriodSeconds=60", "-ca-certs=/etc/usher-ca/ca.crt"},
		{"admission.shutdownGracePeriodSeconds=60", "-shutdown-grace-period-seconds=60"},
		{"dataplane.enabled=true,dataplane.caFileInPod=/ca.pem", "-ca-certs=/ca.pem"},
	} {
		install := func(set string) {
			c.helm(t, "upgrade", "--install", release, absolute(t, "usher"), "--set", "ingressGateways.enabled=true,xds.tls.dnsNames={localhost}"+set)
		}
		install(",admission.type=policy," + values.set)
		c.waitChanged(t, true)
		policy := c.admitAll(t, before)
		if args := fmt.Sprint(policy["a gateway"].Spec); !strings.Contains(args, values.wantArg) {
			t.Errorf("%s: the pod has no %s: %s", values.set, values.wantArg, args)
		}

		install("")
		c.waitChanged(t, false)
		install(",admission.type=webhook," + values.set)
		usher := c.startWebhook(t)
		c.waitChanged(t, true)
		webhook := c.admitAll(t, before)
		for name := range policy {
			if (policy[name].Refused == "") != (webhook[name].Refused == "") {
				t.Errorf("%s: %s: the policy answers %q, and the webhook %q", values.set, name, policy[name].Refused, webhook[name].Refused)
			}
			if diff := cmp.Diff(policy[name].Spec, webhook[name].Spec); diff != "" {
				t.Errorf("%s: %s: the webhook makes another pod than the policy (-policy +webhook): %s", values.set, name, diff)
			}
		}
		usher.Kill()
		c.wantFailClosed(t)
		install("")
		c.waitChanged(t, false)
	}
}

// admitAll returns what the API server makes of all pods. Pods of others have to be as they were before.
func (c *cluster) admitAll(t *testing.T, before map[string]admitted) map[string]admitted {
	t.Helper()
	all := map[string]admitted{}
	for name, pod := range changedPods(t) {
		first := c.admit(t, pod)
		if first.Refused != "" {
			t.Fatalf("%s: %s", name, first.Refused)
		}
		all[name] = first
		pod["spec"] = first.Spec
		if diff := cmp.Diff(first, c.admit(t, pod)); diff != "" {
			t.Errorf("%s: a pod that has been changed is changed again: %s", name, diff)
		}
		container := gatewayContainer(t, pod)
		container["args"] = append(container["args"].([]any), "-addresses=another")
		all[name+", changed after that"] = c.admit(t, pod)
	}
	for name, pod := range otherPods(t) {
		if diff := cmp.Diff(before[name], c.admit(t, pod)); diff != "" {
			t.Errorf("%s is changed, too: %s", name, diff)
		}
	}
	for name, pod := range unknownPods(t) {
		if all[name] = c.admit(t, pod); all[name].Refused == "" {
			t.Errorf("%s: the pod is not refused: %v", name, all[name].Spec)
		}
	}
	return all
}

// waitChanged waits until gateways are changed, or are not changed any more.
func (c *cluster) waitChanged(t *testing.T, want bool) {
	t.Helper()
	pod := gatewayPod(t)
	testprocess.Eventually(t, fmt.Sprint("gateways are changed: ", want), testprocess.StartDeadline, func() error {
		got := c.admit(t, pod)
		if got.Refused != "" {
			return errors.New(got.Refused)
		}
		args := gatewayContainer(t, object{"spec": got.Spec})["args"].([]any)
		if changed := len(args) > len(gatewayContainer(t, pod)["args"].([]any)); changed != want {
			return fmt.Errorf("the arguments are %v", args)
		}
		return nil
	})
}

// startWebhook starts Usher as installed. The API server of the test runs on the same host, and calls it there.
func (c *cluster) startWebhook(t *testing.T) *testprocess.Process {
	t.Helper()
	port := testprocess.FreePort(t)
	addresses := strings.NewReplacer("=:18000", "=127.0.0.1:0", "=:18001", "=127.0.0.1:0", "=:18002", "=127.0.0.1:0", "=:18003", fmt.Sprint("=127.0.0.1:", port))
	usher := c.startPod(t, c.get(t, "Deployment", "usher"), addresses)
	path := collection("MutatingWebhookConfiguration", "") + "/consul-usher-gateway-pods"
	configuration := c.want(t, http.StatusOK, http.MethodGet, path, nil)
	client := configuration["webhooks"].([]any)[0].(map[string]any)["clientConfig"].(map[string]any)
	client["url"] = fmt.Sprintf("https://localhost:%d%s", port, client["service"].(map[string]any)["path"])
	delete(client, "service")
	c.want(t, http.StatusOK, http.MethodPut, path, configuration)
	return usher
}

// wantFailClosed checks that no gateway is created while the webhook is away, and that all other pods are.
func (c *cluster) wantFailClosed(t *testing.T) {
	t.Helper()
	if got := c.admit(t, gatewayPod(t)); !strings.Contains(got.Refused, "failed calling webhook") {
		t.Errorf("the pod of a gateway without the webhook: %v, want it refused", got)
	}
	for name, pod := range otherPods(t) {
		if got := c.admit(t, pod); got.Refused != "" {
			t.Errorf("%s cannot be created while the webhook is away: %s", name, got.Refused)
		}
	}
}
