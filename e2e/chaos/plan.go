package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is a kind of action, as CHAOS_ACTIONS takes it.
type Kind string

// The kinds of actions.
const (
	KillConsul      Kind = "kill-consul"     // SIGKILL one server, and start it again
	StopConsul      Kind = "stop-consul"     // SIGSTOP one server, and SIGCONT
	KillAllConsul   Kind = "kill-all-consul" // the same with all servers at once
	StopAllConsul   Kind = "stop-all-consul"
	KillUsher       Kind = "kill-usher"
	RestartUsher    Kind = "restart-usher" // SIGTERM, and start it again
	StopUsher       Kind = "stop-usher"
	KillEnvoy       Kind = "kill-envoy"
	StopEnvoy       Kind = "stop-envoy"
	KillInstance    Kind = "kill-instance" // the sidecar of a service's instance
	StopInstance    Kind = "stop-instance"
	ResetConsulLink Kind = "reset-consul-link" // between an Usher and Consul: connections are reset
	CutConsulLink   Kind = "cut-consul-link"   // nothing arrives, and nothing is closed
	SlowConsulLink  Kind = "slow-consul-link"
	ResetXDSLink    Kind = "reset-xds-link" // between an Envoy and the Ushers
	CutXDSLink      Kind = "cut-xds-link"
	SlowXDSLink     Kind = "slow-xds-link"
	RotateCA        Kind = "rotate-ca"
	ShortLeaf       Kind = "short-leaf" // certificates that expire after five minutes
	DeleteEnvoy     Kind = "delete-envoy-token"
	DeleteUsher     Kind = "delete-usher-token"
	ChangeEntry     Kind = "change-entry"
	ChangeInstance  Kind = "change-instance"
	ChangeMode      Kind = "change-mode"
	ChangeFile      Kind = "change-file"
	InvalidEntry    Kind = "invalid-entry"
	InvalidFile     Kind = "invalid-file"
	RestoreSnapshot Kind = "restore-snapshot" // save one, and restore it later
	FillDisk        Kind = "fill-disk"        // of the Ushers' logs, and of their state where they keep one
)

// The numbers of parts.
const (
	Servers = 3 // of Consul
	Ushers  = 2
	Envoys  = 4
	// Leader as the target of a step is the server that leads when the step begins.
	Leader = Servers
)

// Step is one action: a fault that is lifted after a while, or a change that stays.
type Step struct {
	At     time.Duration // since the start
	Kind   Kind
	Target int           // which of the parts, from 0
	Hold   time.Duration // 0: nothing is lifted
	Pick   int           // which variant of the kind, modulo their number
}

// String is the step as the log has it.
func (s Step) String() string {
	text := fmt.Sprintf("%s %s", s.Kind, ruleOf(s.Kind).target(s.Target))
	if s.Hold > 0 {
		text += fmt.Sprintf(" for %v", s.Hold)
	}
	return strings.Join(strings.Fields(text), " ")
}

// Event is the beginning of a step or its end. They happen one after the other.
type Event struct {
	At   time.Duration
	Step Step
	Lift bool
}

