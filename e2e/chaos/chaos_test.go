//go:build e2e

package chaos

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
)

// TestChaos makes the faults and changes of a seed under load. No request fails that did not go to an Envoy or an
// instance which was killed or stopped, and every service gets the client's address. Afterwards, all Envoys have what
// Consul says, and the Ushers use no more than before.
func TestChaos(t *testing.T) {
	seed, length, kinds := settings(t)
	steps := Plan(seed, length, kinds)
	t.Logf("CHAOS_SEED=%d CHAOS_TIME=%v CHAOS_ACTIONS=%s: %d actions", seed, length, os.Getenv("CHAOS_ACTIONS"), len(steps))
	w := startWorld(t)
	defer w.keepLogs()
	w.startTraffic()
	defer w.reportTraffic()
	lab.WaitForAll(t, w.allLoads(), 5*time.Second)
	w.wantSettled()
	_, before, err := w.footprints()
	if err != nil {
		t.Fatal(err)
	}
	w.run(steps)
	w.wantSettled()
	lab.WaitForAll(t, w.allLoads(), 5*time.Second)
	w.wantNoLeak(before)
	w.wantNoPanic(t)
}

// settings are those of the environment.
func settings(t *testing.T) (seed uint64, length time.Duration, kinds []Kind) {
	t.Helper()
	seed, length = rand.Uint64N(1_000_000), 2*time.Minute
	var err error
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CHAOS_SEED: %v", err)
		}
	}
	if text := os.Getenv("CHAOS_TIME"); text != "" {
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("CHAOS_TIME: %v", err)
		}
	}
	if kinds, err = Kinds(os.Getenv("CHAOS_ACTIONS")); err != nil {
		t.Fatalf("CHAOS_ACTIONS: %v", err)
	}
	return seed, length, kinds
}

// TestAllKindsAreActions wants what a plan may have to be there, with an end where the plan has one.
func TestAllKindsAreActions(t *testing.T) {
	for _, r := range rules {
		a, ok := actions[r.kind]
		if !ok || a.begin == nil || (a.lift != nil) != (r.max > 0) {
			t.Errorf("%s: %+v", r.kind, a)
		}
	}
	if len(actions) != len(rules) {
		t.Errorf("%d actions for %d kinds", len(actions), len(rules))
	}
}
