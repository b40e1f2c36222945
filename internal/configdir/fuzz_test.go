package configdir

import (
	"strings"
	"testing"
)

// seeds are texts of every kind that a file may contain, in the three languages, and
// texts that have failed before.
func seeds(f testing.TB) map[string][]string {
	f.Helper()
	entry := func(kind string) string {
		return `{"Kind": "` + kind + `", "Name": "global", "Config": {"usher": {"proxy_protocol": {"mode": "strict"}}}, "Listeners": null, "Sources": [null], "Protocol": 1}`
	}
	return map[string][]string{
		"hcl": {
			richSnake, richCamel, staticServer, gw(80, 81),
			`kind = "proxy-defaults" name = "global" config { usher { proxy_protocol { mode = "strict" } } }`,
			`kind = "service-defaults" name = "web" protocol = "http" max_request_headers_kb = 96`,
			`kind = "service-intentions" name = "*" sources = [{ name = "*" action = "deny" }]`,
			`service "a" { b = 1 }`, `services { name = "a" port = 1 }`, "x = <<E\n  y\nE\n", "a = 99999999999999999999", `a = "\400"`, `"\700" {}`,
		},
		"json": {
			richJSON, entry("ingress-gateway"), entry("proxy-defaults"), entry("service-defaults"), entry("service-intentions"),
			`{"kind": "service-intentions", "name": "*", "sources": [{"name": "*", "action": "deny"}]}`,
			`{"services": [null, {"name": "a", "port": 1, "weights": null, "checks": [null]}]}`, `{"service": {"kind": "ingress-gateway", "name": "a", "proxy": {"config": {"usher": null}}}}`,
			`{"usher": "\u12`, `{"a": 1e999}`,
		},
		"yaml": {
			richYAML, "a: &a [b, {c: *a}]", "- x", "\ta: b", "---\n---\nnull\n", "apiVersion: v1\nkind: List\nitems: [null]\n", "? [a]\n: b\n",
			"apiVersion: consul.hashicorp.com/v1alpha1\nkind: ServiceIntentions\nmetadata: {name: a}\nspec: {destination: null, sources: [{name: b, action: allow}]}\n",
			"apiVersion: consul.hashicorp.com/v1alpha1\nkind: ServiceDefaults\nmetadata: {name: a}\nspec: {protocol: http}\n",
		},
	}
}

// readText reads a text and builds its content. It checks that every problem is one
// line and names its place.
func readText(t *testing.T, ext, text string) {
	t.Helper()
	c := &config{}
	c.text("f."+ext, []byte(text))
	if len(c.problems) == 0 {
		c.check()
	}
	for _, p := range c.problems {
		if !strings.HasPrefix(p.Where, "f."+ext+":") || strings.ContainsAny(p.What, "\n") {
			t.Errorf("problem %q", p)
		}
	}
	if len(c.problems) == 0 {
		build(c, &content{datacenter: "dc1"})
	}
}

func TestATextThatIsCutOffAnywhereIsReadOrAProblem(t *testing.T) {
	for ext, texts := range seeds(t) {
		for _, text := range texts {
			for i := range text {
				readText(t, ext, text[:i])
			}
		}
	}
}

// FuzzText checks that no text of a file makes the reader panic.
func FuzzText(f *testing.F) {
	for _, texts := range seeds(f) {
		for _, text := range texts {
			for _, ext := range []string{"hcl", "json", "yaml"} {
				f.Add(ext, text)
			}
		}
	}
	f.Fuzz(func(t *testing.T, ext, text string) {
		if ext == "hcl" || ext == "json" || ext == "yaml" {
			readText(t, ext, text)
		}
	})
}
