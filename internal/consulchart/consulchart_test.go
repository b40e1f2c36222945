package consulchart

import (
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/testing/golden"
)

// labTemplate stands for the bootstrap's template in the golden files.
const labTemplate = `{"node": {"id": "{{ .ProxyID }}"}}`

// chartCase is a case of testdata: values and flags.
type chartCase struct {
	Files, Gateways []string
	Chart           string
}

func readCase(t *testing.T, in []byte) (chartCase, []File) {
	t.Helper()
	var c chartCase
	if err := yaml.Unmarshal(in, &c); err != nil {
		t.Fatal(err)
	}
	var files []File
	for _, name := range c.Files {
		files = append(files, readFile(t, name))
	}
	return c, files
}

func readFile(t *testing.T, name string) File {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/values", name))
	if err != nil {
		t.Fatal(err)
	}
	return File{name, text}
}

func parse(t *testing.T, files ...File) *Values {
	t.Helper()
	v, err := Parse(files...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// noticesOf returns the notices as lines.
func noticesOf(t *testing.T, v *Values, chart string) []string {
	t.Helper()
	problems, err := v.Notices(chart)
	if err != nil {
		t.Fatal(err)
	}
	lines := []string{}
	for _, p := range problems {
		lines = append(lines, p.String())
	}
	return lines
}

func TestTheOverrideAndTheNoticesOfValues(t *testing.T) {
	golden.Run(t, "testdata", func(t *testing.T, in []byte) map[string]any {
		c, files := readCase(t, in)
		v := parse(t, files...)
		o, err := v.Override(OverrideOptions{Template: labTemplate, Gateways: c.Gateways})
		if err != nil {
			t.Fatal(err)
		}
		gateways, err := v.gateways()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, g := range gateways {
			names = append(names, g.name)
		}
		return map[string]any{
			"override": o.Text,
			"notices":  noticesOf(t, v, c.Chart),
			"facts": map[string]any{
				"prefix": v.Prefix("consul"), "ca": v.CAPathInPod(), "tokens": v.SendsTokens(), "gateways": names, "configs": o.Gateways,
			},
		}
	})
}

func TestStatisticsAreDeferredIfTheEnvoyIsKnownToHaveIt(t *testing.T) {
	for name, test := range map[string]struct {
		values, chart string
		want          bool
	}{
		"a new chart":                   {"{}", "1.9.11", true},
		"the first one":                 {"{}", "1.3.1", true},
		"an old chart":                  {"{}", "1.2.4", false},
		"a chart that is not known":     {"{}", "", false},
		"the image of the chart":        {"global: {imageK8S: hashicorp/consul-k8s-control-plane:1.9.11}", "", true},
		"an old dataplane":              {"global: {imageConsulDataplane: hashicorp/consul-dataplane:1.1.13}", "1.9.11", false},
		"a new dataplane of no version": {"global: {imageConsulDataplane: registry.example.com/dataplane:latest}", "1.9.11", true},
	} {
		got, err := parse(t, File{"v.yaml", []byte(test.values)}).DefersStats(test.chart)
		if got != test.want || err != nil {
			t.Errorf("%s: %v, %v, want %v", name, got, err, test.want)
		}
	}
}
