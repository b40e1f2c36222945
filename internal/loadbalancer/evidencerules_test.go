package loadbalancer

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// TestWithoutReportsNothingChanges compares an Usher that gets no reports with one that cannot get any.
func TestWithoutReportsNothingChanges(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		with, without := newTestReconciler(t), newTestReconciler(t)
		with.Evidence = silent{}
		minute := 0.0
		for range 12 {
			minute += float64(random.IntN(15)) + 0.5
			e := randomEvent(random.IntN(8), minute)
			for _, r := range []*testReconciler{with, without} {
				r.observeAt(minute, e)
			}
			wakeWith, wake := with.advanceTo(minute+float64(random.IntN(12))), time.Duration(0)
			wake = without.advanceTo(with.time.Sub(start).Minutes())
			if diff := cmp.Diff(without.last, with.last); diff != "" || wakeWith > wake {
				t.Fatalf("at %s, without reports +, and without a source of them -, which wake after %s and %s:\n%s",
					with.time.Sub(start), wakeWith, wake, diff)
			}
			if a, b := encodeState(without.state), encodeState(with.state); a != b {
				t.Fatalf("recorded is %s instead of %s", b, a)
			}
		}
	}
}

func randomEvent(n int, minute float64) serviceEvent {
	switch n {
	case 0, 1:
		return serviceIs(service("true", minute))
	case 2:
		return serviceIs(service("false", minute))
	case 3:
		return serviceIs(service("", 0))
	case 4:
		return serviceIs(mixedService())
	case 5:
		return serviceIs(service("v2", minute)) // which means nothing
	case 6:
		return serviceEvent{}
	}
	return serviceEvent{err: fmt.Errorf("down")}
}

// FuzzEvidence checks what must hold whatever happens to a Service and to its connections, against an Usher that knows
// the same of the Service and nothing of the connections.
func FuzzEvidence(f *testing.F) {
	f.Add([]byte{0, 0, 60, 10, 200, 20, 200, 30, 200, 20, 200})
	f.Add([]byte{1, 0, 20, 200, 20, 200, 20, 200, 10, 100, 20, 200})
	f.Add([]byte{0, 0, 20, 250, 20, 250, 20, 250, 10, 70, 7, 0, 10, 90, 0, 0, 20, 250})
	f.Add([]byte{0, 0, 11, 250, 11, 250, 11, 250, 11, 250, 10, 250, 30, 30})
	f.Add([]byte{1, 3, 0, 10, 60, 10, 100, 30, 250, 30, 250, 10, 90})
	f.Add([]byte{2, 3, 0, 0, 17, 4, 18, 20, 17, 4, 18, 20, 17, 100, 18, 200})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) < 3 || len(script) > 60 {
			return
		}
		s := newFuzzStory(t, script[0]%2 == 1, graces[script[0]/2%2])
		for i := 1; i+1 < len(script); i += 2 {
			s.apply(script[i], script[i+1])
		}
	})
}

// graces are the grace periods of fuzzed stories.
var graces = []time.Duration{DefaultGrace, 10 * time.Second}

// TestEvidenceOverTime is FuzzEvidence with long scripts.
func TestEvidenceOverTime(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	modes, believed := map[settings.Mode]int{}, 0
	for i := range 12 {
		s := newFuzzStory(t, i%2 == 1, graces[i/2%2])
		for range 10 + random.IntN(25) {
			if random.IntN(6) == 0 {
				s.apply(byte(random.IntN(8)), 0)
			} else {
				s.apply(byte(8+random.IntN(100)), byte(20+random.IntN(230)))
			}
			modes[s.mode]++
			if s.believed {
				believed++
			}
		}
	}
	if len(modes) != 3 || believed == 0 {
		t.Errorf("the modes were %v, want all three, and %d times for trusted headers only", modes, believed)
	}
}

// fuzzStory is a story that a fuzzer writes.
type fuzzStory struct {
	*usher
	blind     *testReconciler // knows nothing of the connections
	headers   []time.Time     // when trusted connections with a header began
	headerEnd time.Time       // when one last ended
	without   time.Time       // when one without a header was last served
	refused   bool            // one was refused in this second, after a time without headers
	malformed int             // trusted ones with a header that a listener got that is off
	believed  bool            // whether trusted headers were believed just before
}

