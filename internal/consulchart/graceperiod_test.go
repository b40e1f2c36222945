package consulchart

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// gracePeriods returns terminationGracePeriodSeconds of each gateway as the chart does: its own or that of the
// defaults.
func gracePeriods(t *testing.T, files ...File) map[string]int {
	t.Helper()
	type pods struct {
		Name   string
		Period *int `json:"terminationGracePeriodSeconds"`
	}
	var values struct {
		IngressGateways struct {
			Defaults pods
			Gateways []pods
		}
	}
	merged, err := yaml.Marshal(mergedByHelm(t, files...))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(merged, &values); err != nil {
		t.Fatal(err)
	}
	byDefault := 10
	if p := values.IngressGateways.Defaults.Period; p != nil {
		byDefault = *p
	}
	periods := map[string]int{}
	for _, g := range values.IngressGateways.Gateways {
		periods[g.Name] = byDefault
		if g.Period != nil {
			periods[g.Name] = *g.Period
		}
	}
	return periods
}

// TestGatewaysGetTheTimeToDrain wants that no gateway with the bootstrap has less time than it needs, and that longer
// times and other gateways stay as they are.
func TestGatewaysGetTheTimeToDrain(t *testing.T) {
	const two = "  gateways: [{name: one}, {name: two, terminationGracePeriodSeconds: 5, replicas: 3}]\n"
	for _, tc := range []struct {
		name, values string
		gateways     []string
		need         time.Duration
		want         map[string]int
	}{
		{"the chart's default", "  gateways: [{name: one}]\n", nil, 10 * time.Second, map[string]int{"one": 10}},
		{"a long drain", "  gateways: [{name: one}]\n", nil, 90 * time.Second, map[string]int{"one": 90}},
		{"a part of a second", "  gateways: [{name: one}]\n", nil, 10500 * time.Millisecond, map[string]int{"one": 11}},
		{"a longer default", "  defaults: {terminationGracePeriodSeconds: 60}\n  gateways: [{name: one}]\n", nil, 10 * time.Second, map[string]int{"one": 60}},
		{"a shorter default", "  defaults: {terminationGracePeriodSeconds: 3}\n  gateways: [{name: one}]\n", nil, 10 * time.Second, map[string]int{"one": 10}},
		{"a gateway's own", two, nil, 10 * time.Second, map[string]int{"one": 10, "two": 10}},
		{"a long drain and a gateway's own", two, nil, 90 * time.Second, map[string]int{"one": 90, "two": 90}},
		{"one gateway", two, []string{"one"}, 90 * time.Second, map[string]int{"one": 90, "two": 5}},
		{"the other gateway", two, []string{"two"}, 90 * time.Second, map[string]int{"one": 10, "two": 90}},
		{"no drain", two, nil, 0, map[string]int{"one": 10, "two": 5}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := File{"values.yaml", []byte("ingressGateways:\n" + tc.values)}
			o, err := parse(t, file).Override(OverrideOptions{Template: labTemplate, Gateways: tc.gateways, GracePeriod: tc.need})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, gracePeriods(t, file, File{"override.yaml", []byte(o.Text)})); diff != "" {
				t.Errorf("terminationGracePeriodSeconds differs (-want +got):\n%s\nin the override\n%s", diff, o.Text)
			}
			if want := max(1, len(tc.gateways)); len(o.Gateways) < want {
				t.Errorf("%d gateways get the bootstrap, want at least %d", len(o.Gateways), want)
			}
		})
	}
}
