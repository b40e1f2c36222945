//go:build e2e

package consulchart

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/usherproxy/usher/internal/testing/golden"
)

// smallChart are the files of a chart that does with annotations what the Consul chart does.
var smallChart = map[string]string{
	"Chart.yaml":  "apiVersion: v2\nname: consul\nversion: 1.0.0\n",
	"values.yaml": "ingressGateways: {defaults: {annotations: null}, gateways: [{name: ingress-gateway}]}\n",
	deploymentTemplate: `{{- $root := . }}
{{- $defaults := .Values.ingressGateways.defaults }}
{{- range .Values.ingressGateways.gateways }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
spec:
  template:
    metadata:
      annotations:
        "example.com/chart": "small"
        {{- with $defaults.annotations }}
        {{- tpl . $root | nindent 8 }}
        {{- end }}
        {{- with .annotations }}
        {{- tpl . $root | nindent 8 }}
        {{- end }}
---
{{- end }}
`,
	"templates/_labels.tpl": `{{ define "labels" }}example.com/included: "yes"{{ end }}`,
}

// TestRealHelmGivesThePodsTheBootstrap needs no chart of others.
func TestRealHelmGivesThePodsTheBootstrap(t *testing.T) {
	chart := t.TempDir()
	for name, text := range smallChart {
		path := filepath.Join(chart, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range golden.Cases(t, "testdata") {
		t.Run(name, func(t *testing.T) {
			c, files := readCase(t, golden.Input(t, "testdata", name))
			helmGivesThePodsTheBootstrap(t, chart, c, slices.Clip(files), func(gateway string) string { return gateway })
		})
	}
}
