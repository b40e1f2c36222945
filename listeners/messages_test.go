package listeners

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/golden"
	"github.com/usherproxy/usher/internal/testing/messages"
)

// The page has every problem of the golden cases, on old Envoys as well, and of
// snapshots with one mistake each.
func TestMessages(t *testing.T) {
	var all []string
	add := func(r *Resources) {
		for _, p := range r.Problems {
			all = append(all, p.String())
		}
	}
	for _, name := range golden.Cases(t, testdata) {
		in := golden.Input(t, testdata, name)
		for _, c := range compileFixture(t, in) {
			add(c.resources)
		}
		s, _ := mustParse(t, in)
		add(compile(s, s.Instances[0], gateway.EnvoyVersion{Major: 1, Minor: 31}))
	}
	for _, m := range mistakes(t) {
		add(compile(m, m.Instances[0], gateway.EnvoyVersion{}))
	}
	forged := oneService("http")
	if err := json.Unmarshal([]byte(`{"StartNode": "r", "Nodes": {`+ok), forged.Chains[forged.Services[0].Service]); err != nil {
		t.Fatal(err)
	}
	forged.FileGateway.Settings.ProxyProtocol = settings.ProxyProtocol{
		Mode: settings.Strict, TrustedCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	}
	add(compile(forged, forged.Instances[0], gateway.EnvoyVersion{Major: 1, Minor: 24}))
	_, err := proxyProtocolFilter(listenerParams{settings: settings.Listener{ProxyProtocol: settings.ProxyProtocol{Mode: "loose"}}}, "")
	messages.Check(t, append(all, err.Error()), "fmt.Errorf", "errors.New", "problem.Problem", "refuse", "envoy.Requires")
}

// mistakes are snapshots with one mistake each.
func mistakes(t *testing.T) []*gateway.Snapshot {
	t.Helper()
	var all []*gateway.Snapshot
	for text, protocol := range map[string]string{
		`{"StartNode": "a"}`: "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "tree"}}}`:                                                        "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "router", "Routes": [null]}}}`:                                    "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "router", "Routes": [{"NextNode": "b"}]}}}`:                       "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "splitter", "Splits": [null]}}}`:                                  "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "splitter", "Splits": [{"NextNode": "b"}]}}}`:                     "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "splitter", "Splits": [{"NextNode": "a"}]}}}`:                     "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "splitter", "Splits": [{"NextNode": "r", "Weight": 101}]}, ` + ok: "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "splitter", "Splits": [{"NextNode": "r", "Weight": 0}]}, ` + ok:   "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "resolver", "Resolver": {"Target": "x"}}}}`:                       "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "resolver", "Resolver": {"Target": "t"}}}, "Targets": {"t": {}}}`: "http",
		`{"StartNode": "a", "Nodes": {"a": null}}`:                                                                    "tcp",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "router"}, ` + ok:                                                 "tcp",
		`{"StartNode": "r", "Nodes": {"r": {"Type": "resolver", "Resolver": {"Target": "t", "Failover": {"Targets": ["x"]}}}},
			"Targets": {"t": {"Name": "t"}}}`: "tcp",
		`{"StartNode": "r", "Nodes": {"r": {"Type": "resolver", "Resolver": {"Target": "t"},
			"LoadBalancer": {"Policy": "maglev", "HashPolicies": [{"Field": "color"}]}}}, "Targets": {"t": {"Name": "t"}}}`: "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "router", "Routes": [{"NextNode": "r", "Definition":
			{"Match": {"HTTP": {"QueryParam": [{"Name": "q"}]}}}}]}, ` + ok: "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "router", "Routes": [{"NextNode": "r", "Definition":
			{"Destination": {"RequestHeaders": {"Add": {"a\nb": "c"}}}}}]}, ` + ok: "http",
		`{"StartNode": "a", "Nodes": {"a": {"Type": "router", "Routes": [{"NextNode": "r", "Definition":
			{"Destination": {"ResponseHeaders": {"Set": {"x-port": "%PROTOCOL(x)%"}}}}}]}, ` + ok: "http",
	} {
		s := oneService(protocol)
		if err := json.Unmarshal([]byte(text), s.Chains[s.Services[0].Service]); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		all = append(all, s)
	}
	for _, mistake := range []func(s *gateway.Snapshot, e *gateway.Entry, l *gateway.Listener){
		func(s *gateway.Snapshot, _ *gateway.Entry, l *gateway.Listener) { s.Services[0].Port, l.Port = 0, 0 },
		func(s *gateway.Snapshot, _ *gateway.Entry, _ *gateway.Listener) { s.Services[0].Service.Name = "" },
		func(s *gateway.Snapshot, _ *gateway.Entry, _ *gateway.Listener) {
			s.Plain, s.Roots = false, &gateway.Roots{TrustDomain: "td", PEMs: []string{"a root"}}
		},
		func(_ *gateway.Snapshot, _ *gateway.Entry, l *gateway.Listener) {
			l.Services[0].TLS = &gateway.ServiceTLS{SDS: &gateway.SDS{CertResource: "web"}}
		},
		func(_ *gateway.Snapshot, _ *gateway.Entry, l *gateway.Listener) {
			l.Services[0].Hosts, l.Services[0].TLS = []string{"web.example.com"}, &gateway.ServiceTLS{SDS: &gateway.SDS{CertResource: "web"}}
		},
		func(_ *gateway.Snapshot, e *gateway.Entry, _ *gateway.Listener) {
			e.TLS = gateway.TLS{SDS: &gateway.SDS{ClusterName: "sds", CertResource: "web"}, TLSMaxVersion: "1.2"}
		},
		inMesh(gateway.TLSParameters{TLSMinVersion: "1.2"}),
		inMesh(gateway.TLSParameters{ECDHCurves: []string{"P-256", "secp256r1"}}),
	} {
		s := oneService("http")
		if err := json.Unmarshal([]byte(`{"StartNode": "r", "Nodes": {`+ok), s.Chains[s.Services[0].Service]); err != nil {
			t.Fatal(err)
		}
		mistake(s, s.Entry, &s.Entry.Listeners[0])
		all = append(all, s)
	}
	return all
}

// ok is the rest of a chain with a good resolver.
const ok = `"r": {"Type": "resolver", "Resolver": {"Target": "t"}}}, "Targets": {"t": {"Name": "t"}}}`

// inMesh puts the gateway into a mesh with these parameters of TLS.
func inMesh(outgoing gateway.TLSParameters) func(*gateway.Snapshot, *gateway.Entry, *gateway.Listener) {
	return func(s *gateway.Snapshot, _ *gateway.Entry, _ *gateway.Listener) {
		s.Plain, s.Leaf, s.Roots = false, &gateway.Leaf{}, &gateway.Roots{TrustDomain: "td", PEMs: []string{"a root"}}
		s.Mesh = &gateway.Mesh{TLS: &gateway.MeshTLS{Outgoing: &outgoing}}
	}
}
