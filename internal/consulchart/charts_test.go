//go:build kubernetes

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

	"github.com/usherproxy/usher/internal/testing/golden"
)

// chartsOf returns the directories of the real charts in $CONSUL_K8S.
func chartsOf(t *testing.T) []string {
	t.Helper()
	dir := os.Getenv("CONSUL_K8S")
	if dir == "" {
		t.Skip("CONSUL_K8S names no directory with charts")
	}
	charts, err := filepath.Glob(filepath.Join(dir, "charts/*/consul"))
	if err != nil || len(charts) == 0 {
		t.Fatalf("no charts/*/consul in %s: %v", dir, err)
	}
	return charts
}

// helmBinary returns the Helm of make tools.
func helmBinary(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("../../.tools/helm-*/helm")
	if err != nil || len(found) == 0 {
		t.Fatalf("no .tools/helm-*/helm; run make tools: %v", err)
	}
	return found[len(found)-1]
}

// TestTheRealChartsGiveThePodsTheBootstrap renders each chart with real Helm, and reads the Deployments as the endpoints
// controller and consul-dataplane do.
func TestTheRealChartsGiveThePodsTheBootstrap(t *testing.T) {
	refused := []string{"notices", "umbrella"} // the charts make no gateways of these values
	for _, chart := range chartsOf(t) {
		for _, name := range golden.Cases(t, "testdata") {
			if slices.Contains(refused, name) {
				continue
			}
			t.Run(filepath.Base(filepath.Dir(chart))+"/"+name, func(t *testing.T) {
				c, files := readCase(t, golden.Input(t, "testdata", name))
				values := parse(t, files...)
				o, err := values.Override(OverrideOptions{Template: nasty, Gateways: c.Gateways})
				if err != nil {
					t.Fatal(err)
				}
				before := rendered(t, chart, files)
				after := rendered(t, chart, append(files, File{Name: "override.yaml", Text: []byte(o.Text)}))
				for _, g := range o.Gateways {
					deployment := values.Prefix("consul") + "-" + g.Gateway
					if got := after[deployment][Annotation]; got != g.Config {
						t.Errorf("%s: the pod's annotation is\n%s\nwant\n%s", deployment, got, g.Config)
					}
					if got, want := startedWith(t, after[deployment][Annotation]), execute(t, nasty); got != want {
						t.Errorf("%s: Envoy's bootstrap is\n%s\nwant\n%s", deployment, got, want)
					}
					keeps(t, before[deployment], after[deployment])
				}
			})
		}
	}
}

// rendered returns the annotations of the pods of each Deployment of ingress gateways.
func rendered(t *testing.T, chart string, files []File) map[string]map[string]string {
	t.Helper()
	args := []string{
		"template", "consul", chart, "--namespace", "consul", "--kube-version", "1.34.0",
		"--show-only", "templates/ingress-gateways-deployment.yaml",
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
	for _, document := range bytes.Split(stdout.Bytes(), []byte("\n---")) {
		var d appsv1.Deployment
		if err := yaml.UnmarshalStrict(document, &d); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if d.Name != "" {
			pods[d.Name] = d.Spec.Template.Annotations
		}
	}
	return pods
}
