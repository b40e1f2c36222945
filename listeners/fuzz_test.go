package listeners

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/golden"
)

// FuzzCompile damages a case's snapshot in the ways that a seed says, anywhere
// and several times, and compiles it. Compile must not panic, and Envoy's
// validators must take whatever it builds.
func FuzzCompile(f *testing.F) {
	cases := casesAsJSON(f)
	for i := range cases {
		f.Add(uint(i), uint64(i))
	}
	f.Fuzz(func(t *testing.T, which uint, seed uint64) {
		compileDamaged(t, cases[which%uint(len(cases))], seed)
	})
}

func TestADamagedSnapshotIsCompiled(t *testing.T) {
	for _, in := range casesAsJSON(t) {
		for seed := range uint64(40) {
			compileDamaged(t, in, seed)
		}
	}
}

func casesAsJSON(t testing.TB) [][]byte {
	t.Helper()
	var cases [][]byte
	for _, name := range golden.Cases(t, testdata) {
		in, err := toJSON(golden.Input(t, testdata, name))
		if err != nil {
			t.Fatal(err)
		}
		cases = append(cases, in)
	}
	return cases
}

// releases are the releases of Envoy that the fuzz targets compile for.
var releases = []gateway.EnvoyVersion{{}, {Major: 1, Minor: 22}}

// compileDamaged compiles a damaged snapshot. It does nothing if no source could have
// read it.
func compileDamaged(t *testing.T, in []byte, seed uint64) {
	t.Helper()
	if s, ok := damagedSnapshot(t, in, seed); ok {
		compileAll(t, s)
	}
}

func compileAll(t *testing.T, s *gateway.Snapshot) {
	t.Helper()
	for _, instance := range s.Instances {
		for _, e := range releases {
			checkResources(t, compile(s, instance, e))
		}
	}
}

// FuzzChain compiles a gateway whose service has the discovery chain in the text. The
// text is in Consul's form.
func FuzzChain(f *testing.F) {
	for _, name := range golden.Cases(f, testdata) {
		s, _, err := parseFixture(golden.Input(f, testdata, name))
		if err != nil {
			f.Fatal(err)
		}
		for _, chain := range s.Chains {
			text, err := json.Marshal(chain)
			if err != nil {
				f.Fatal(err)
			}
			if len(text) < 2000 {
				f.Add(string(text), "http")
			}
		}
	}
	for _, text := range []string{
		`{"StartNode": "a", "Nodes": {"a": {"Type": "router", "Routes": [null, {"NextNode": "a"}]}}}`,
		`{"StartNode": "a", "Nodes": {"a": {"Type": "splitter", "Splits": [{"Weight": -1, "NextNode": "b"}, {"Weight": 1e9, "NextNode": "a"}]}, "b": null}}`,
		`{"StartNode": "a", "Nodes": {"a": {"Type": "resolver", "Resolver": {"Target": "t", "Failover": {"Targets": ["t", "u", null]}}}}, "Targets": {"t": null}}`,
	} {
		f.Add(text, "tcp")
	}
	f.Fuzz(func(t *testing.T, text, protocol string) {
		var chain *gateway.Chain
		if json.Unmarshal([]byte(text), &chain) != nil || chain == nil {
			return
		}
		s := oneService(protocol)
		s.Chains[s.Services[0].Service] = chain
		for id := range chain.Targets {
			s.Endpoints = s.Endpoints.With(id, &gateway.Endpoints{Endpoints: []gateway.Endpoint{{Address: "10.0.0.1", Port: 80}}})
		}
		compileAll(t, s)
	})
}

// oneService is a gateway with one service on a listener, in plain mode.
func oneService(protocol string) *gateway.Snapshot {
	return &gateway.Snapshot{
		ID: gateway.ID{Name: "edge"}, Datacenter: "dc1", Plain: true,
		Entry: &gateway.Entry{Name: "edge", Listeners: []gateway.Listener{
			{Port: 8080, Protocol: protocol, Services: []gateway.ListenerService{{Name: "web"}}},
		}},
		Services:  []gateway.Service{{Service: gateway.ServiceName{Name: "web"}, Port: 8080, Protocol: protocol}},
		Chains:    map[gateway.ServiceName]*gateway.Chain{{Name: "web"}: {ServiceName: "web", Protocol: protocol, StartNode: "none"}},
		Instances: []*gateway.Instance{{Node: "a", ServiceID: "edge"}},
	}
}