// Events are the beginnings and ends of all steps in their order.
func Events(steps []Step) []Event {
	var events []Event
	for _, s := range steps {
		events = append(events, Event{At: s.At, Step: s})
		if s.Hold > 0 {
			events = append(events, Event{At: s.At + s.Hold, Step: s, Lift: true})
		}
	}
	slices.SortStableFunc(events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	return events
}

// rule says how the steps of a kind are made, and what must not happen beside them.
type rule struct {
	kind     Kind
	part     string // the name of the targets; "" for a kind that has none
	targets  int
	min, max time.Duration // how long it holds; 0 for a change that stays
	weight   int           // how often it comes beside the others
	// alone names what no other step uses from the beginning of the step until its end, and after that for as long as
	// the part takes to be whole again. "#" stands for the target.
	alone map[string]time.Duration
	// writes says that its beginning and its end write to Consul, which has to have a leader.
	writes bool
	// shares names what others use, too, from the beginning until the end, but no step alone. "#" stands for the target.
	shares string
}

// What steps use.
const (
	consulServers = "consul servers" // at most one of three is away, so there is a quorum
	consulWrites  = "consul writes"
	authority     = "certificate authority"
	longOutages   = "long outages" // which short certificates would not survive
	configFile    = "file #"       // without which an Usher does not start
)

// rejoin is how long a Consul server takes to be a voter with all of the log again.
const rejoin = 8 * time.Second

// rules has a row for each kind. Holds are short, so that two minutes have many of them.
var rules = []rule{
	{kind: KillConsul, part: "server", targets: Servers + 1, min: sec(1), max: sec(8), weight: 3, alone: map[string]time.Duration{consulServers: rejoin}},
	{kind: StopConsul, part: "server", targets: Servers + 1, min: sec(2), max: sec(12), weight: 3, alone: map[string]time.Duration{consulServers: rejoin}},
	{kind: KillAllConsul, min: sec(2), max: sec(15), weight: 1, alone: map[string]time.Duration{consulServers: rejoin, consulWrites: rejoin, longOutages: rejoin}},
	{kind: StopAllConsul, min: sec(2), max: sec(15), weight: 1, alone: map[string]time.Duration{consulServers: rejoin, consulWrites: rejoin, longOutages: rejoin}},
	{kind: KillUsher, part: "usher", targets: 1, min: sec(0.1), max: sec(5), weight: 4, alone: map[string]time.Duration{"usher #": sec(1)}, shares: configFile},
	{kind: RestartUsher, part: "usher", targets: 1, min: sec(0.1), max: sec(2), weight: 2, alone: map[string]time.Duration{"usher #": sec(1)}, shares: configFile},
	{kind: StopUsher, part: "usher", targets: Ushers, min: sec(1), max: sec(12), weight: 3, alone: map[string]time.Duration{"usher #": sec(1)}},
	{kind: KillEnvoy, part: "envoy", targets: Envoys, min: sec(0.1), max: sec(3), weight: 3, alone: map[string]time.Duration{"envoy #": sec(3)}},
	{kind: StopEnvoy, part: "envoy", targets: Envoys, min: sec(1), max: sec(6), weight: 2, alone: map[string]time.Duration{"envoy #": sec(3)}},
	{kind: KillInstance, min: sec(0.1), max: sec(3), weight: 1, alone: map[string]time.Duration{"instance": sec(3)}},
	{kind: StopInstance, min: sec(1), max: sec(4), weight: 1, alone: map[string]time.Duration{"instance": sec(3)}},
	{kind: ResetConsulLink, part: "usher", targets: Ushers, min: sec(1), max: sec(10), weight: 2, alone: map[string]time.Duration{"consul link #": 0}},
	{kind: CutConsulLink, part: "usher", targets: Ushers, min: sec(2), max: sec(12), weight: 2, alone: map[string]time.Duration{"consul link #": 0}},
	{kind: SlowConsulLink, part: "usher", targets: Ushers, min: sec(3), max: sec(15), weight: 2, alone: map[string]time.Duration{"consul link #": 0}},
	{kind: ResetXDSLink, part: "envoy", targets: Envoys, min: sec(0.5), max: sec(8), weight: 2, alone: map[string]time.Duration{"xds link #": 0}},
	{kind: CutXDSLink, part: "envoy", targets: Envoys, min: sec(2), max: sec(12), weight: 2, alone: map[string]time.Duration{"xds link #": 0}},
	{kind: SlowXDSLink, part: "envoy", targets: Envoys, min: sec(3), max: sec(15), weight: 2, alone: map[string]time.Duration{"xds link #": 0}},
	{kind: RotateCA, weight: 2, writes: true, alone: map[string]time.Duration{authority: sec(10)}},
	{kind: ShortLeaf, min: sec(25), max: sec(90), weight: 1, writes: true, alone: map[string]time.Duration{authority: sec(10)}, shares: longOutages},
	{kind: DeleteEnvoy, part: "envoy", targets: Envoys, min: sec(3), max: sec(12), weight: 2, writes: true, alone: map[string]time.Duration{"token #": 0}},
	{kind: DeleteUsher, min: sec(2), max: sec(12), weight: 2, writes: true, alone: map[string]time.Duration{"usher token": 0}},
	{kind: ChangeEntry, weight: 8, writes: true},
	{kind: ChangeInstance, weight: 5, writes: true, shares: "instance"},
	{kind: ChangeMode, weight: 4, writes: true},
	{kind: ChangeFile, weight: 3},
	{kind: InvalidEntry, min: sec(2), max: sec(12), weight: 3, writes: true, alone: map[string]time.Duration{"valid entries": 0}},
	{kind: InvalidFile, part: "usher", targets: Ushers, min: sec(2), max: sec(12), weight: 3, alone: map[string]time.Duration{configFile: 0}},
	{kind: RestoreSnapshot, min: sec(4), max: sec(20), weight: 2, writes: true, alone: map[string]time.Duration{authority: sec(10), "consul snapshot": 0}},
	{kind: FillDisk, min: sec(3), max: sec(15), weight: 2, alone: map[string]time.Duration{"disk": 0}},
}

func sec(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }

func ruleOf(kind Kind) rule {
	return rules[slices.IndexFunc(rules, func(r rule) bool { return r.kind == kind })]
}

// target is how a target is printed.
func (r rule) target(n int) string {
	switch {
	case r.part == "":
		return ""
	case n == Leader && r.part == "server":
		return "the leader"
	}
	return fmt.Sprint(r.part, " ", n+1)
}

// Kinds returns all kinds, or those in a list with commas.
func Kinds(list string) ([]Kind, error) {
	var kinds []Kind
	for _, r := range rules {
		kinds = append(kinds, r.kind)
	}
	if list == "" {
		return kinds, nil
	}
	var some []Kind
	for name := range strings.SplitSeq(list, ",") {
		if !slices.Contains(kinds, Kind(name)) {
			return nil, fmt.Errorf("there is no action %q; there are %v", name, kinds)
		}
		some = append(some, Kind(name))
	}
	return some, nil
}

// Survivor is the Usher that is never killed in the runs of a seed, so that what it leaks
// shows in the end.
func Survivor(seed uint64) int { return int(seed % Ushers) }

// The pace of a plan.
const (
	faultsAtOnce = 3
	// Between the beginnings of two steps.
	minGap = 300 * time.Millisecond
	maxGap = 3 * time.Second
)

// Plan returns the steps of a run, which are all over after its length. The same arguments give
// the same steps.
func Plan(seed uint64, length time.Duration, kinds []Kind) []Step {
	p := plan{random: rand.New(rand.NewPCG(seed, 0)), length: length, killed: 1 - Survivor(seed)}
	for _, r := range rules {
		if slices.Contains(kinds, r.kind) {
			for range r.weight {
				p.lots = append(p.lots, r)
			}
		}
	}
	for at := p.between(minGap, maxGap); at < length; at += p.between(minGap, maxGap) {
		p.add(at)
	}
	return p.steps
}

// plan is a plan that is being made.
type plan struct {
	random *rand.Rand
	length time.Duration
	killed int    // the Usher that may be killed
	lots   []rule // each as often as its weight
	steps  []Step
}

// longestUse is more than the longest time for which a step uses something.
const longestUse = 2 * time.Minute

// tries is how many steps are tried for one time. When too much is under way already, none fits.
const tries = 20

// add adds a step that fits beside the others.
func (p *plan) add(at time.Duration) {
	for range tries {
		r := p.lots[p.random.IntN(len(p.lots))]
		s := Step{At: at, Kind: r.kind, Pick: p.random.IntN(1 << 16)}
		if r.targets > 0 {
			s.Target = p.random.IntN(r.targets)
		}
		if r.part == "usher" && r.targets == 1 {
			s.Target = p.killed
		}
		if r.max > 0 {
			s.Hold = p.between(r.min, r.max)
		}
		if p.fits(s) {
			p.steps = append(p.steps, s)
			return
		}
	}
}

func (p *plan) between(low, high time.Duration) time.Duration {
	d := low + time.Duration(p.random.Int64N(int64(high-low)+1))
	return d.Round(100 * time.Millisecond)
}

// fits reports whether a step ends in time, beside at most two other faults, and takes nothing that
// another one has.
func (p *plan) fits(s Step) bool {
	if s.At+s.Hold > p.length {
		return false
	}
	held := 0
	for _, other := range slices.Backward(p.steps) {
		if other.At < s.At-longestUse {
			break
		}
		if other.Hold > 0 && other.At+other.Hold > s.At {
			held++
		}
		if conflict(s, other) {
			return false
		}
	}
	return s.Hold == 0 || held < faultsAtOnce
}

// conflict reports whether one of two steps uses what the other one has for itself alone.
func conflict(a, b Step) bool {
	others := b.uses()
	for _, x := range a.uses() {
		for _, y := range others {
			if x.what == y.what && (x.alone || y.alone) && x.from <= y.to && y.from <= x.to {
				return true
			}
		}
	}
	return false
}

// use is what a step uses, and from when to when.
type use struct {
	what     string
	alone    bool
	from, to time.Duration
}

func (s Step) uses() []use {
	r, end := ruleOf(s.Kind), s.At+s.Hold
	of := func(what string) string { return strings.ReplaceAll(what, "#", fmt.Sprint(s.Target)) }
	var uses []use
	for what, after := range r.alone {
		uses = append(uses, use{of(what), true, s.At, end + after})
	}
	if r.shares != "" {
		uses = append(uses, use{of(r.shares), false, s.At, end})
	}
	if r.writes {
		uses = append(uses, use{consulWrites, false, s.At, s.At}, use{consulWrites, false, end, end})
	}
	if s.Kind == RestoreSnapshot {
		uses = append(uses, use{consulServers, true, end, end + rejoin})
	}
	return uses
}
