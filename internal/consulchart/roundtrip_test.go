package consulchart

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/testing/golden"
)

// nasty is a template with everything that one of the four readers of an override treats as its own.
const nasty = "{{- /* a comment */ -}}\n{\"id\": \"{{ .ProxyID }}\", \"quotes\": \"it's \\\"{{ \"}}\" }}\\\"\", {{ `\"raw\": 1` }},\n" +
	"\t\"nested\": {\"a\": {\"b\": {}}}, \"braces\": \"{{ \"{{\" }}{{ \"{{{\" }}\", \"html\": \"<&>\", \"percent\": \"%s %REQ(x)%\",\n" +
	"\t\"breaks\": \"\u0085\u2028\u2029\ufeff\u007f\", \"words\": \"Grüße 😀\", \"escape\": \"\\u007b\\u007b\\\\{{ .ProxyCluster }}\",\n" +
	"\t\"yaml\": \": # - ! & * | >\"{{ with .StaticListenersJSON }}, \"listeners\": [{{ . }}]{{ end }}}}"

// dataplane are variables as consul-dataplane has them for its template.
var dataplane = map[string]any{
	"ProxyID": "consul-ingress-gateway-7d9-x", "ProxyCluster": "ingress-gateway", "StaticListenersJSON": `{"name": "ready"}`,
	"NodeName": "node-1-virtual", "Namespace": "", "Partition": "", "AdminBindAddress": "127.0.0.1", "AdminBindPort": "19000",
	"AdminAccessLogConfig": []string{`{"name": "a"}`, `{"name": "b"}`}, "StaticClustersJSON": `{"name": "self_admin"}`,
	"StaticSecretsJSON": "", "StatsSinksJSON": "", "StatsConfigJSON": "", "TracingConfigJSON": "", "StatsFlushInterval": "5s",
}

// ushers is the template that Usher makes.
func ushers(t *testing.T) string {
	t.Helper()
	text, err := bootstrap.DataplaneTemplate(bootstrap.DataplaneOptions{
		XDSAddr: "https://usher.consul.svc:18000", CAFile: "/consul/tls/ca/tls.crt", TokenFile: "/var/run/secrets/kubernetes.io/serviceaccount/token",
	})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestTheTemplateComesBackFromThePods reads the override as Helm, the chart, Kubernetes, consul-k8s and consul-dataplane
// do, for every case of testdata, and demands that the bootstrap is the one that the template makes.
func TestTheTemplateComesBackFromThePods(t *testing.T) {
	for _, name := range golden.Cases(t, "testdata") {
		t.Run(name, func(t *testing.T) { comesBack(t, name, ushers(t)) })
		t.Run(name+", nasty", func(t *testing.T) { comesBack(t, name, nasty) })
	}
}

func comesBack(t *testing.T, name, template string) {
	t.Helper()
	c, files := readCase(t, golden.Input(t, "testdata", name))
	o, err := parse(t, files...).Override(OverrideOptions{Template: template, Gateways: c.Gateways})
	if err != nil {
		t.Fatal(err)
	}
	before := podAnnotations(t, mergedByHelm(t, files...))
	after := podAnnotations(t, mergedByHelm(t, append(files, File{Name: "override", Text: []byte(o.Text)})...))
	for _, g := range o.Gateways {
		if got := after[g.Gateway][Annotation]; got != g.Config {
			t.Errorf("gateway %s: the pod's annotation is\n%s\nwant\n%s", g.Gateway, got, g.Config)
		}
		if got, want := startedWith(t, after[g.Gateway][Annotation]), execute(t, template); got != want {
			t.Errorf("gateway %s: Envoy's bootstrap differs (-want +got)\n%s", g.Gateway, cmp.Diff(want, got))
		}
		keeps(t, before[g.Gateway], after[g.Gateway])
		delete(after, g.Gateway)
		delete(before, g.Gateway)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the annotations of other gateways change (-before +after)\n%s", diff)
	}
}

// keeps checks that no other annotation changes, and no other member of the one that does.
func keeps(t *testing.T, before, after map[string]string) {
	t.Helper()
	configBefore, configAfter := config(t, before), config(t, after)
	delete(configAfter, BootstrapKey)
	if diff := cmp.Diff(configBefore, configAfter); diff != "" {
		t.Errorf("the rest of the annotation changes (-before +after)\n%s", diff)
	}
	others := maps.Clone(after)
	delete(before, Annotation)
	delete(others, Annotation)
	if diff := cmp.Diff(before, others); diff != "" {
		t.Errorf("other annotations change (-before +after)\n%s", diff)
	}
}

func config(t *testing.T, annotations map[string]string) map[string]any {
	t.Helper()
	members := map[string]any{}
	if text := annotations[Annotation]; text != "" {
		if err := json.Unmarshal([]byte(text), &members); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
	}
	return members
}

// startedWith returns the bootstrap that consul-dataplane makes of an annotation.
func startedWith(t *testing.T, annotation string) string {
	t.Helper()
	text, _ := config(t, map[string]string{Annotation: annotation})[BootstrapKey].(string)
	return execute(t, text)
}

func execute(t *testing.T, text string) string {
	t.Helper()
	var out strings.Builder
	if err := template.Must(template.New("bootstrap").Parse(text)).Execute(&out, dataplane); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// mergedByHelm merges files as helm does for several -f.
func mergedByHelm(t *testing.T, files ...File) map[string]any {
	t.Helper()
	merged := map[string]any{}
	for _, f := range files {
		values := map[string]any{}
		if err := yaml.Unmarshal(f.Text, &values); err != nil {
			t.Fatal(err)
		}
		mergeMaps(merged, values)
	}
	return merged
}

func mergeMaps(base, over map[string]any) {
	for key, value := range over {
		if object, ok := value.(map[string]any); ok {
			if below, ok := base[key].(map[string]any); ok {
				mergeMaps(below, object)
				continue
			}
		}
		base[key] = value
	}
}

// podAnnotations returns the annotations of the pods of each gateway, as the chart's template writes them: those of
// the defaults, then those of the gateway.
func podAnnotations(t *testing.T, values map[string]any) map[string]map[string]string {
	t.Helper()
	object := func(from map[string]any, key string) map[string]any { o, _ := from[key].(map[string]any); return o }
	gateways := object(values, "ingressGateways")
	list, ok := gateways["gateways"].([]any)
	if !ok {
		list = []any{map[string]any{"name": "ingress-gateway"}}
	}
	pods := map[string]map[string]string{}
	for _, item := range list {
		text := "annotations:\n    \"consul.hashicorp.com/gateway-kind\": \"ingress-gateway\""
		for _, from := range []map[string]any{object(gateways, "defaults"), item.(map[string]any)} {
			if own, _ := from["annotations"].(string); own != "" {
				text += strings.ReplaceAll("\n"+helmTemplate(t, own, values), "\n", "\n    ")
			}
		}
		var pod struct{ Annotations map[string]string }
		if err := yaml.UnmarshalStrict([]byte(text), &pod); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		pods[item.(map[string]any)["name"].(string)] = pod.Annotations
	}
	return pods
}

// helmTemplate does what Helm's function tpl does, with the functions that the test's values use.
func helmTemplate(t *testing.T, text string, values map[string]any) string {
	t.Helper()
	functions := template.FuncMap{
		"quote":   func(s string) string { return `"` + s + `"` },
		"include": func(string, any) string { return "example.com/included: \"yes\"" },
	}
	parsed, err := template.New("tpl").Funcs(functions).Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := parsed.Execute(&out, map[string]any{"Values": values, "Release": map[string]string{"Name": "consul"}}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
