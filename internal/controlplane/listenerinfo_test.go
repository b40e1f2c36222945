package controlplane

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/xds"
)

// wantListeners compares the series of usher_listener_info, without the name and the gateway.
func (r *testPlane) wantListeners(when string, want ...string) {
	r.t.Helper()
	synctest.Wait()
	text, err := testutil.CollectAndFormat(r.metrics, expfmt.TypeTextPlain, "usher_listener_info")
	if err != nil {
		r.t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(text)) {
		if series, found := strings.CutPrefix(line, `usher_listener_info{gateway="edge",`); found {
			got = append(got, strings.TrimSuffix(series, "} 1\n"))
		}
	}
	if !slices.Equal(got, want) {
		r.t.Errorf("%s: got\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestListenerInfoHasTheModeInForceAndItsPlace(t *testing.T) {
	const inFile = `mode="strict",port="8080",source="usher.hcl:1: usher.proxy_protocol.mode"`
	inBubble(t, func(_ *testing.T, r *testPlane) {
		good := snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"})
		r.connect(edge)
		r.put(good)
		r.wantListeners("without settings", `mode="off",port="8080",source="the default"`)
		r.plane.SetConfigFile(strictFile("edge"))
		r.wantListeners("in the config file", inFile)

		heldBack := *good
		heldBack.Chains = nil
		r.put(&heldBack)
		r.plane.SetConfigFile(settings.File{Gateways: map[string]settings.Layer{"edge": layerWith(settings.Off)}})
		r.wantListeners("held back, with what it had", inFile)
		withoutEntry := *good
		withoutEntry.Entry = nil
		r.put(&withoutEntry)
		r.wantListeners("without its entry")
		r.put(good)
		r.plane.SetConfigFile(strictFile("edge"))
		r.wantListeners("again", inFile)
	})
}

// TestListenerInfoIsOneSeriesForEachMode has more instances than modes, each with a setting of its registration.
func TestListenerInfoIsOneSeriesForEachMode(t *testing.T) {
	inBubble(t, func(_ *testing.T, r *testPlane) {
		s := instancesWith(settings.Strict, settings.Off, settings.Strict, settings.Strict)
		for _, in := range s.Instances {
			in.Registration.Where = "service " + in.ServiceID
			r.connect(xds.Node{ID: in.ServiceID, Cluster: "edge"})
		}
		r.put(s)
		r.wantListeners("two modes",
			`mode="off",port="8080",source="service edge1: usher.proxy_protocol.mode"`,
			`mode="strict",port="8080",source="service edge2: usher.proxy_protocol.mode and others"`,
		)
	})
}
