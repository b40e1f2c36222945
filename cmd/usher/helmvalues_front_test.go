package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorded is a file with answers of an API server, by path, for a gateway with a pod of Consul's own and one that has
// Usher's flags: from a policy, or from a webhook.
func recorded(name string) string { return filepath.Join("testdata", "front", name+".json") }

// recordedPaths are the paths that a check asks, and that the API server of the tests serves.
var recordedPaths = []string{
	deploymentPath, podsPath, usherPath, webhooksPath, policiesPath, bindingsPath,
}

const (
	usherPath    = "/apis/apps/v1/namespaces/consul/deployments/usher"
	policiesPath = "/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicies"
	bindingsPath = "/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicybindings"
)

// useRecorded lets the API server answer as one did with Usher's chart, and Consul and Usher have the pod "new".
func (c *checked) useRecorded(t *testing.T, name string) {
	t.Helper()
	text, err := os.ReadFile(recorded(name))
	if err != nil {
		t.Fatal(err)
	}
	var answers map[string]json.RawMessage
	if err := json.Unmarshal(text, &answers); err != nil {
		t.Fatal(err)
	}
	for path, answer := range answers {
		c.answers[path] = string(answer)
	}
	c.answer(t, catalogPath, labRegistration(t, "new", "{}"))
	c.answer(t, envoysPath, []connectedEnvoy{{Gateway: "ingress-gateway", ServiceID: "new"}})
}

// replace changes an answer.
func (c *checked) replace(t *testing.T, path, before, after string) {
	t.Helper()
	if !strings.Contains(c.answers[path], before) {
		t.Fatalf("the answer of %s has no %s:\n%s", path, before, c.answers[path])
	}
	c.answers[path] = strings.ReplaceAll(c.answers[path], before, after)
}

