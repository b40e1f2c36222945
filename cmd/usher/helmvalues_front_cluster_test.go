//go:build e2e

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/consulchart"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/golden"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// policies are the flags of an API server that has MutatingAdmissionPolicies.
var policies = []string{
	"--feature-gates=MutatingAdmissionPolicy=true", "--runtime-config=admissionregistration.k8s.io/v1beta1=true",
}

// helm runs Helm with a release of Usher's chart.
func (c *checkedCluster) helm(t *testing.T, release, set string) {
	t.Helper()
	file, err := filepath.Abs(chartValues + "lab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	chart, err := filepath.Abs("../../charts/usher")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"upgrade", "--install", release, chart, "--namespace", "consul", "--kubeconfig", c.kubeconfig, "-f", file, "--set", set}
	end := testprocess.Run(t, testprocess.Command{Name: "helm", Path: testprocess.Tool(t, testprocess.Helm, "helm"), Args: args}, "")
	if end.Code != 0 {
		t.Fatalf("helm %q: %s", args, end.Stderr)
	}
}

// waitFlags waits until the API server gives new pods this address, or none of Usher's if it is empty: it follows a
// policy a moment later.
func (c *checkedCluster) waitFlags(t *testing.T, address string) {
	t.Helper()
	body, err := json.Marshal(labPod(labDeployment(""), "would-be"))
	if err != nil {
		t.Fatal(err)
	}
	testprocess.Eventually(t, "new pods get the address "+address, testprocess.StartDeadline, func() error {
		text, err := c.kubernetes.Post().AbsPath(podsPath).Param("dryRun", "All").
			SetHeader("Content-Type", "application/json").Body(body).Do(t.Context()).Raw()
		if err != nil {
			return err
		}
		var made corev1.Pod
		if err := json.Unmarshal(text, &made); err != nil {
			return testprocess.Permanent(err)
		}
		args := made.Spec.Containers[0].Args
		if has := len(args) > len(chartArgs); has != (address != "") || has && !slices.Contains(args, "-addresses="+address) {
			return fmt.Errorf("the arguments are %q", args)
		}
		return nil
	})
}

// startReady starts a pod that becomes ready and is registered.
func (c *checkedCluster) startReady(t *testing.T, name string) {
	t.Helper()
	c.startPod(t, name, "")
	c.setReady(t, name, corev1.ConditionTrue)
	c.register(t, name, "{}")
}

// TestCheckFollowsPodsThatGetFlags goes there and back with Usher's chart. A real API server runs its policy.
func TestCheckFollowsPodsThatGetFlags(t *testing.T) {
	c := newCheckedCluster(t, apiserver.Options{Flags: policies})
	const (
		neither   = "its pod template has no annotation " + consulchart.Annotation
		enabled   = "dataplane.enabled=true"
		policy    = enabled + ",admission.type=policy"
		canary    = "gateways[0].name=ingress-gateway,gateways[1].name=canary,admission.gateways={canary}," + policy
		old       = "Pod old: it was created before the MutatingAdmissionPolicy consul-usher-gateway-pods gave pods of this gateway Usher's flags; "
		rollOut   = "kubectl --namespace consul rollout restart deployment/consul-consul-ingress-gateway"
		allUsher  = `all 1 pods of gateway "ingress-gateway" use Usher, by flags for consul-dataplane`
		policyOf  = "the MutatingAdmissionPolicy consul-usher-gateway-pods "
		policies  = "/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolic"
		goingBack = "its pods have Usher's flags, and the next ones will not: "
	)
	for _, step := range []struct {
		do   func()
		want []string
	}{
		{func() {
			c.deploy(t, "")
			c.startReady(t, "old")
		}, []string{neither + "; run helm upgrade"}},
		{func() { c.helm(t, "usher", "admission.type=auto") }, []string{neither + "; run helm upgrade"}},
		{func() { c.helm(t, "usher", enabled+",admission.type=none") }, []string{neither + ", and its pods get no flags for consul-dataplane: no MutatingAdmissionPolicy and no webhook"}},
		{func() { c.helm(t, "usher", canary) }, []string{neither + ", and its pods get no flags for consul-dataplane: " + policyOf + "is not for this gateway"}},
		{func() { c.helm(t, "usher", policy) }, []string{old + rollOut}},
		{func() {
			c.waitFlags(t, "usher.consul.svc")
			c.startReady(t, "new")
			c.wantRecorded(t, "policy")
		}, []string{"(1 with flags for consul-dataplane, 1 with neither)", old}},
		{func() { c.deletePod(t, "old") }, []string{allUsher}},
		{func() { c.deploy(t, labAnnotation(t)) }, []string{"and one way back would leave the other"}},
		{func() { c.deploy(t, ""); c.remove(t, policies+"ybindings/consul-usher-gateway-pods") }, []string{policyOf + "does not give its pods Usher's flags: it has no MutatingAdmissionPolicyBinding"}},
		{func() { c.helm(t, "usher", canary) }, []string{goingBack + policyOf + "is not for this gateway"}},
		{func() { c.helm(t, "other-usher", policy) }, []string{"the MutatingAdmissionPolicy consul-other-usher-gateway-pods connects its pods to other-usher.consul.svc"}},
		{func() { c.helm(t, "usher", policy) }, []string{"both change its pods", "connects its pods to other-usher.consul.svc"}},
		{func() { c.helm(t, "other-usher", "admission.type=none") }, []string{allUsher}},
		{func() { c.helm(t, "usher", enabled+",admission.type=webhook"); c.wantRecorded(t, "webhook") }, []string{allUsher}},
		{func() { c.helm(t, "usher", enabled+",admission.type=none") }, []string{goingBack + "no MutatingAdmissionPolicy"}},
		{func() { c.helm(t, "usher", "admission.type=none") }, []string{"nothing listens there: Usher's chart is installed without dataplane.enabled"}},
		{func() {
			c.waitFlags(t, "")
			c.deletePod(t, "new")
			c.startReady(t, "back")
		}, []string{neither}},
	} {
		step.do()
		stdout, _, err := helmValues(t, "", c.flags...)
		lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
		if !slices.EqualFunc(lines, step.want, strings.Contains) {
			t.Errorf("it prints\n%swant lines with\n%s", stdout, strings.Join(step.want, "\n"))
		}
		if failed, want := err != nil, step.want[0] != allUsher; failed != want {
			t.Errorf("%s: the error is %v", step.want, err)
		}
	}
}

// remove deletes an object.
func (c *checkedCluster) remove(t *testing.T, path string) {
	t.Helper()
	if err := c.kubernetes.Delete().AbsPath(path).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
}

// wantRecorded wants that the answers in testdata, of which other tests take theirs, are those of the API server.
func (c *checkedCluster) wantRecorded(t *testing.T, name string) {
	t.Helper()
	answers := map[string]any{}
	for _, path := range recordedPaths {
		text, err := c.kubernetes.Get().AbsPath(path).Do(t.Context()).Raw()
		if err != nil {
			t.Fatal(err)
		}
		var answer any
		if err := json.Unmarshal(text, &answer); err != nil {
			t.Fatal(err)
		}
		answers[path] = lasting(answer)
	}
	got, err := json.MarshalIndent(answers, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	file := recorded(name)
	if golden.Updating() {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, append(got, '\n'), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(testprocess.ReadFile(t, file), string(got)+"\n"); diff != "" {
		t.Errorf("%s differs from what the API server has (write it with -update): %s", file, diff)
	}
}

// lasting removes from an object what each API server and each run of Helm makes again.
func lasting(object any) any {
	switch object := object.(type) {
	case map[string]any:
		for key, value := range object {
			switch {
			case slices.Contains([]string{"uid", "resourceVersion", "creationTimestamp", "managedFields", "lastTransitionTime"}, key):
				delete(object, key)
			case strings.HasPrefix(key, "checksum/"), key == "caBundle":
				object[key] = "AAAA"
			default:
				object[key] = lasting(value)
			}
		}
	case []any:
		for i := range object {
			object[i] = lasting(object[i])
		}
	}
	return object
}