func newFuzzStory(t *testing.T, restricted bool, grace time.Duration) *fuzzStory {
	u := &usher{first: map[evidence.Type]time.Time{}, restricted: restricted}
	o := Options{Grace: grace, Logger: slog.New(slog.NewTextHandler(&u.log, nil)), Metrics: NewMetrics(prometheus.NewRegistry())}
	s := &fuzzStory{usher: u, blind: newTestReconcilerWith(t, o, start)}
	o.Evidence = silent{}
	u.testReconciler = newTestReconcilerWith(t, o, start)
	s.event(0)
	return s
}

// apply applies two bytes of a script: what happens, and for how many seconds.
func (s *fuzzStory) apply(what, seconds byte) {
	if what < 8 {
		s.event(int(what))
		return
	}
	fl := flow{
		address: []string{balancerA, balancerB, client}[what%3], header: what%4 >= 2,
		untrusted: what%5 == 0,
	}
	if fl.header { // of others, Usher knows once they have ended
		fl.life = float64(what%7) * 20
	}
	for second := range int(seconds) {
		if second%(1+int(what)/40) == 0 {
			s.connect(fl)
		}
		s.second()
	}
}

func (s *fuzzStory) event(n int) {
	e := randomEvent(n, s.time.Sub(start).Minutes())
	for _, r := range []*testReconciler{s.blind, s.testReconciler} {
		r.event = e
		r.state = r.state.afterEvent(serviceState{}, r.readEvent(), r.time)
		wake := r.publish(r.time)
		s.wake = r.time.Add(wake)
	}
	s.check(s.mode)
}

func (s *fuzzStory) connect(f flow) {
	f.stray = false
	lost := s.usher.connect(f)
	switch trusted := !s.restricted || !f.untrusted; {
	case trusted && f.header && !lost:
		s.headers = append(s.headers, s.time)
		s.headerEnd = evidence.Latest(s.headerEnd, s.time.Add(time.Duration(f.life*float64(time.Second))))
	case trusted && f.header:
		s.malformed++
	case trusted && !f.header && !lost:
		s.without = s.time
	case trusted && !f.header:
		s.refused = s.time.Sub(evidence.Latest(start, s.headerEnd)) >= maxQuietTime
	}
}

// second lets a second go by.
func (s *fuzzStory) second() {
	before := s.mode
	awake := s.report()
	s.time = s.time.Add(time.Second)
	s.advance(awake)
	s.blind.time = s.time
	s.blind.publish(s.time)
	s.check(before)
	s.refused = false
}

func (s *fuzzStory) check(before settings.Mode) {
	s.t.Helper()
	now, blind := s.modeNow(), s.blind.last.ForPort(8080).Mode
	s.mode = now
	l, state := s.state.Ports[8080], s.last.ForPort(8080)
	defer func() { s.believed = state.OnlyTrusted }()
	switch {
	case state.OnlyTrusted && (l.State != proxyOff || blind != settings.Off || !s.restricted || s.malformed < minHeaders && len(s.headers) == 0):
		s.t.Fatalf("at %s: trusted headers are believed, though the mode is %q and %d came", s.time.Sub(start), blind, s.malformed)
	case s.believed && !state.OnlyTrusted && l.State == proxyOff:
		s.checkOff()
	case l.State != proxyOn && now != blind && !state.OnlyTrusted:
		s.t.Fatalf("at %s: the Service does not switch headers on, and the mode is %q instead of %q", s.time.Sub(start), now, blind)
	case now == settings.Off && blind != settings.Off, now == "" && blind != "":
		s.t.Fatalf("at %s: the mode is %q instead of %q", s.time.Sub(start), now, blind)
	case s.refused && now == settings.Strict && before == settings.Strict:
		s.t.Fatalf("at %s: the listener is strict and refuses connections, and there was none with a header for %s",
			s.time.Sub(start), maxQuietTime)
	case now == settings.Strict && before == settings.Permissive:
		s.checkStrict(l, blind)
	}
}

