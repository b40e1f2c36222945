package controlplane

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/xds"
)

func TestASeverityIsInLogMetricAndList(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		minor := problem.Problem{Where: "here", What: "meant", Severity: problem.Notice}
		r.problems.Report("a file", []problem.Problem{minor, {Where: "here", What: "wrong"}})
		r.problems.setGateway(gateway.ID{Name: "edge"}, []problem.Problem{{Where: "there", What: "down", Severity: problem.Outage}})
		r.wantLog(
			"level=INFO msg=problem where=here what=meant severity=notice",
			"level=WARN msg=problem where=here what=wrong severity=degraded",
			"level=ERROR msg=problem gateway=edge where=there what=down severity=outage",
		)
		for _, c := range []struct {
			gateway, severity string
			want              float64
		}{{"", "notice", 1}, {"", "degraded", 1}, {"", "outage", 0}, {"edge", "outage", 1}, {"edge", "degraded", 0}} {
			if n := testutil.ToFloat64(r.problems.count.WithLabelValues(c.gateway, c.severity)); n != c.want {
				t.Errorf("usher_config_problems of %q, %s, is %v, want %v", c.gateway, c.severity, n, c.want)
			}
		}
		var list []string
		for _, p := range r.problems.Current() {
			list = append(list, p.Gateway+" "+p.What)
		}
		if want := []string{"edge down", " wrong", " meant"}; !slices.Equal(list, want) {
			t.Errorf("the problems are %q, want %q", list, want)
		}

		// What becomes worse begins again, and is not over.
		minor.Severity = problem.Outage
		r.problems.Report("a file", []problem.Problem{minor})
		r.wantLog(
			"level=INFO msg=problem where=here what=meant severity=notice",
			"level=WARN msg=problem where=here what=wrong severity=degraded",
			"level=ERROR msg=problem gateway=edge where=there what=down severity=outage",
			"level=ERROR msg=problem where=here what=meant severity=outage",
			`msg="problem over" where=here what=wrong`,
		)
	})
}

// TestAProblemOfOldEnvoysNamesThem has Envoys of two releases, of which one cannot read a TLV.
func TestAProblemOfOldEnvoysNamesThem(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		layer, problems := settings.Layer{}.Update("usher.hcl:1", map[string]any{
			"proxy_protocol": map[string]any{"mode": "strict", "tlvs": []any{map[string]any{"type": "azure_link_id"}}},
		})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		r.plane.SetConfigFile(settings.File{All: layer})
		for minor, address := range map[uint32]string{36: "10.0.0.7", 40: "10.0.0.8"} {
			r.connect(xds.Node{ID: "edge", Cluster: "edge", Major: 1, Minor: minor, Peer: netip.MustParseAddr(address)})
		}
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		var what []string
		for _, p := range r.problems.Current() {
			what = append(what, p.String())
		}
		want := `usher.hcl:1: usher.proxy_protocol.tlvs: listener 8080 of gateway edge: "azure_link_id" is a number, which needs Envoy 1.39 or later; ` +
			`until this Envoy is upgraded, it is left out; this concerns Envoy "edge" (release 1.36.0, from 10.0.0.7)`
		if len(what) != 1 || what[0] != want {
			t.Errorf("the problems are %q, want %q", what, want)
		}
	})
}

// TestAProblemIsCountedOnce has a mistake in a file that a gateway's snapshot has, too, and a source that logs by itself.
func TestAProblemIsCountedOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		mistake := problem.Problem{Where: "web.hcl:3", What: "wrong"}
		own := problem.Problem{Where: "there", What: "wrong"}
		r.problems.setGateway(gateway.ID{Name: "edge"}, []problem.Problem{mistake, own})
		for _, step := range []struct {
			ofFiles     []problem.Problem
			all, ofEdge float64
		}{{nil, 0, 2}, {[]problem.Problem{mistake}, 1, 1}, {nil, 0, 2}} {
			r.problems.Report("the config directory", step.ofFiles)
			all := testutil.ToFloat64(r.problems.count.WithLabelValues("", "degraded"))
			ofEdge := testutil.ToFloat64(r.problems.count.WithLabelValues("edge", "degraded"))
			if all != step.all || ofEdge != step.ofEdge || len(r.problems.Current()) != 2 {
				t.Errorf("with %v in the files, the counts are %v and %v of edge, and the list %v", step.ofFiles, all, ofEdge, r.problems.Current())
			}
		}
		r.problems.ReportLogged("queries to consul", []problem.Problem{{Where: "consul", What: "it does not answer"}})
		if n := testutil.ToFloat64(r.problems.count.WithLabelValues("", "degraded")); n != 1 || len(r.problems.Current()) != 3 {
			t.Errorf("%v problems of Consul are counted, and the list is %v", n, r.problems.Current())
		}
		r.problems.ReportLogged("queries to consul", nil)
		if len(r.problems.Current()) != 2 {
			t.Errorf("the list is %v", r.problems.Current())
		}
		r.wantLog(
			"level=WARN msg=problem gateway=edge where=there what=wrong severity=degraded",
			"level=WARN msg=problem gateway=edge where=web.hcl:3 what=wrong severity=degraded",
		)
	})
}

