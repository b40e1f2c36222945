package files

import (
	"errors"
	"strings"
	"testing"
)

// FuzzText holds that no text of a file makes the reader panic, and that every
// problem names its place on one line.
func FuzzText(f *testing.F) {
	for _, seed := range []string{
		richSnake, richCamel, richJSON, richYAML, staticServer, gw(80, 81),
		`kind = "proxy-defaults" name = "global" config { usher { proxy_protocol { mode = "strict" } } }`,
		`{"kind": "service-intentions", "name": "*", "sources": [{"name": "*", "action": "deny"}]}`,
		"a: &a [b, {c: *a}]", "- x", `service "a" { b = 1 }`, "x = <<E\n  y\nE\n", "\ta: b", "a = 99999999999999999999",
	} {
		for _, ext := range []string{"hcl", "json", "yaml"} {
			f.Add(ext, []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, ext string, text []byte) {
		c := &config{}
		if err := c.text("f."+ext, text); err != nil {
			problems, ok := errors.AsType[Problems](err)
			if !ok {
				t.Fatalf("the error is a %T", err)
			}
			c.problems = append(c.problems, problems...)
		}
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
	})
}
