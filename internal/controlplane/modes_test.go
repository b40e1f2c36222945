package controlplane

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/usherproxy/usher/internal/configfile"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/status"
	"github.com/usherproxy/usher/xds"
)

func TestAChangeOfTheModeIsLogged(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		both := []*gateway.Instance{{Node: "a", ServiceID: "edge"}, {Node: "b", ServiceID: "edge-2"}}
		first := r.connect(xds.Node{ID: "edge-2", Cluster: "edge"})
		r.put(snapshot(both...))
		r.connect(edge)
		first.leave()
		synctest.Wait()
		file := filepath.Join(t.TempDir(), "usher.hcl")
		set := func(text string) {
			t.Helper()
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := configfile.Open(file, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.plane.SetConfigFile(f.Content())
			synctest.Wait()
		}
		want := func(lines ...string) {
			t.Helper()
			var got []string
			for _, line := range linesWithoutTime(r.log.String()) {
				if strings.Contains(line, "proxy_protocol.mode of a listener changed") {
					got = append(got, strings.ReplaceAll(line, file, "FILE"))
				}
			}
			for i, line := range lines {
				lines[i] = `level=INFO msg="proxy_protocol.mode of a listener changed" gateway=edge port=8080 ` + line
			}
			if !slices.Equal(got, lines) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
			}
		}
		want() // it had none before
		const general, own, port = "from=off to=permissive where=FILE:2 instances=1", "from=permissive to=strict where=FILE:4 instances=1", "from=strict to=off where=FILE:6 instances=1"
		set("usher {\n  proxy_protocol { mode = \"permissive\" }\n}\n")
		want(general)
		const strict = "usher {\n  proxy_protocol { mode = \"permissive\" }\n}\ngateway \"edge\" { usher { proxy_protocol { mode = \"strict\" } } }\n"
		set(strict)
		want(general, own)
		set("# moved\n" + strict)
		want(general, own)
		set(strings.Replace(strict, "usher { proxy", "usher {\n\n listeners { \"8080\" { proxy_protocol { mode = \"off\" } } }\nproxy", 1))
		want(general, own, port)
		// It is held back, and keeps the mode that it has.
		set(strings.Replace(strict, `mode = "strict"`, `mode = "strict" tlvs = [{ type = 224, name = "path" }]`, 1))
		want(general, own, port)
		set("")
		want(general, own, port)
	})
}

// What holds a listener back may end without a change of settings.
func TestAChangeOfTheModeIsLoggedWhenTheListenerIsNoLongerHeldBack(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		good := snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"})
		r.connect(edge)
		r.put(good)
		bad := *good
		bad.Chains = nil
		r.put(&bad)
		r.plane.SetConfigFile(strictFile("edge"))
		synctest.Wait()
		const message = "proxy_protocol.mode of a listener changed"
		if strings.Contains(r.log.String(), message) {
			t.Errorf("the listener is held back, and the log says that its mode changed:\n%s", &r.log)
		}
		r.put(good)
		if want := message + `" gateway=edge port=8080 from=off to=strict where="usher.hcl:1: usher.proxy_protocol.mode" instances=1`; strings.Count(r.log.String(), want) != 1 {
			t.Errorf("the log does not have %s once:\n%s", want, &r.log)
		}
	})
}

// An event about streams costs no settings of listeners that were there before.
func TestOnlyListenersThatAreNoLongerHeldBackAreResolvedAgain(t *testing.T) {
	in := &gateway.Instance{Node: "a", ServiceID: "edge"}
	s := snapshot(in)
	s.Entry.Listeners = append(slices.Clone(s.Entry.Listeners), gateway.Listener{Port: 81, Protocol: "tcp"}, gateway.Listener{Port: 82, Protocol: "tcp"})
	of := func(port int) listenerOf { return listenerOf{registeredOn{"a", "edge"}, port} }
	stays := modeInForce{Mode: settings.Strict, where: "before"}
	m := modes{
		inForce:  map[listenerOf]modeInForce{of(8080): stays, of(81): stays, of(82): stays},
		heldBack: map[listenerOf]bool{of(81): true, of(82): true},
	}
	served := map[envoyKey]bool{keyOf(in, edge): true}
	changes := m.update(s, served, map[listenerOf]bool{of(82): true}, false)
	if m.inForce[of(8080)] != stays || m.inForce[of(82)] != stays || m.inForce[of(81)].Mode != settings.Off || len(changes) != 1 {
		t.Errorf("%+v with the changes %v; want only port 81 off", m.inForce, changes)
	}
	if m.update(s, served, nil, true); m.inForce[of(8080)].Mode != settings.Off || m.inForce[of(82)].Mode != settings.Off {
		t.Errorf("all are outdated: %+v", m.inForce)
	}
}

func TestNoModeIsInForceWithoutAnEnvoy(t *testing.T) {
	const place = "proxy-defaults: usher.proxy_protocol.mode"
	const series = `mode="strict",port="8080",source="` + place + `"`
	inBubble(t, func(_ *testing.T, r *testPlane) {
		clients := []*xds.Client{client("edge", "a")}
		s := snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"})
		s.ProxyDefaults = layerWith(settings.Strict)
		s.ProxyDefaults.Where = "proxy-defaults"
		e := r.connect(edge)
		r.put(s)
		r.wantListeners("with an Envoy", series)
		e.leave()
		r.wantListeners("without one")
		r.wantGateways("without one", nil, edgeStatus(0, 1, onPort8080(place, status.Mode{Asked: "strict", Built: status.Current})))

		bad := *s
		bad.Chains = nil
		r.put(&bad)
		r.connect(edge)
		r.wantListeners("again, with the last valid version", series)
		r.wantGateways("again, with the last valid version", clients, edgeStatus(1, 1, onPort8080(place, status.Mode{
			Asked: "strict", InForce: "strict", Built: status.Kept, Reason: "it cannot be built, and its last valid version stays; the problems say why",
		})))
	})
}
