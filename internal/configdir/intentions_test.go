package configdir

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/problem"
)

func TestIntentionsDecideWhatIsRouted(t *testing.T) {
	intention := func(to string, sources ...string) string {
		text := fmt.Sprintf("kind = %q\nname = %q\n", "service-intentions", to)
		for i := 0; i < len(sources); i += 2 {
			text += fmt.Sprintf("sources { name = %q action = %q }\n", sources[i], sources[i+1])
		}
		return text
	}
	for _, tc := range []struct {
		name   string
		files  tree
		routed bool
	}{
		{"none", tree{}, true},
		{"of another service", tree{"i.hcl": intention("other", "gw", "deny")}, true},
		{"of another source", tree{"i.hcl": intention("static-server", "other", "deny")}, true},
		{"exact allow", tree{"i.hcl": intention("static-server", "*", "deny", "gw", "allow")}, true},
		{"exact deny", tree{"i.hcl": intention("static-server", "*", "allow", "gw", "deny")}, false},
		{"any source", tree{"i.hcl": intention("static-server", "*", "deny")}, false},
		{"any destination", tree{"i.hcl": intention("*", "gw", "deny")}, false},
		{"all", tree{"i.hcl": intention("*", "*", "deny")}, false},
		{"exact source of any destination before all", tree{"i.hcl": intention("*", "*", "deny", "gw", "allow")}, true},
		{
			"any source of exact destination before exact source of any",
			tree{"a.hcl": intention("*", "gw", "deny"), "b.hcl": intention("static-server", "*", "allow")},
			true,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.files["gw.hcl"] = `kind = "ingress-gateway" name = "gw" listeners { port = 80 services { name = "static-server" } }`
			tc.files["web.hcl"] = staticServer
			got := snapshotOf(t, "gw", tc.files)
			if routed := len(got.Services) == 1; routed != tc.routed {
				t.Errorf("routed: %v, want %v", routed, tc.routed)
			}
			if visible := len(got.Problems) == 1; visible == tc.routed {
				t.Errorf("problems are %v", got.Problems)
			}
		})
	}
}

func TestDeniedServiceIsAProblemWithItsPlace(t *testing.T) {
	dir := write(t, tree{
		"gw.hcl":  "kind = \"ingress-gateway\"\nname = \"gw\"\nlisteners {\n  port = 80\n  services { name = \"static-server\" }\n}",
		"i.hcl":   "kind = \"service-intentions\"\nname = \"static-server\"\nsources {\n  name = \"gw\"\n  action = \"deny\"\n}",
		"web.hcl": staticServer,
	})
	want := []string{
		`DIR/gw.hcl:5: service "static-server" is not routed, because its intentions deny the gateway "gw" (DIR/i.hcl:5); ` +
			`allow it there, or remove the service from the listener`,
	}
	if diff := cmp.Diff(want, problemsOf(t, dir, "gw")); diff != "" {
		t.Error(diff)
	}
}

func TestServiceWithoutDefinitionIsAProblem(t *testing.T) {
	dir := write(t, tree{"gw.hcl": "kind = \"ingress-gateway\"\nname = \"gw\"\nlisteners {\n  port = 80\n  services { name = \"web\" }\n}"})
	want := []string{`DIR/gw.hcl:5: service "web" has no definition; add service { name = "web", address, port } to a file`}
	if diff := cmp.Diff(want, problemsOf(t, dir, "gw")); diff != "" {
		t.Error(diff)
	}
}

// A gateway may be denied on purpose. If no source is allowed at all, that is hardly so.
func TestHowBadADenialIs(t *testing.T) {
	for want, sources := range map[problem.Severity]string{
		problem.Notice:   `sources { name = "*" action = "deny" } sources { name = "web" action = "allow" }`,
		problem.Degraded: `sources { name = "*" action = "deny" }`,
	} {
		got := snapshotOf(t, "gw", tree{
			"gw.hcl":  `kind = "ingress-gateway" name = "gw" listeners { port = 80 services { name = "static-server" } }`,
			"web.hcl": staticServer, "i.hcl": `kind = "service-intentions" name = "static-server" ` + sources,
		})
		if len(got.Problems) != 1 || got.Problems[0].Severity != want {
			t.Errorf("%s: got %+v, want one problem that is %s", sources, got.Problems, want)
		}
	}
	unnamed := snapshotOf(t, "gw", tree{
		"gw.hcl":  `kind = "ingress-gateway" name = "gw" listeners { port = 80 services { name = "static-server" } }`,
		"web.hcl": staticServer, "i.hcl": `kind = "service-intentions" name = "static-server" sources { name = "gw" action = "deny" }`,
	})
	if len(unnamed.Problems) != 1 || unnamed.Problems[0].Severity != problem.Notice {
		t.Errorf("only the gateway is denied: got %+v, want a notice", unnamed.Problems)
	}
}
