package configdir

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/problem"
)

// placesOf returns the places and texts of problems, relative to a directory.
func placesOf(dir string, problems []problem.Problem) []string {
	var lines []string
	for _, p := range problems {
		lines = append(lines, strings.ReplaceAll(fmt.Sprintf("%s:%d %s", p.At, p.At.Column, p.What), dir+"/", ""))
	}
	return lines
}

func TestSettingsForConsulAreCheckedWhereverTheyStand(t *testing.T) {
	const bad = `usher { proxy_protocol { mode = "on" } }`
	files := tree{
		"defaults.hcl":     "kind = \"proxy-defaults\"\nname = \"global\"\nmesh_gateway { mode = \"local\" }\nconfig {\n  " + bad + "\n}",
		"registration.hcl": "service {\n  kind = \"ingress-gateway\"\n  check { tcp = \"x\" }\n  proxy { config { " + bad + " } }\n}",
		"registrations.json": `{"services": [{"name": "a"}, {"kind": "ingress-gateway",
  "proxy": {"config": {"usher": {"proxy_protocol": {"mode": "on"}}}}}]}`,
		"crd.yaml":      "apiVersion: v1\nkind: Namespace\n---\napiVersion: consul.hashicorp.com/v1alpha1\nkind: ProxyDefaults\nspec:\n  config:\n    usher: {proxy_protocol: {mode: on}}",
		"list.yaml":     "kind: List\nitems:\n- spec:\n    config:\n      usher: {proxy_protocol: {mode: on}}",
		"resolver.json": `{"kind": "service-resolver", "name": "web"}`,
		"broken.json":   `{`,
	}
	want := []string{
		"broken.json:1:1 this is not JSON: unexpected end of JSON input; correct it",
		"crd.yaml:8:30", "defaults.hcl:5:28", "list.yaml:5:32", "registration.hcl:4:45", "registrations.json:2:53",
	}
	dir := write(t, files)
	var got []string
	for _, line := range placesOf(dir, CheckSettingsIn(dir)) {
		got = append(got, strings.TrimSuffix(line, ` "on" is not allowed; use "auto", "off", "permissive" or "strict"`))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if found := placesOf(dir, CheckSettings(filepath.Join(dir, "defaults.hcl"))); len(found) != 1 {
		t.Errorf("the one file has %q, want one problem", found)
	}
}

func TestOneFileIsCheckedWithoutTheOthers(t *testing.T) {
	dir := write(t, tree{
		"gw.hcl":  "kind = \"ingress-gateway\"\nname = \"gw\"\nlisteners { port = 80 protocol = \"http\" services { name = \"web\" } }",
		"bad.hcl": "kind = \"ingress-gateway\"\nname = \"gw\"\nlisteners { port = 70000 services { name = \"web\" } }",
	})
	if found := CheckFile(filepath.Join(dir, "gw.hcl")); len(found) > 0 {
		t.Errorf("its service may have its protocol in another file, and the problems are %q", found)
	}
	found := placesOf(dir, CheckFile(filepath.Join(dir, "bad.hcl")))
	if !slices.Equal(found, []string{"bad.hcl:3:13 70000 is not a port; use one from 1 to 65535"}) {
		t.Errorf("found %q", found)
	}
}