func TestAListenerThatNoEnvoyHasIsAnOutage(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		node := func(id string) *xds.Node {
			return &xds.Node{ID: id, Cluster: "edge", Major: 1, Minor: 36, Patch: 2, Peer: netip.MustParseAddr("10.0.0.7")}
		}
		first, second := node("edge-1"), node("edge-2")
		gauge := func() float64 { return testutil.ToFloat64(r.problems.heldBack.WithLabelValues("edge", "8080")) }
		r.problems.HeldBack(first, []string{"http:0.0.0.0:8080", "http:[::]:8080"}, false)
		line := `level=ERROR msg=problem gateway=edge where="gateway edge: listener 8080" what="it is held back, and there is no valid version of it from before; ` +
			`Envoy \"edge-1\" (release 1.36.2, from 10.0.0.7): nothing is served there until the other problems of this gateway are corrected" severity=outage`
		r.wantLog(line)
		r.problems.HeldBack(second, []string{"http:0.0.0.0:8080"}, false)
		if n, problems := gauge(), r.problemCount("edge"); n != 2 || problems != 1 {
			t.Errorf("%v Envoys lack the listener in %v problems, want 2 in 1", n, problems)
		}
		r.problems.HeldBack(first, nil, false)
		if n := gauge(); n != 1 {
			t.Errorf("%v Envoys lack the listener, want 1", n)
		}
		both := `level=ERROR msg=problem gateway=edge where="gateway edge: listener 8080" what="it is held back, and there is no valid version of it from before; ` +
			`Envoy \"edge-1\" (release 1.36.2, from 10.0.0.7), Envoy \"edge-2\" (release 1.36.2, from 10.0.0.7): nothing is served there until the other problems of this gateway are corrected" severity=outage`
		only := `level=ERROR msg=problem gateway=edge where="gateway edge: listener 8080" what="it is held back, and there is no valid version of it from before; ` +
			`Envoy \"edge-2\" (release 1.36.2, from 10.0.0.7): nothing is served there until the other problems of this gateway are corrected" severity=outage`
		r.wantLog(line, both, only)
		r.problems.HeldBack(second, nil, true) // it disconnects, which corrects nothing
		r.wantLog(line, both, only)
		if n := r.problemCount("edge"); n != 0 || len(r.problems.Current()) != 0 || testutil.CollectAndCount(r.problems.heldBack) != 0 {
			t.Errorf("%v problems are left", n)
		}
		r.problems.HeldBack(second, []string{"usher-relay:8080"}, false) // it has the listener that clients reach
		if n := r.problemCount("edge"); n != 0 {
			t.Errorf("%v problems of a loopback listener", n)
		}
		r.problems.HeldBack(second, nil, false)
		r.problems.HeldBack(first, []string{"http:0.0.0.0:8080"}, false)
		r.problems.HeldBack(first, nil, false)
		over := `level=INFO msg="problem over" gateway=edge where="gateway edge: listener 8080" what="it is held back, and there is no valid version of it from before; ` +
			`Envoy \"edge-1\" (release 1.36.2, from 10.0.0.7): nothing is served there until the other problems of this gateway are corrected"`
		if text := r.log.String(); !slices.Contains(linesWithoutTime(text), over) {
			t.Errorf("the log does not say that it is over:\n%s", text)
		}
	})
}

func TestARejectionSaysHowBadItIs(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		n := xds.Node{ID: "edge-1", Cluster: "edge", Major: 1, Minor: 40, Peer: netip.MustParseAddr("10.0.0.7")}
		rejection := xds.Rejection{Resources: []string{"http:0.0.0.0:8080"}, Message: "no such directory."}
		for _, c := range []struct {
			typ      xds.Type
			change   func(*xds.Rejection)
			severity problem.Severity
			keeps    string
		}{
			{xds.Listener, func(*xds.Rejection) {}, problem.Degraded, "it keeps what it had before it connected"},
			{
				xds.Listener, func(r *xds.Rejection) { r.AcceptedAt = time.Unix(0, 0) }, problem.Degraded,
				"it keeps the version that it accepted at 1970-01-01T00:00:00Z",
			},
			{
				xds.Listener, func(r *xds.Rejection) { r.Missing, r.AcceptedAt = r.Resources, time.Unix(0, 0) }, problem.Outage,
				"it has no earlier version of http:0.0.0.0:8080, and serves nothing there",
			},
			{xds.Cluster, func(r *xds.Rejection) { r.Missing = r.Resources }, problem.Degraded, "it keeps what it had before it connected"},
		} {
			of := rejection
			c.change(&of)
			over := r.problems.Rejected(n, c.typ, of)
			want := Reported{"edge", problem.Problem{
				Where: `Envoy "edge-1" (release 1.40.0, from 10.0.0.7)`, Severity: c.severity,
				What: "it rejects the update of " + c.typ.String() + " http:0.0.0.0:8080: no such directory; " + c.keeps + ". Correct what Envoy names",
			}}
			if got := r.problems.Current(); !slices.Equal(got, []Reported{want}) {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
			over()
			if got := r.problems.Current(); len(got) != 0 {
				t.Errorf("%+v is left", got)
			}
		}
	})
}

// linesWithoutTime returns the lines of a log from their level on.
func linesWithoutTime(text string) (lines []string) {
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		lines = append(lines, rest)
	}
	return lines
}

func TestAProblemInAnotherColumnIsTheSame(t *testing.T) {
	inBubble(t, func(_ *testing.T, r *testPlane) {
		at := func(column int) []problem.Problem {
			return []problem.Problem{{Where: "f:1: k", What: "wrong", At: problem.Position{File: "f", Line: 1, Column: column}}}
		}
		r.problems.Report("a file", at(2))
		r.problems.Report("a file", at(9))
		const begun = `level=WARN msg=problem where="f:1: k" what=wrong severity=degraded`
		r.wantLog(begun)
		r.problems.Report("a file", nil)
		r.wantLog(begun, `msg="problem over" where="f:1: k" what=wrong`)
	})
}