// TestCheckReadsPoliciesAndWebhooks has answers of a real API server. TestCheckFollowsPodsThatGetFlags keeps them true.
func TestCheckReadsPoliciesAndWebhooks(t *testing.T) {
	const (
		allUsher   = `all 1 pods of gateway "ingress-gateway" use Usher, by flags for consul-dataplane`
		deployment = `gateway "ingress-gateway": Deployment consul/consul-consul-ingress-gateway: `
		restart    = "kubectl --namespace consul rollout restart deployment/consul-consul-ingress-gateway"
		policyName = "MutatingAdmissionPolicy consul-usher-gateway-pods"
		webhook    = "MutatingWebhookConfiguration consul-usher-gateway-pods"
		unread     = "notice: which flags new pods of the gateways get by admission was not checked: "
	)
	for _, tc := range []struct {
		name, recorded   string
		change           func(*checked)
		stdout, noticeOf string
	}{
		{
			"in the middle of a roll-out", "policy", func(*checked) {},
			deployment + "its pods are not all on one way to Usher (1 with flags for consul-dataplane, 1 with neither); " +
				"wait until the roll-out is over: kubectl rollout status\n" +
				`gateway "ingress-gateway": Pod old: it was created before the ` + policyName + ` gave pods of this gateway Usher's flags; ` + restart, "",
		},
		{"a webhook", "webhook", func(*checked) {}, allUsher, ""},
		{
			"a webhook without the CA of its certificate", "webhook", func(c *checked) { c.replace(t, webhooksPath, `"caBundle": "AAAA",`, "") },
			deployment + "the " + webhook + " does not give its pods Usher's flags: it has no caBundle, so Kubernetes creates no pods of the gateway; " +
				"with xds.tls.mode=cert-manager, look at the log of cert-manager's cainjector", "",
		},
		{
			"other flags than those of the webhook", "webhook", func(c *checked) { c.replace(t, usherPath, "-ca-certs=", "-log-level=debug") },
			`gateway "ingress-gateway": Pod new: it has other values of -log-level than new pods get; ` + restart, "",
		},
		{
			"a policy without its binding", "policy", func(c *checked) { c.replace(t, bindingsPath, `"policyName": "`, `"policyName": "other-`) },
			deployment + "the " + policyName + " does not give its pods Usher's flags: it has no MutatingAdmissionPolicyBinding; run helm upgrade of Usher's chart", "",
		},
		{
			"a policy for another gateway", "policy", func(c *checked) {
				c.replace(t, policiesPath, `"consul-consul-ingress-gateway"`, `"consul-consul-canary"`)
				c.answer(t, podsPath, map[string]any{})
			},
			deployment + "its pod template has no annotation consul.hashicorp.com/proxy-config-map, and its pods get no flags for consul-dataplane: the " +
				policyName + " is not for this gateway; run helm upgrade with the output of usher helm-values, or add the gateway to admission.gateways of Usher's chart", "",
		},
		{
			"a policy for another namespace", "policy", func(c *checked) {
				c.replace(t, policiesPath, `"kubernetes.io/metadata.name": "consul"`, `"kubernetes.io/metadata.name": "team"`)
			},
			deployment + "its pods have Usher's flags, and the next ones will not: the " + policyName + " is not for this gateway; " +
				"add the gateway to admission.gateways of Usher's chart, or, if the gateway goes back to Consul's own xDS: " + restart, "",
		},
		{
			"no pods can be created", "policy", func(c *checked) {
				c.replace(t, deploymentPath, `"status": {}`, `"status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "failed calling webhook"}]}`)
				c.answer(t, podsPath, map[string]any{})
			},
			deployment + "Kubernetes cannot create its pods: failed calling webhook; correct that, and Kubernetes tries again", "",
		},
		{
			"no right to read webhooks", "webhook", func(c *checked) { c.forbidden[webhooksPath] = true }, allUsher, unread + "webhooks: ",
		},
		{
			"no right to read Usher", "policy", func(c *checked) {
				c.forbidden[usherPath] = true
				c.replace(t, podsPath, `"name": "old"`, `"name": "old", "deletionTimestamp": "2026-01-01T00:00:00Z"`)
			}, allUsher, "notice: whether Usher has a port for consul-dataplanes was not checked: deployment consul/usher: ",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChecked(t)
			c.useRecorded(t, tc.recorded)
			tc.change(c)
			stdout, stderr, err := helmValues(t, "", c.flags(t)...)
			if stdout != tc.stdout+"\n" {
				t.Errorf("stdout is\n%swant\n%s", stdout, tc.stdout)
			}
			if !strings.HasPrefix(stderr, tc.noticeOf) || (stderr == "") != (tc.noticeOf == "") {
				t.Errorf("stderr is %q, want %q", stderr, tc.noticeOf)
			}
			if failed := err != nil; failed != (tc.stdout != allUsher) || failed && err.Error() != differs {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// TestCheckOfAChartThatIsTooOldForTheAnnotation checks the flags, which every chart can have.
func TestCheckOfAChartThatIsTooOldForTheAnnotation(t *testing.T) {
	c := newChecked(t)
	c.useRecorded(t, "webhook")
	stdout, _, err := helmValues(t, "", append(c.flags(t), "--chart-version", "1.1.0")...)
	if want := "all 1 pods of gateway \"ingress-gateway\" use Usher, by flags for consul-dataplane\n"; stdout != want || err != nil {
		t.Errorf("it prints %q, %v, want %q", stdout, err, want)
	}
	c = newChecked(t)
	c.useUsher(t)
	stdout, _, err = helmValues(t, "", append(c.flags(t), "--chart-version", "1.1.0")...)
	want := `usher helm-values has no annotation for it: --chart-version 1.1.0: consul-k8s 1.1.0 does not read the annotation proxy-config-map`
	if !strings.Contains(stdout, want) || err == nil {
		t.Errorf("it prints %q, %v, want %q", stdout, err, want)
	}
}
