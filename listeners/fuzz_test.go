package listeners

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/usherproxy/usher/gateway"
	"github.com/usherproxy/usher/internal/golden"
)

// FuzzCompile damages a case's snapshot in the ways that a seed says, anywhere
// and several times, and compiles it. Compile must not panic, and Envoy's
// validators must take whatever it builds.
func FuzzCompile(f *testing.F) {
	var cases [][]byte
	for i, name := range golden.Cases(f, testdata) {
		in, err := toJSON(golden.Input(f, testdata, name))
		if err != nil {
			f.Fatal(err)
		}
		cases = append(cases, in)
		for seed := range uint64(40) {
			f.Add(uint(i), seed)
		}
	}
	f.Fuzz(func(t *testing.T, which uint, seed uint64) {
		s, ok := damagedSnapshot(t, cases[which%uint(len(cases))], seed)
		if !ok {
			t.Skip("the damage is such that no source could have read it")
		}
		for _, instance := range s.Instances {
			for _, e := range []gateway.Envoy{{}, {Major: 1, Minor: 22}} {
				checkResources(t, Compile(s, instance, e))
			}
		}
	})
}

// damagedSnapshot gives a snapshot with up to eight places of it damaged, or
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
