package controlplane

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/xds"
)

// strictFile is a config file with a block for each of these gateways.
func strictFile(names ...string) settings.File {
	f := settings.File{Gateways: map[string]settings.Layer{}}
	for _, name := range names {
		layer := strictLayer
		layer.Where = "usher.hcl:1"
		f.Gateways[name] = layer
	}
	return f
}

var typoNode = xds.Node{ID: "typo", Cluster: "typo"}

// A misspelt name must not make a strict listener accept what it refused.
func TestAGatewayKeepsItsSettingsWhileABlockHasNoGateway(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		off := e.listener(t, anyAddress).Version()
		r.source.name([]string{"edge", "other"})
		set := func(f settings.File) string {
			r.plane.SetConfigFile(f)
			synctest.Wait()
			return e.listener(t, anyAddress).Version()
		}
		strict := set(strictFile("edge"))
		if strict == off {
			t.Fatal("the settings have no effect")
		}
		if set(strictFile("edgee")) != strict {
			t.Error("the gateway has lost its settings to a misspelt block")
		}
		const line = `level=WARN msg=problem where="usher.hcl:1: gateway \"edgee\"" what="no ingress gateway has this name (did you mean \"edge\"?), ` +
			`so the block has no effect; the ingress gateways are \"edge\", \"other\"; until this is corrected, \"edge\", whose block is gone, ` +
			`keeps the settings that it had" severity=degraded`
		r.wantLog(line)
		if set(strictFile("edgee", "other")) != strict {
			t.Error("another change took the settings away")
		}
		r.connect(edge).leave()
		if set(strictFile("other")) != off {
			t.Error("without such a block, the settings of a block that is gone still count")
		}
		if want := `level=WARN msg="the config file no longer has a block for this gateway, so its settings there no longer count" gateway=edge was=usher.hcl:1`; !slices.Contains(linesWithoutTime(r.log.String()), want) {
			t.Errorf("the log does not say that the settings are gone:\n%s", r.log.String())
		}
	})
}

func TestABlockWithoutAGatewayIsAProblemWhileItsNameIsUnknown(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		want := func(when string, wheres ...string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for _, p := range r.problems.Current() {
				got = append(got, p.Where)
			}
			if !slices.Equal(got, wheres) {
				t.Errorf("%s: the problems are %q, want %q", when, got, wheres)
			}
		}
		r.plane.SetConfigFile(strictFile("edge", "typo"))
		want("no name is known")
		r.source.name([]string{})
		want("there is no gateway", `usher.hcl:1: gateway "edge"`, `usher.hcl:1: gateway "typo"`)
		if text := r.log.String(); !strings.Contains(text, "Usher knows no ingress gateway yet") {
			t.Error(text)
		}
		r.source.name([]string{"edge"})
		want("one is known", `usher.hcl:1: gateway "typo"`)
		r.plane.SetConfigFile(strictFile("edge"))
		if text := r.log.String(); strings.Contains(text, "gateway=typo was=") {
			t.Errorf("a gateway that never was has lost its settings:\n%s", text)
		}
		r.plane.SetConfigFile(strictFile("edge", "typo"))
		e := r.connect(typoNode)
		want("its Envoy has connected")
		e.leave()
		r.source.name(nil)
		want("the names are not known")
	})
}

// While the directory is bad or ACLs hide names, a gateway without an Envoy here may exist.
func TestSettingsAreKeptWhileTheNamesAreNotKnown(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		first := r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		off := first.listener(t, anyAddress).Version()
		first.leave()
		time.Sleep(time.Minute) // the gateway is forgotten
		r.source.name([]string{"edge"})
		r.plane.SetConfigFile(strictFile("edge"))
		r.plane.SetConfigFile(strictFile("edgee"))
		r.source.name(nil)
		r.connect(xds.Node{ID: "other", Cluster: "other"})
		var unknown []string
		for _, p := range r.problems.Current() {
			unknown = append(unknown, p.String())
		}
		const want = `usher.hcl:1: gateway "edgee": Usher cannot see which ingress gateways exist, and no Envoy of one with this name is connected; check the name; ` +
			`until this is corrected, "edge", whose block is gone, keeps the settings that it had`
		if !slices.Equal(unknown, []string{want}) {
			t.Errorf("the problems are %q, want %q", unknown, want)
		}
		r.source.name(nil)
		e := r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		if e.listener(t, anyAddress).Version() == off {
			t.Error("the gateway has lost its settings while the names were not known")
		}
	})
}

// An Envoy that connects changes what is known; the other gateways' settings stay.
func TestWhatIsKeptEndsWhenTheNameIsKnown(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		off := e.listener(t, anyAddress).Version()
		r.plane.SetConfigFile(strictFile("edge"))
		r.plane.SetConfigFile(strictFile("typo")) // the names are not known
		synctest.Wait()
		if e.listener(t, anyAddress).Version() == off {
			t.Error("the gateway has lost its settings, although the other one is not known")
		}
		r.connect(typoNode)
		if e.listener(t, anyAddress).Version() != off {
			t.Error("the block is that of another gateway, and the settings that are gone still count")
		}
	})
}

// A block for a gateway that is registered later is no other one, misspelt.
func TestABlockThatWasThereBeforeKeepsNoSettings(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		e := r.connect(edge)
		r.put(snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"}))
		off := e.listener(t, anyAddress).Version()
		r.source.name([]string{"edge"})
		r.plane.SetConfigFile(strictFile("later"))
		r.plane.SetConfigFile(strictFile("later", "edge"))
		synctest.Wait()
		if e.listener(t, anyAddress).Version() == off {
			t.Fatal("the settings have no effect")
		}
		r.plane.SetConfigFile(strictFile("later"))
		synctest.Wait()
		if e.listener(t, anyAddress).Version() != off {
			t.Error("the settings of a block that is gone still count")
		}
	})
}