// checkOff checks that a listener may be off again now, which has believed trusted headers.
func (s *fuzzStory) checkOff() {
	s.t.Helper()
	for _, c := range s.reports {
		if without := s.time.Sub(c.began); c.Type == evidence.WithHeader && without < s.policy().headersOnlyTime(0)-time.Second {
			s.t.Fatalf("at %s: off %s after a connection with a header", s.time.Sub(start), without)
		}
	}
}

// checkStrict checks that a listener may become strict now.
func (s *fuzzStory) checkStrict(l listenerState, blind settings.Mode) {
	s.t.Helper()
	early := blind == settings.Permissive
	recent := slices.DeleteFunc(slices.Clone(s.headers), func(at time.Time) bool { return s.time.Sub(at) > evidence.Window })
	without, p := s.time.Sub(s.without), s.policy()
	switch {
	case l.Finding != nil && l.Finding.Result != foundNothing && len(s.headers) == 0, early && len(recent) < earlyConnections:
		s.t.Fatalf("at %s: strict after %d connections with a header", s.time.Sub(start), len(recent))
	case !l.FrozenSince.IsZero():
		s.t.Fatalf("at %s: strict while it is unknown what the Service asks for", s.time.Sub(start))
	case !s.without.IsZero() && (without < p.headersOnlyTime(0)-time.Second || early && without < p.earlyTime()-time.Second):
		s.t.Fatalf("at %s: strict %s after a connection without a header was served", s.time.Sub(start), without)
	}
}

// tallyAt counts connections from an address: the newest one began and the last one ended at these minutes.
func tallyAt(began, ended float64, count int, address string) evidence.Tally {
	return evidence.Tally{
		Count: count, First: at(began - 5), Began: at(began), Last: at(ended), Addresses: []netip.Addr{netip.MustParseAddr(address)},
	}
}

