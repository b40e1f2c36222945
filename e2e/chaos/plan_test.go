package chaos

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const planned = 10 * time.Minute

const seeds uint64 = 20

func allKinds(t *testing.T) []Kind {
	t.Helper()
	kinds, err := Kinds("")
	if err != nil {
		t.Fatal(err)
	}
	return kinds
}

// plans are those of many seeds.
var plans = sync.OnceValue(func() (all [][]Step) {
	kinds, _ := Kinds("") // none of them is unknown
	for seed := range seeds {
		all = append(all, Plan(seed, planned, kinds))
	}
	return all
})

// forSeeds calls f with the plans of many seeds.
func forSeeds(t *testing.T, f func(seed uint64, steps []Step)) {
	t.Helper()
	for seed, steps := range plans() {
		f(uint64(seed), steps)
	}
}

func TestASeedGivesTheSameSteps(t *testing.T) {
	forSeeds(t, func(seed uint64, steps []Step) {
		if diff := cmp.Diff(steps, Plan(seed, planned, allKinds(t))); diff != "" {
			t.Errorf("seed %d: %s", seed, diff)
		}
	})
	if cmp.Equal(Plan(1, planned, allKinds(t)), Plan(2, planned, allKinds(t))) {
		t.Error("two seeds have the same steps")
	}
}

func TestAllKindsComeAndEndInTime(t *testing.T) {
	seen := map[Kind]bool{}
	forSeeds(t, func(seed uint64, steps []Step) {
		for _, s := range steps {
			seen[s.Kind] = true
			if s.At+s.Hold > planned {
				t.Errorf("seed %d: %v at %v ends too late", seed, s, s.At)
			}
		}
	})
	for _, kind := range allKinds(t) {
		if !seen[kind] {
			t.Errorf("no seed has a %s", kind)
		}
	}
}

func TestTwoMinutesHaveManySteps(t *testing.T) {
	for seed := range seeds {
		if n := len(Plan(seed, 2*time.Minute, allKinds(t))); n < 40 {
			t.Errorf("seed %d has %d steps in two minutes", seed, n)
		}
	}
}

// state is what is away while the events of a plan happen one after the other.
type state struct {
	away map[string]int // by what
	held int
}

func (s *state) apply(e Event) {
	d := 1
	if e.Lift {
		d = -1
	}
	if e.Step.Hold > 0 {
		s.held += d
	}
	switch e.Step.Kind {
	case KillConsul, StopConsul:
		s.away["a server"] += d
	case KillAllConsul, StopAllConsul:
		s.away["all servers"] += d
	case ShortLeaf:
		s.away["long certificates"] += d
	case KillUsher, RestartUsher, StopUsher:
		s.away[ruleOf(StopUsher).target(e.Step.Target)] += d
	case KillEnvoy, StopEnvoy:
		s.away[ruleOf(StopEnvoy).target(e.Step.Target)] += d
	case RestoreSnapshot:
		s.away["a snapshot"] += d
	case InvalidFile:
		s.away[fileOf(e.Step)] += d
	}
}

func fileOf(s Step) string { return fmt.Sprint("the file of usher ", s.Target+1) }

func TestWhatMustNotMeet(t *testing.T) {
	mostHeld, writesBesideAServer := 0, false
	forSeeds(t, func(seed uint64, steps []Step) {
		s := state{away: map[string]int{}}
		for _, e := range Events(steps) {
			if ruleOf(e.Step.Kind).writes {
				writesBesideAServer = writesBesideAServer || s.away["a server"] > 0
				if s.away["all servers"] > 0 {
					t.Fatalf("seed %d: %v at %v writes to Consul, which is away", seed, e.Step, e.At)
				}
			}
			if e.Step.Kind == RotateCA && s.away["a snapshot"] > 0 {
				t.Fatalf("seed %d: %v at %v between a snapshot and its restore", seed, e.Step, e.At)
			}
			if (e.Step.Kind == KillUsher || e.Step.Kind == RestartUsher) && e.Lift && s.away[fileOf(e.Step)] > 0 {
				t.Fatalf("seed %d: an Usher starts at %v without its file", seed, e.At)
			}
			s.apply(e)
			if s.away["a server"]+s.away["all servers"] > 1 {
				t.Fatalf("seed %d: two of the servers are away at %v", seed, e.At)
			}
			if s.away["all servers"]+s.away["long certificates"] > 1 {
				t.Fatalf("seed %d: certificates expire in an outage at %v", seed, e.At)
			}
			for what, n := range s.away {
				if n > 1 {
					t.Fatalf("seed %d: two steps have %s at %v", seed, what, e.At)
				}
			}
			mostHeld = max(mostHeld, s.held)
		}
	})
	if mostHeld != faultsAtOnce {
		t.Errorf("at most %d faults at once, want %d", mostHeld, faultsAtOnce)
	}
	if !writesBesideAServer {
		t.Error("nothing is written while a server is away")
	}
}

func TestOneUsherIsNeverKilled(t *testing.T) {
	forSeeds(t, func(seed uint64, steps []Step) {
		for _, s := range steps {
			if (s.Kind == KillUsher || s.Kind == RestartUsher) && s.Target == Survivor(seed) {
				t.Fatalf("seed %d: %v", seed, s)
			}
		}
	})
	if Survivor(1) == Survivor(2) {
		t.Error("it is the same one for all seeds")
	}
}

func TestChosenKinds(t *testing.T) {
	kinds, err := Kinds("kill-usher,restore-snapshot")
	if err != nil {
		t.Fatal(err)
	}
	steps := Plan(1, planned, kinds)
	for _, s := range steps {
		if !slices.Contains(kinds, s.Kind) {
			t.Errorf("%v was not chosen", s)
		}
	}
	if len(steps) < 20 {
		t.Errorf("%d steps in ten minutes", len(steps))
	}
	if _, err := Kinds("kill-usher,reboot"); err == nil {
		t.Error("an unknown action is accepted")
	}
}

func TestAStepIsPrinted(t *testing.T) {
	for want, s := range map[string]Step{
		"kill-consul server 2 for 1.5s": {Kind: KillConsul, Target: 1, Hold: 1500 * time.Millisecond},
		"stop-consul the leader for 2s": {Kind: StopConsul, Target: Leader, Hold: 2 * time.Second},
		"rotate-ca":                     {Kind: RotateCA},
		"stop-envoy envoy 4 for 1s":     {Kind: StopEnvoy, Target: 3, Hold: time.Second},
	} {
		if s.String() != want {
			t.Errorf("%q, want %q", s, want)
		}
	}
}
