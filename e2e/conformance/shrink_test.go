//go:build e2e

package conformance

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/e2e/lab"
)

// How long shrinking may take, and how long a smaller case has to settle.
const (
	shrinkDeadline = 3 * time.Minute
	shrinkSettle   = 500 * time.Millisecond
)

// shrink takes out of a case whatever a fresh Envoy's difference does not need.
func (s *suite) shrink(t *testing.T, c lab.GatewayCase) lab.GatewayCase {
	t.Helper()
	end := time.Now().Add(shrinkDeadline)
	for i := 0; time.Now().Before(end); {
		smaller, err := cutPart(c, i)
		switch {
		case err != nil:
			t.Errorf("shrink: %v", err)
			return c
		case smaller == nil:
			return c
		case s.differs(t, *smaller):
			c = *smaller
		default:
			i++
		}
	}
	return c
}

// differs reports whether Consul takes a case, and a fresh Envoy gets from Usher
// something else than from Consul.
func (s *suite) differs(t *testing.T, c lab.GatewayCase) bool {
	t.Helper()
	s.consul.reset(t)
	if err := s.consul.load(c); err != nil {
		return false
	}
	want, stopOwn, err := s.askConsul(t, c.Nothing)
	if err != nil {
		return false
	}
	defer stopOwn()
	fresh, stop := connect(t, s.usher)
	defer stop()
	_, err = s.awaitEqual(fresh, want, shrinkSettle)
	return err != nil
}

// cutPart returns the case without its ith part, nil when it has no such part.
func cutPart(c lab.GatewayCase, i int) (*lab.GatewayCase, error) {
	whole, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	var parts tree
	if err := json.Unmarshal(whole, &parts); err != nil {
		return nil, err
	}
	all := cuts(parts)
	if i >= len(all) {
		return nil, nil
	}
	rest, err := json.Marshal(all[i])
	if err != nil {
		return nil, err
	}
	smaller := &lab.GatewayCase{Name: c.Name}
	return smaller, json.Unmarshal(rest, smaller)
}

// cuts returns every tree that lacks one key or one element, large cuts first.
func cuts(t tree) []tree {
	var out []tree
	switch t := t.(type) {
	case []any:
		for i := range t {
			out = append(out, slices.Delete(slices.Clone(t), i, i+1))
		}
		for i := range t {
			for _, inner := range cuts(t[i]) {
				with := slices.Clone(t)
				with[i] = inner
				out = append(out, with)
			}
		}
	case map[string]any:
		keys := slices.Sorted(maps.Keys(t))
		for _, key := range keys {
			with := maps.Clone(t)
			delete(with, key)
			out = append(out, with)
		}
		for _, key := range keys {
			for _, inner := range cuts(t[key]) {
				with := maps.Clone(t)
				with[key] = inner
				out = append(out, with)
			}
		}
	}
	return out
}

func TestCutsTakeOneKeyOrElement(t *testing.T) {
	got := cuts(map[string]any{"a": []any{1.0, map[string]any{"b": 2.0}}})
	want := []tree{
		map[string]any{},
		map[string]any{"a": []any{map[string]any{"b": 2.0}}},
		map[string]any{"a": []any{1.0}},
		map[string]any{"a": []any{1.0, map[string]any{}}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("cuts (-want +got):\n%s", d)
	}
}