// FuzzAccessLog compiles a gateway with the text as the operator's access_log, and with
// these formats in proxy-defaults.
func FuzzAccessLog(f *testing.F) {
	for _, in := range casesAsJSON(f) {
		var found struct {
			Usher struct {
				FileAll, ProxyDefaults, FileGateway struct {
					AccessLog any `json:"access_log"`
				}
			}
		}
		if json.Unmarshal(in, &found) != nil {
			continue // a list there means its element
		}
		for _, log := range []any{found.Usher.FileAll.AccessLog, found.Usher.ProxyDefaults.AccessLog, found.Usher.FileGateway.AccessLog} {
			if text, err := json.Marshal(log); err == nil && log != nil {
				f.Add(string(text), "", "")
			}
		}
	}
	for _, text := range []string{
		`{"format": {"text": "%REQ(X?Y):5% %START_TIME(%Y)% %DYNAMIC_METADATA(a:b)% %"}}`, `{"format": {"json": {"a": {"b": ["%BYTES_SENT%", 1, null]}}}}`,
		`{"expression": "response.code >= 400 && has(request.headers['a'])"}`, `{"expression": "((((("}`, `{"expression": "[1, 2].all(x, x > 0)"}`, `{"expression": "'a'.matches('(')"}`,
		`{"header": {"name": "x", "value": "y"}, "status_at_least": 500, "duration_at_least": "1s", "response_flags": ["UH"], "sample_per_mille": 10, "health_checks": "omit", "rejected": "all", "redact_query": "yes"}`,
		`{"sinks": [{"file": {"path": "/x"}}, {"otlp": {"address": "collector:4317"}}]}`,
	} {
		f.Add(text, "", "")
	}
	f.Add("{}", "%REQ(:path)%\n%", `{"a": "%PROTOCOL%", "b": {"c": 1}}`)
	f.Add("{}", "", `{"a": "\u12`)
	f.Fuzz(func(t *testing.T, own, text, object string) {
		var raw any
		if json.Unmarshal([]byte(own), &raw) != nil {
			return
		}
		s := oneService("http")
		in := s.Instances[0]
		in.AccessLogs = gateway.AccessLogs{Enabled: true, TextFormat: text, JSONFormat: object}
		var problems []problem.Problem
		in.Registration, problems = settings.Layer{}.Update("the registration", map[string]any{"access_log": raw})
		if len(problems) == 0 {
			compileAll(t, s)
		}
	})
}

// damagedSnapshot returns a snapshot with up to eight places of it damaged, or
// false when it does not decode any more.
func damagedSnapshot(t *testing.T, in []byte, seed uint64) (*gateway.Snapshot, bool) {
	t.Helper()
	var tree any
	if err := json.Unmarshal(in, &tree); err != nil {
		t.Fatal(err)
	}
	d := damager{rand.New(rand.NewPCG(seed, 0))}
	for range 1 + d.IntN(8) {
		tree = d.damage(tree)
	}
	out, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := decodeFixture(out)
	if err != nil || slices.Contains(s.Instances, nil) {
		return nil, false
	}
	return s, true
}

// damager changes one place of a JSON tree at a time.
type damager struct{ *rand.Rand }

// odd are values that decode, and make little sense.
var (
	oddStrings = []any{
		"", "x", "*", "a b\nc", "::1", "::", "tcp", "http2", "grpc", "router", "splitter", "resolver", "strict",
		"5s", "-5s", "failover-target~0~x", "sequential", "ring_hash", "cookie", "(", "[::1]:80", "%", "default", "\x00",
	}
	oddNumbers = []any{-1, 0, 1, 2, 100, 65535, 65536, 1e9}
	oddBools   = []any{true, false}
)

func (d damager) damage(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 || d.IntN(40) == 0 {
			return nil
		}
		key := slices.Sorted(maps.Keys(v))[d.IntN(len(v))]
		if d.IntN(12) == 0 {
			delete(v, key)
			return v
		}
		v[key] = d.damage(v[key])
		return v
	case []any:
		if len(v) == 0 || d.IntN(40) == 0 {
			return nil
		}
		i := d.IntN(len(v))
		if d.IntN(12) == 0 {
			return append(v, v[i])
		}
		v[i] = d.damage(v[i])
		return v
	case string:
		return oddStrings[d.IntN(len(oddStrings))]
	case float64:
		return oddNumbers[d.IntN(len(oddNumbers))]
	case bool:
		return oddBools[d.IntN(len(oddBools))]
	}
	return v
}
