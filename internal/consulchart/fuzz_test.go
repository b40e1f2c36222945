package consulchart

import (
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/usherproxy/usher/internal/testing/golden"
)

// FuzzValues reads values of all kinds. What has an override has one that is YAML and that results in the same
// override again, because a release has it in its values after the upgrade.
func FuzzValues(f *testing.F) {
	for _, tc := range badValues {
		f.Add([]byte(tc.values), "")
	}
	for _, name := range golden.Cases(f, "testdata") {
		f.Add(golden.Input(f, "testdata", name), "ingress-gateway")
	}
	f.Add([]byte(annotated(Annotation+": '{\"usher\": {}}'")), "")
	f.Add([]byte("ingressGateways: {gateways: [{name: a, annotations: \"x: |\\n  y\"}, &b {name: b}]}"), "b")
	f.Fuzz(func(t *testing.T, text []byte, gateway string) {
		v, err := Parse(File{"v.yaml", text})
		if err != nil {
			return
		}
		if _, err := v.Notices(""); err != nil {
			return
		}
		options := OverrideOptions{Template: nasty}
		if gateway != "" {
			options.Gateways = []string{gateway}
		}
		o, err := v.Override(options)
		if err != nil {
			return
		}
		if err := yaml.Unmarshal([]byte(o.Text), new(any)); err != nil {
			t.Fatalf("%v in\n%s", err, o.Text)
		}
		again, err := Parse(File{"v.yaml", text}, File{"override.yaml", []byte(o.Text)})
		if err != nil {
			t.Fatalf("%v in\n%s", err, o.Text)
		}
		second, err := again.Override(options)
		if err != nil {
			t.Fatalf("%v in\n%s", err, o.Text)
		}
		for i, g := range o.Gateways {
			if second.Gateways[i] != g {
				t.Errorf("the second override gives %v, the first %v", second.Gateways[i], g)
			}
		}
	})
}
