//go:build e2e || kubernetes

package consulchart

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

// deploymentTemplate is the template of the Consul chart that makes the Deployments of ingress gateways.
const deploymentTemplate = "templates/ingress-gateways-deployment.yaml"

// helmBinary returns the Helm of make tools.
func helmBinary(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("../../.tools/helm-*/helm")
	if err != nil || len(found) == 0 {
		t.Fatalf("no .tools/helm-*/helm; run make tools: %v", err)
	}
	return found[len(found)-1]
}

// helmGivesThePodsTheBootstrap renders a chart with real Helm, without and with the override of a case, and reads the
// Deployments as the endpoints controller and consul-dataplane do. deployment returns the name of a gateway's.
func helmGivesThePodsTheBootstrap(t *testing.T, chart string, c chartCase, files []File, deployment func(string) string) {
	t.Helper()
	o, err := parse(t, files...).Override(OverrideOptions{Template: nasty, Gateways: c.Gateways})
	if err != nil {
		t.Fatal(err)
	}
	before := rendered(t, chart, files)
	after := rendered(t, chart, append(files, File{Name: "override.yaml", Text: []byte(o.Text)}))
	for _, g := range o.Gateways {
		name := deployment(g.Gateway)
		if got := after[name][Annotation]; got != g.Config {
			t.Errorf("%s: the pod's annotation is\n%s\nwant\n%s", name, got, g.Config)
		}
		if got, want := startedWith(t, after[name][Annotation]), execute(t, nasty); got != want {
			t.Errorf("%s: Envoy's bootstrap is\n%s\nwant\n%s", name, got, want)
		}
		keeps(t, before[name], after[name])
	}
}

// rendered returns the annotations of the pods of each Deployment of ingress gateways.
func rendered(t *testing.T, chart string, files []File) map[string]map[string]string {
	t.Helper()
	args := []string{
		"template", "consul", chart, "--namespace", "consul", "--kube-version", "1.34.0",
		"--show-only", deploymentTemplate,
	}
	dir := t.TempDir()
	for _, f := range files {
		path := filepath.Join(dir, f.Name)
		if err := os.WriteFile(path, f.Text, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-f", path)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), helmBinary(t), args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("helm %v: %v\n%s", args, err, stderr.String())
	}
	pods := map[string]map[string]string{}
	for document := range bytes.SplitSeq(stdout.Bytes(), []byte("\n---")) {
		var d appsv1.Deployment
		if err := yaml.UnmarshalStrict(slices.Concat(document, []byte("\n")), &d); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if d.Name != "" {
			pods[d.Name] = d.Spec.Template.Annotations
		}
	}
	return pods
}
