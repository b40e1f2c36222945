package consulchart

import (
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/golden"
	"github.com/usherproxy/usher/internal/testing/messages"
)

// ours is a value of BootstrapKey that Usher made, foreign is none.
const (
	ours    = `{"envoy_bootstrap_json_tpl": "` + usherMark + `{}"}`
	foreign = `{"envoy_bootstrap_json_tpl": "{}"}`
)

// badValues are values without an override.
var badValues = []struct {
	name, values string
	gateways     []string
	want         string
}{
	{"no object", "- a", nil, "v.yaml:1: a list is not allowed; a file of values is an object"},
	{"a key twice", "a: 1\nb: 2\na: 3", nil, "v.yaml:3: a: this key is already given at v.yaml:1, and Helm takes only the last one; remove one of the two"},
	{"a key that is a list", "? [a]\n: b", nil, "v.yaml:1: a key that is not text is not allowed; remove it"},
	{"aliases that grow", "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + growing(), nil, "v.yaml:1: the file has more than 250000 values, those behind aliases counted each time; split it"},
	{"an alias of what it is in", "a: &a\n  b: *a", nil, "v.yaml:1: nested more than 100 levels deep; use fewer levels"},
	{"no YAML", "a: b\n c: d", nil, "v.yaml:2: this is not YAML: mapping values are not allowed in this context; correct it\n     1 | a: b\n     2 |  c: d"},
	{
		"a TAB", "a:\n  b: 1\n\tc: 2", nil,
		"v.yaml:3:1: the indentation of this line has a TAB, and YAML indents with spaces only; begin it with 2 spaces, as line 2 does\n     2 |   b: 1\n     3 | →c: 2",
	},
	{
		"a TAB after the key of an object", "a:\n\n  b:\n\t\tc: 2", nil,
		"v.yaml:4:1: the indentation of this line has 2 TABs, and YAML indents with spaces only; begin it with 4 spaces\n     3 |   b:\n     4 | →→c: 2",
	},
	{
		"a TAB in an item of a list", "a:\n  - b: 1\n  \tc: 2", nil,
		"v.yaml:3:3: the indentation of this line has a TAB, and YAML indents with spaces only; begin it with 4 spaces\n     2 |   - b: 1\n     3 |   →c: 2",
	},
	{
		"a TAB before an item of a list", "a:\n  - b: 1\n\t- c: 2", nil,
		"v.yaml:3:1: the indentation of this line has a TAB, and YAML indents with spaces only; begin it with 2 spaces, as line 2 does\n     2 |   - b: 1\n     3 | →- c: 2",
	},
	{"gateways that are no list", "ingressGateways: {gateways: {a: b}}", nil, "v.yaml:1: ingressGateways.gateways: an object is not allowed; use a list with an item for each gateway"},
	{"no gateways", "ingressGateways:\n  gateways: null", nil, "v.yaml:2: ingressGateways.gateways: the list is empty, so there is no gateway to move to Usher; add one"},
	{"a gateway that is no object", "ingressGateways: {gateways: [a]}", nil, "v.yaml:1: ingressGateways.gateways: \"a\" is not allowed; an item is an object with a name"},
	{"a gateway without a name", "ingressGateways: {gateways: [{replicas: 1}]}", nil, "v.yaml:1: ingressGateways.gateways: this gateway has no name, and the chart refuses it; give it a name"},
	{
		"two gateways of one name", "ingressGateways:\n  gateways:\n    - name: a\n    - name: a", nil,
		`v.yaml:4: ingressGateways.gateways: the gateway "a" is already in the list, and the chart refuses two of one name; rename one`,
	},
	{"an unknown gateway", "ingressGateways: {gateways: [{name: edge}, {name: public}]}", []string{"egde"}, `--gateway egde: the values have no such gateway (did you mean "edge"?); use edge, public`},
	{"annotations that are an object", "ingressGateways: {defaults: {annotations: {a: b}}}", nil, `v.yaml:1: ingressGateways.defaults.annotations: an object is not allowed; the chart reads a text: write "annotations: |" and the lines below it`},
	{"annotations that are no YAML", annotated("a: b\n        c: d"), nil, "v.yaml:5: ingressGateways.defaults.annotations: this is not YAML: mapping values are not allowed in this context"},
	{"annotations on one line", annotated("{a: b}"), nil, `v.yaml:4: ingressGateways.defaults.annotations: the chart needs lines of the form "key: value", without indentation`},
	{"the annotation is not JSON", annotated(Annotation + ": mode=strict"), nil, "v.yaml:3: ingressGateways.defaults.annotations: " + Annotation + " is not a JSON object (invalid character 'm' looking for beginning of value), and consul-k8s ignores such a value; correct it, or remove it"},
	{"the annotation is null in JSON", annotated(Annotation + ": 'null'"), nil, "v.yaml:3: ingressGateways.defaults.annotations: " + Annotation + " is not a JSON object (it is null), and consul-k8s ignores such a value; correct it, or remove it"},
	{"a foreign bootstrap", annotated(Annotation + ": '" + foreign + "'"), nil, "v.yaml:3: ingressGateways.defaults.annotations: " + Annotation + " already has a bootstrap (envoy_bootstrap_json_tpl) that usher helm-values did not make; remove that key, or leave this gateway out"},
	{"the annotation is a template", annotated(Annotation + ": '{{ .Values.x }}'"), nil, "v.yaml:3: ingressGateways.defaults.annotations: " + Annotation + " depends on Helm's template actions, and Usher cannot add the bootstrap to it; write it without {{ }}"},
	{"the annotation under a condition", annotated("{{ if .Values.x }}\n      " + Annotation + ": '{}'\n      {{ end }}"), nil, "v.yaml:3: ingressGateways.defaults.annotations: " + Annotation + " depends on Helm's template actions, and Usher cannot add the bootstrap to it; write it without {{ }}"},
	{"annotations that end", annotated("a: b\n      ..."), nil, "v.yaml:3: ingressGateways.defaults.annotations: Usher cannot add an annotation to this text; write one line \"key: value\" for each annotation"},
	{"the annotation twice in a text", annotated(Annotation + ": '{}'\n      " + Annotation + ": '{}'"), nil, "v.yaml:3: ingressGateways.defaults.annotations: " + Annotation + " is here twice; remove one of the two"},
	{
		"the annotation in the defaults, and one gateway", annotated(Annotation+": '"+ours+"'") + "\n  gateways: [{name: a}, {name: b}]",
		[]string{"a"},
		"v.yaml:3: ingressGateways.defaults.annotations: all gateways get " + Annotation + " from here, and --gateway would give it to some of them a second time; " +
			"move it to the items of ingressGateways.gateways, or leave out --gateway",
	},
	{
		"the annotation in the defaults and in a gateway", annotated(Annotation+": '{}'") + "\n  gateways: [{name: a, annotations: \"" + Annotation + ": '{}'\"}]", nil,
		"v.yaml:5: ingressGateways.gateways[a].annotations: the gateway has " + Annotation + " here and in v.yaml:3: ingressGateways.defaults.annotations, " +
			"and a pod cannot have it twice; keep it in one place",
	},
}

func annotated(lines string) string {
	return "ingressGateways:\n  defaults:\n    annotations: |\n      " + lines
}

// growing is lists of lists, each ten times the one before.
func growing() string {
	var b strings.Builder
	for i := range 8 {
		name, before := string(rune('b'+i)), string(rune('a'+i))
		if i == 0 {
			before = "a0"
		}
		b.WriteString(name + ": &" + name + " [" + strings.Repeat("*"+before+", ", 10) + "]\n")
	}
	return b.String()
}

func overrideError(values string, gateways []string) error {
	v, err := Parse(File{"v.yaml", []byte(values)})
	if err != nil {
		return err
	}
	_, err = v.Override(OverrideOptions{Template: labTemplate, Gateways: gateways})
	return err
}

func TestBadValuesAreAnErrorWithItsPlace(t *testing.T) {
	for _, tc := range badValues {
		t.Run(tc.name, func(t *testing.T) {
			if err := overrideError(tc.values, tc.gateways); err == nil || err.Error() != tc.want {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}

// TestTheLabsFileWithTABsIsAnError checks the whole text that an operator sees.
func TestTheLabsFileWithTABsIsAnError(t *testing.T) {
	_, err := Parse(readFile(t, "tab.yaml"))
	want := `tab.yaml:11:1: the indentation of this line has 2 TABs, and YAML indents with spaces only; begin it with 8 spaces, as line 10 does
    10 |         service.beta.kubernetes.io/aws-load-balancer-cross-zone-load-balancing-enabled: "true"
    11 | →→    service.beta.kubernetes.io/aws-load-balancer-proxy-protocol: "*"`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// chartVersions are versions from the flag and from images, with the error for those that are too old.
var chartVersions = []struct{ flag, values, want string }{
	{"", "", ""},
	{"1.1.8", "", ""},
	{"v1.1.18", "", ""},
	{"1.2.4", "", ""},
	{"1.3.1", "", ""},
	{"1.4.0", "", ""},
	{"2.0.3", "", ""},
	{"4.0", "", ""},
	{"", "global: {imageK8S: 'mirror:5000/consul-k8s-control-plane'}", ""},
	{"", "global: {imageK8S: 'mirror:5000/consul-k8s-control-plane:latest'}", ""},
	{"1.1.0", "global: {imageK8S: 'hashicorp/consul-k8s-control-plane:1.1.18'}", ""}, // the controller decides
	{"1.3.0", "{global: {imageK8S: 'a:1.3.0'}, connectInject: {image: 'a:1.3.1'}}", ""},
	{"new", "", "--chart-version new: it is not a version; use one such as 1.9.11"},
	{"0.49.5", "", "--chart-version 0.49.5: gateways of consul-k8s 0.49.5 have no consul-dataplane; upgrade the chart to 1.1.8 or later"},
	{"1.0.11", "", tooOld("--chart-version 1.0.11", "1.0.11", "1.1.8")},
	{"1.1.7", "", tooOld("--chart-version 1.1.7", "1.1.7", "1.1.8")},
	{"1.2.3", "", tooOld("--chart-version 1.2.3", "1.2.3", "1.2.4")},
	{"1.3.0", "", tooOld("--chart-version 1.3.0", "1.3.0", "1.3.1")},
	{"", "global: {imageK8S: 'hashicorp/consul-k8s-control-plane:1.3.0-ubi@sha256:00'}", tooOld("v.yaml:1: global.imageK8S", "1.3.0", "1.3.1")},
	{"1.9.11", "connectInject: {image: 'hashicorp/consul-k8s-control-plane:1.2.0'}", tooOld("v.yaml:1: connectInject.image", "1.2.0", "1.2.4")},
}

func tooOld(where, version, first string) string {
	return where + ": consul-k8s " + version + " does not read the annotation proxy-config-map of gateways, which came with " + first +
		"; set dataplane.enabled of Usher's chart instead, which changes the pods, or upgrade consul-k8s, " +
		"or put the bootstrap into the ProxyDefaults resource (spec.config.envoy_bootstrap_json_tpl), where it is for all proxies"
}

func TestAConsulK8sThatIsTooOldIsAnErrorThatNamesTheOtherRoutes(t *testing.T) {
	for _, tc := range chartVersions {
		got := ""
		if err := parse(t, File{"v.yaml", []byte(tc.values)}).CheckChart(tc.flag); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("chart %q, values %s\ngot  %s\nwant %s", tc.flag, tc.values, got, tc.want)
		}
	}
}

// TestMessages has the errors and the notices of all tests of this package.
func TestMessages(t *testing.T) {
	var lines []string
	for _, tc := range badValues {
		lines = append(lines, strings.Split(tc.want, "\n")[0])
	}
	for _, tc := range chartVersions {
		if tc.want != "" {
			lines = append(lines, tc.want)
		}
	}
	for _, name := range golden.Cases(t, "testdata") {
		c, files := readCase(t, golden.Input(t, "testdata", name))
		lines = append(lines, noticesOf(t, parse(t, files...), c.Chart)...)
	}
	for _, tc := range slices.Concat(comparisons, frontComparisons, neitherComparisons) {
		lines = append(lines, tc.want...)
	}
	messages.Check(t, lines, "fmt.Errorf", "errors.New", "errorAt", "refuse", "add")
}