func TestHeadersStopped(t *testing.T) {
	const second = 1.0 / 60
	for name, c := range map[string]struct {
		headers, refused evidence.Tally
		watchedSince     float64
		want             bool
	}{
		"no header for a minute":            {evidence.Tally{}, tallyAt(60, 60, 1, balancerA), 59, true},
		"no header, less than a minute":     {evidence.Tally{}, tallyAt(60, 60, 1, balancerA), 59.1, false},
		"ten refused, just started":         {evidence.Tally{}, tallyAt(60, 60, 10, balancerA), 60, true},
		"nine refused, just started":        {evidence.Tally{}, tallyAt(60, 60, 9, balancerA), 60, false},
		"few headers, a minute ago":         {tallyAt(59, 59, 10, balancerA), tallyAt(60, 60, 1, balancerA), 0, true},
		"few headers, 59 s ago":             {tallyAt(59, 59, 10, balancerA), tallyAt(60-second, 60-second, 1, balancerA), 0, false},
		"110 headers, 30 s ago":             {tallyAt(59.5, 59.5, 110, balancerA), tallyAt(60, 60, 1, balancerA), 0, true},
		"110 headers, 29 s ago":             {tallyAt(59.5+second, 59.5+second, 110, balancerA), tallyAt(60, 60, 1, balancerA), 0, false},
		"many headers, 10 s ago":            {tallyAt(60-10*second, 60-10*second, 100_000, balancerA), tallyAt(60, 60, 1, balancerA), 0, true},
		"many headers, 9 s ago":             {tallyAt(60-9*second, 60-9*second, 100_000, balancerA), tallyAt(60, 60, 1, balancerA), 0, false},
		"30 headers that are new, 20 s ago": {evidence.Tally{Count: 30, First: at(59.5), Last: at(60 - 20*second)}, tallyAt(60, 60, 1, balancerA), 0, true},
		"30 headers that are new, 19 s ago": {evidence.Tally{Count: 30, First: at(59.5), Last: at(60 - 19*second)}, tallyAt(60, 60, 1, balancerA), 0, false},
		"long ones still end":               {tallyAt(59, 60, 10, balancerA), tallyAt(60, 60, 1, balancerA), 0, true},
		"long ones end, another address":    {tallyAt(55, 60, 10, balancerA), tallyAt(60, 60, 1, client), 0, false},
		"long ones ended, a minute ago":     {tallyAt(55, 59, 10, balancerA), tallyAt(60, 60, 1, client), 0, true},
		"another address, for ten minutes":  {tallyAt(50, 60, 10, balancerA), tallyAt(60, 60, 1, client), 0, true},
	} {
		o := observation{Summary: withHeaderSenders(evidence.Summary{WithHeader: c.headers, Refused: c.refused}), watchedSince: at(c.watchedSince)}
		if got := o.headersStopped(); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// Each time that headers were missing again, the listener waits twice as long, and longer than a Summary goes back.
func TestListenerWaitsLongerEachTime(t *testing.T) {
	for reversals, want := range map[int]time.Duration{
		0: headersOnlyTime, 1: headersOnlyTime, 2: 2 * headersOnlyTime, 5: 16 * headersOnlyTime, 6: time.Hour, 1000: time.Hour,
	} {
		l := listenerState{portIntent: portIntent{State: proxyOn}, Finding: &finding{Result: foundNone, Number: 9, Reversals: reversals}}
		without := tallyAt(60, 60, 1, balancerA)
		for name, last := range map[string]evidence.Summary{
			"served": {WithoutHeader: without}, "refused, such as by an Envoy that has no newer listener": {Refused: without},
		} {
			o := observation{}.at(at(0), l.Finding).after(last)
			o = o.after(evidence.Summary{WithHeader: tallyAt(80, 80, 50, balancerA)}).at(at(80), l.Finding)
			o.WithHeader.First = at(50)
			if got := l.strictAt(o, policy{grace: DefaultGrace}); !got.Equal(at(60).Add(want)) {
				t.Errorf("after %d reversals and one that was %s, strict at %s, want %s later", reversals, name, got.Sub(at(60)), want)
			}
		}
	}
}

func TestWhatCameBeforeTheServiceChangedDoesNotCount(t *testing.T) {
	l := listenerState{portIntent: portIntent{State: proxyOn}, Changed: at(60)}
	o := observation{Summary: evidence.Summary{WithHeader: tallyAt(62, 62, 500, balancerA)}}
	o.WithHeader.First = at(30)
	p := policy{grace: DefaultGrace}
	if got := l.strictAt(o, p); !got.Equal(at(60).Add(earlyTime)) {
		t.Errorf("the grace period ends %s after its begin, want %s", got.Sub(at(60)), earlyTime)
	}
	l.Finding = l.Finding.withHeaders(at(60), at(66)).withObjection()
	if got := l.strictAt(o, p); !got.IsZero() {
		t.Errorf("after an objection, the grace period ends early at %s", got)
	}
	o = observation{Summary: evidence.Summary{Refused: tallyAt(59, 59, 500, balancerA)}}
	if l.refusesLoadBalancer(o, policy{}, at(61)) {
		t.Error("connections count that were refused before the Service changed")
	}
	o = observation{Summary: evidence.Summary{WithoutHeader: tallyAt(59, 61, 500, balancerA)}}
	if l.servesWithout(o, at(50)) {
		t.Error("connections count that began before the Service changed")
	}
}

// The grace period says how long the cloud takes, and Usher knows of connections some seconds later.
func TestTimesFollowTheGracePeriod(t *testing.T) {
	for grace, want := range map[time.Duration]struct{ headersOnly, early, again time.Duration }{
		time.Hour:        {2 * time.Minute, 5 * time.Minute, 16 * time.Minute},
		10 * time.Minute: {2 * time.Minute, 5 * time.Minute, 16 * time.Minute},
		5 * time.Minute:  {time.Minute, 150 * time.Second, 8 * time.Minute},
		10 * time.Second: {5 * time.Second, 5 * time.Second, 40 * time.Second},
		0:                {5 * time.Second, 5 * time.Second, 40 * time.Second},
	} {
		p := policy{grace: grace}
		if got := p.headersOnlyTime(0); got != want.headersOnly {
			t.Errorf("with %s, all connections must have headers for %s, want %s", grace, got, want.headersOnly)
		}
		if got := p.headersOnlyTime(4); got != want.again {
			t.Errorf("with %s, the fourth time, all connections must have headers for %s, want %s", grace, got, want.again)
		}
		if got := p.headersOnlyTime(1000); got != time.Hour {
			t.Errorf("with %s, all connections must have headers for up to %s, want an hour", grace, got)
		}
		if got := p.earlyTime(); got != want.early {
			t.Errorf("with %s, it ends after %s with headers, want %s", grace, got, want.early)
		}
	}
}

// The other replicas have a minute to object, and at its end a grace period ends without that.
func TestGracePeriodEndsEarlyOnlyIfThatIsEarlierForAllReplicas(t *testing.T) {
	second := 1.0 / 60
	for name, c := range map[string]struct {
		policy
		since float64 // from when on all connections have headers; the Service changed at 60
		want  float64 // 0: never
	}{
		"ten minutes":                         {policy{DefaultGrace, false}, 64.9, 69.9},
		"ten minutes, too late":               {policy{DefaultGrace, false}, 65, 0},
		"ten minutes, and a record":           {policy{DefaultGrace, true}, 63.9, 68.9},
		"ten minutes, and a record, too late": {policy{DefaultGrace, true}, 64, 0},
		"ten seconds":                         {policy{10 * time.Second, false}, 60 + 2*second, 60 + 7*second},
		"ten seconds, and a record":           {policy{10 * time.Second, true}, 60, 0},
		"none":                                {policy{0, false}, 60, 0},
	} {
		l := listenerState{portIntent: portIntent{State: proxyOn}, Changed: at(60)}
		o := observation{Summary: evidence.Summary{WithHeader: tallyAt(69, 69, earlyConnections, balancerA)}}
		o.WithHeader.First = at(c.since)
		want := time.Time{}
		if c.want != 0 {
			want = at(c.want)
		}
		if got := l.strictAt(o, c.policy); !got.Round(time.Second).Equal(want) {
			t.Errorf("%s: strict at %s, want %s", name, got.Sub(start), want.Sub(start))
		}
	}
}

func TestListenerDoesNotBecomeStrictWhileTheIntentIsUnknown(t *testing.T) {
	l := listenerState{portIntent: portIntent{State: proxyOn}, Finding: (*finding)(nil).withHeaders(at(50), at(60))}
	for frozenSince, want := range map[float64]settings.Mode{59: settings.Permissive, 61: settings.Strict} {
		l.FrozenSince = at(frozenSince)
		if got, end := l.mode(0, at(70)); got != want || !end.IsZero() {
			t.Errorf("unknown since minute %v: %q, which ends at %s; want %q", frozenSince, got, end, want)
		}
	}
	l.FrozenSince = time.Time{}
	for minute, want := range map[float64]settings.Mode{59: settings.Permissive, 60: settings.Strict} {
		if got, _ := l.mode(0, at(minute)); got != want {
			t.Errorf("at minute %v: %q, want %q", minute, got, want)
		}
	}
}

func TestContradictionBecomesAProblemWhenTheGracePeriodIsOver(t *testing.T) {
	r := newTestReconciler(t)
	r.Evidence = silent{}
	r.observeAt(60, serviceIs(onePort(service("true", 60))))
	l := r.state.Ports[8080]
	l.Finding = l.Finding.withResult(foundNone, observation{}, at(65))
	r.state.Ports[8080] = l
	if wake := r.advanceTo(69); wake != time.Minute || len(r.last.Problems) != 0 {
		t.Errorf("in the grace period, it wakes after %s with problems %v", wake, r.last.Problems)
	}
	if r.advanceTo(70); len(r.last.Problems) != 1 {
		t.Errorf("after the grace period, the problems are %v", r.last.Problems)
	}
}

// Envoys that have no trusted_cidrs any more answer 400 to headers, and see none.
func TestListenerIsOffAgainWhenConnectionsAreAnsweredAsOff(t *testing.T) {
	p := policy{grace: DefaultGrace}
	l := listenerState{portIntent: portIntent{State: proxyOff}}
	l.Finding = l.Finding.withUnexpectedHeaders(observation{}, at(60))
	for name, c := range map[string]struct {
		evidence.Summary
		want time.Time
	}{
		"headers":         {evidence.Summary{WithHeader: tallyAt(62, 62, 9, balancerA)}, time.Time{}},
		"answered as off": {evidence.Summary{WithHeader: tallyAt(61, 61, 9, balancerA), Malformed: tallyAt(62, 62, 9, balancerA)}, at(63)},
		"without":         {evidence.Summary{WithHeader: tallyAt(61, 61, 9, balancerA), WithoutHeader: tallyAt(62, 62, 9, balancerA)}, at(63)},
	} {
		o := observation{}.at(at(60), l.Finding).after(c.Summary)
		if got := l.offAt(o, p); !got.Equal(c.want) {
			t.Errorf("%s: off at %s, want %s", name, got.Sub(start), c.want.Sub(start))
		}
	}
}

// Nothing shows what refused connections were while no other one comes. Health checks would come again.
func TestRefusalsThatNothingExplainsAreAProblem(t *testing.T) {
	for name, c := range map[string]struct {
		checks bool // connections without data come each minute
		others bool // another Usher has seen the refused ones
		before evidence.Summary
		later  evidence.Summary
		grace  float64 // when the Service changed
		want   float64 // when it is a problem; 0: never
	}{
		"nothing comes":                       {want: 66},
		"health checks come":                  {checks: true},
		"a connection with a header comes":    {later: evidence.Summary{WithHeader: tallyAt(62, 62, 1, balancerA)}}, // it becomes strict
		"another Usher has seen them":         {others: true},
		"in a grace period, and nothing more": {grace: 58, want: 68},
		"another Usher has seen them, and this one others, before": {
			others: true, grace: 58, before: evidence.Summary{WithoutHeader: tallyAt(30, 30, 1, balancerA)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTestReconciler(t)
			r.Evidence = silent{}
			r.observeAt(1, serviceIs(onePort(service("", 0))))
			r.observe(reported(c.before))
			r.observeAt(c.grace, serviceIs(onePort(service("true", c.grace))))
			l := r.state.Ports[8080]
			l.Finding = l.Finding.withResult(foundRefusals, observation{}, at(61))
			r.state.Ports[8080] = l
			if !c.others {
				c.later.Refused = tallyAt(61, 61, 3, balancerA)
				r.observe(reported(evidence.Summary{Refused: c.later.Refused}))
			}
			r.advanceTo(61)
			for minute := 62.0; minute < 90; minute++ {
				if c.checks {
					c.later.Unknown = tallyAt(minute, minute, 1, balancerA)
				}
				if c.checks || minute == 62 {
					r.observe(reported(c.later))
				}
				wake := r.advanceTo(minute)
				is := slices.ContainsFunc(r.last.Problems, func(p problem.Problem) bool { return strings.Contains(p.What, "no connection has come since") })
				if want := c.want != 0 && minute >= c.want; is != want {
					t.Fatalf("at minute %v: the problem is there: %v", minute, is)
				}
				if until := at(c.want).Sub(at(minute)); until > 0 && wake > until {
					t.Errorf("at minute %v: wakes after %s", minute, wake)
				}
			}
		})
	}
}

// While the API server does not answer, a listener does not become off, and so there is time to object.
func TestHeadersObjectWhileTheIntentIsUnknown(t *testing.T) {
	l := listenerState{
		portIntent: portIntent{State: proxyOff}, FrozenSince: at(61.5),
		Finding: &finding{Result: foundHeaders, Number: 2, FollowsFrom: at(62)},
	}
	o := observation{Summary: evidence.Summary{Restricted: true}, lastHeader: at(63), finding: l.Finding}
	next := l.afterConnections(o, policy{grace: 10 * time.Minute, hasRecord: true}, at(63.1))
	if !next.Finding.found(foundHeaders) {
		t.Errorf("the finding is %+v, want one that keeps the listener permissive", next.Finding)
	}
}
