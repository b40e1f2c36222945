package evidence

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// story makes connections to one port at a time of its own.
type story struct {
	*Store
	listener Listener
	clock    time.Time
}

func newStory(mode settings.Mode) *story {
	s := &story{Store: NewStore(nil), listener: edge, clock: time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)}
	s.now = func() time.Time { return s.clock }
	s.listener.Trusted, s.listener.Mode, s.listener.FollowsService = nil, mode, false
	return s
}

// connect makes connections that have these entries.
func (s *story) connect(t *testing.T, entries ...entry) {
	t.Helper()
	for _, e := range entries {
		c, ok := parseConnection(s.listener, e.String())
		if !ok {
			t.Fatalf("%q cannot be read", e)
		}
		s.add(s.listener, []connection{c})
	}
}

// port returns what is known of the port, in the listener's mode now.
func (s *story) port() Summary { return s.mode(s.listener.Mode) }

func (s *story) mode(m settings.Mode) Summary {
	return s.Gateway(s.listener.Gateway)[PortMode{8080, m}]
}

// from is an entry of another connecting address.
func (e entry) from(address string) entry {
	e.direct = netip.AddrPortFrom(netip.MustParseAddr(address), 40000).String()
	return e
}

var (
	plain  = entry{chain: "8080"}
	closed = entry{bytes: "0"} // by a strict listener, or by a check after it has connected
	broken = entry{flags: "DPE"}
)

func TestTalliesCountTheLastWindow(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	begin := s.clock
	for range 5 * 60 { // 15 minutes
		s.connect(t, plain)
		s.clock = s.clock.Add(3 * time.Second)
	}
	got := s.port().WithoutHeader
	if got.Count < 190 || got.Count > 200 || got.First != begin || got.Last != s.clock.Add(-3*time.Second) || len(got.Addresses) != 1 {
		t.Errorf("in ten minutes of one connection each three seconds: %+v", got)
	}
	s.clock = s.clock.Add(Window)
	if got := s.port(); got.WithoutHeader.Count != 0 || got.WithoutHeader.Addresses != nil || !got.WithoutHeader.First.IsZero() {
		t.Errorf("after a window without any: %+v", got)
	}
	s.connect(t, plain)
	long := plain
	long.duration = "60000"
	s.connect(t, long)
	if got := s.port().WithoutHeader; got.Count != 2 || got.First != s.clock || got.Began != s.clock.Add(-reportDelay-3*time.Millisecond) {
		t.Errorf("after it: %+v", got)
	}
}

// TestChecksAreNoConnectionsWithoutHeader: a header without an address, and a
// connection without data, do not count where others show what they are.
func TestChecksAreNoConnectionsWithoutHeader(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	s.connect(t, byClient, plain, plain.from("10.0.3.8"))
	if got := s.port(); got.WithoutHeader.Count != 1 || got.WithoutHeader.Addresses[0].String() != "10.0.3.8" {
		t.Errorf("one of two addresses sends headers otherwise: %+v", got)
	}
	s.clock = s.clock.Add(headerTime)
	s.connect(t, plain)
	if got := s.port(); got.WithoutHeader.Count != 2 {
		t.Errorf("it has stopped to send them: %+v", got)
	}
	s.connect(t, closed.from("10.0.3.9"))
	if got := s.port().Unknown; got.Count != 1 || got.Last != s.clock || got.Addresses[0].String() != "10.0.3.9" {
		t.Errorf("a check that sends nothing: %+v", got)
	}
	s.listener.Mode = settings.Strict
	s.connect(t, closed.from("10.0.3.9"), closed.from("10.0.3.10"))
	if got := s.port(); got.Refused.Count != 1 || got.Refused.Addresses[0].String() != "10.0.3.10" {
		t.Errorf("one of two addresses sent nothing before, either: %+v", got)
	}
	for range 100 {
		s.connect(t, closed.from("10.0.3.9"))
	}
	if got := s.port(); got.Refused.Count < 50 {
		t.Errorf("it comes more often than checks do: %+v", got)
	}
}

// TestHowOftenAddressesCheck: what a strict listener closes are health checks, as long as they come no more
// often than the address has checked before.
func TestHowOftenAddressesCheck(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before func(*story, *testing.T) // what a permissive listener gets
		most   int                      // how many a strict one closes at once that are checks
	}{
		"never": {func(*story, *testing.T) {}, 0},
		"once":  {func(s *story, t *testing.T) { s.connect(t, closed) }, 3},
		"more often at first": {func(s *story, t *testing.T) {
			s.connect(t, closed, closed, closed)
			s.clock = s.clock.Add(bucketTime)
			s.connect(t, closed)
		}, 7},
		"longer ago than a window": {func(s *story, t *testing.T) {
			s.connect(t, closed)
			s.clock = s.clock.Add(Window)
		}, 0},
		"it sends headers": {func(s *story, t *testing.T) { s.connect(t, byClient) }, maxChecks},
		"it has sent headers": {func(s *story, t *testing.T) {
			s.connect(t, byClient)
			s.clock = s.clock.Add(headerTime)
		}, 0},
		"its last header is older than its end": {func(s *story, t *testing.T) {
			long := byClient
			long.duration = "60000"
			s.connect(t, long)
		}, 0},
		"its last header did not end last": {func(s *story, t *testing.T) {
			long := byClient
			long.duration = "60000"
			s.connect(t, byClient, long)
		}, maxChecks},
		"with data": {func(s *story, t *testing.T) { s.connect(t, plain) }, 0},
		"a header without an address, and data": {func(s *story, t *testing.T) {
			s.listener.Mode = settings.Strict
			s.connect(t, plain)
		}, 0},
		"as a check of a strict listener": {func(s *story, t *testing.T) {
			s.connect(t, byClient)
			s.listener.Mode = settings.Strict
			s.connect(t, closed)
			s.clock = s.clock.Add(headerTime)
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStory(settings.Permissive)
			c.before(s, t)
			s.listener.Mode = settings.Strict
			for range c.most {
				s.connect(t, closed)
			}
			if n := s.port().Refused.Count; n != 0 {
				t.Errorf("%d of %d checks are refused clients", n, c.most)
			}
			s.connect(t, closed, closed)
			if n := s.port().Refused.Count; n != 2 {
				t.Errorf("%d of the next two are refused clients", n)
			}
		})
	}
}

// TestAnAddressThatGoesOnToCheckIsKnown over hours.
func TestAnAddressThatGoesOnToCheckIsKnown(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	s.connect(t, closed)
	s.listener.Mode = settings.Strict
	for range 20 * int(Window/time.Minute) * 12 {
		s.clock = s.clock.Add(5 * time.Second)
		s.connect(t, closed)
		if s.port().Refused.Count > 0 {
			t.Fatal("a check is a refused client")
		}
	}
}

// TestAmbiguousConnections: only to a listener that knows headers, and only as many as there may be checks.
func TestAmbiguousConnections(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	s.connect(t, byClient)
	for range maxChecks {
		s.connect(t, plain)
	}
	if got := s.port(); got.Ambiguous.Count != maxChecks || got.WithoutHeader.Count != 0 {
		t.Errorf("got %+v", got)
	}
	s.connect(t, plain, plain)
	if got := s.port(); got.Ambiguous.Count != maxChecks || got.WithoutHeader.Count != 2 {
		t.Errorf("there are too many for checks: %+v", got)
	}
	s.clock = s.clock.Add(bucketTime)
	s.connect(t, plain)
	if got := s.port(); got.Ambiguous.Count != maxChecks+1 {
		t.Errorf("after a while: %+v", got)
	}
	s.listener.Mode = settings.Off
	s.connect(t, plain)
	if got := s.port(); got.Ambiguous.Count != 0 || got.WithoutHeader.Count != 1 {
		t.Errorf("off: %+v", got)
	}
}

// TestWhatIsKnownOfRefusedConnections: of the last one, and of its address.
func TestWhatIsKnownOfRefusedConnections(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Strict)
	s.listener.FollowsService = true
	port := func() Summary { return s.following(s.listener.Gateway, s.listener.Kubernetes)[8080] }
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	s.connect(t, closed)
	s.listener.Trusted = trusted
	s.connect(t, byClient.from("10.0.3.8"))
	if got := port(); got.RefusedTrusted || got.RefusedHeaderSenders || !got.Restricted {
		t.Errorf("it was not known whether it was trusted, and another address sends headers: %+v", got)
	}
	s.connect(t, byClient)
	if got := port(); !got.RefusedHeaderSenders {
		t.Errorf("its address sends headers: %+v", got)
	}
	s.clock = s.clock.Add(Window)
	s.connect(t, closed)
	if got := port(); !got.RefusedTrusted || got.RefusedHeaderSenders || got.WithHeader.Count != 0 || !got.WithHeader.Began.IsZero() || got.WithHeader.Addresses != nil {
		t.Errorf("an hour later, it is trusted, and sends no headers: %+v", got)
	}
	s.listener.Trusted = nil
	s.clock = s.clock.Add(Window)
	s.connect(t, byClient)
	if got := port(); got.RefusedTrusted || got.Restricted {
		t.Errorf("none is refused, and nothing is restricted: %+v", got)
	}
}

// TestAddressesOfATally are those with most connections.
func TestAddressesOfATally(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	for _, address := range []string{"10.0.3.9", "10.0.3.7", "10.0.3.8", "10.0.3.6", "10.0.3.1", "10.0.3.9", "10.0.3.9", "10.0.3.8"} {
		s.connect(t, plain.from(address))
	}
	s.connect(t, plain.from("10.0.3.8"), plain.from("10.0.3.8"))
	if got := From(s.port().WithoutHeader.Addresses); got != ", from 10.0.3.8, 10.0.3.9, 10.0.3.1" {
		t.Errorf("got %q", got)
	}
	if got := From(s.port().WithHeader.Addresses); got != "" {
		t.Errorf("of none: %q", got)
	}
}

// TestReportsCountForTheModeOfTheirListener mixes the reports of instances with different
// modes, and those of connections that end after their listener was replaced, in
// both orders.
func TestReportsCountForTheModeOfTheirListener(t *testing.T) {
	t.Parallel()
	counts := func(s Summary) map[Type]int {
		all := map[Type]int{}
		for i, tally := range []Tally{s.WithHeader, s.WithoutHeader, s.Refused, s.Malformed} {
			if tally.Count > 0 {
				all[[]Type{WithHeader, WithoutHeader, Refused, Malformed}[i]] = tally.Count
			}
		}
		return all
	}
	reports := []struct {
		mode  settings.Mode
		entry entry
	}{
		{settings.Off, broken},
		{settings.Off, broken},
		{settings.Off, broken}, // three in a row are malformed
		{settings.Off, plain.from("10.0.3.8")},
		{settings.Permissive, plain.from("10.0.3.8")},
		{settings.Permissive, plain.from("10.0.3.8")},
		{settings.Permissive, byClient},
		{settings.Strict, closed.from("10.0.3.10")},
		{settings.Strict, byClient},
	}
	for _, order := range []string{"as they are", "the other way round"} {
		s := newStory(settings.Off)
		for _, r := range reports {
			s.listener.Mode = r.mode
			s.connect(t, r.entry)
		}
		for mode, want := range map[settings.Mode]map[Type]int{
			settings.Off:        {Malformed: 1, WithoutHeader: 1},
			settings.Permissive: {WithoutHeader: 2, WithHeader: 1},
			settings.Strict:     {Refused: 1, WithHeader: 1},
		} {
			if got := counts(s.mode(mode)); !reflect.DeepEqual(got, want) {
				t.Errorf("%s, %s: %v, want %v", order, mode, got, want)
			}
		}
		slices.Reverse(reports)
	}
}

// TestModesAgeApart: the old mode's connections are forgotten, although those of the new
// one go on.
func TestModesAgeApart(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	s.connect(t, plain)
	s.listener.Mode = settings.Strict
	s.clock = s.clock.Add(Window)
	s.connect(t, byClient)
	if got := s.Gateway(s.listener.Gateway); len(got) != 1 || s.port().WithHeader.Count != 1 {
		t.Errorf("got %+v", got)
	}
}

// TestSetModesCountForNothingThatFollowsAService has two instances behind one Service, and the mode
// of one of them is set.
func TestSetModesCountForNothingThatFollowsAService(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	for _, follows := range []bool{true, false, true, false} {
		s.listener.FollowsService = follows
		if s.listener.Mode = settings.Off; follows {
			s.listener.Mode = settings.Strict
			s.connect(t, byClient)
		}
		s.connect(t, plain.from("10.0.3.8"))
		following, set := s.following(s.listener.Gateway, s.listener.Kubernetes)[8080], s.mode(settings.Off)
		if following.WithHeader.Count == 0 || following.WithoutHeader.Count != 0 || set.WithHeader.Count != 0 {
			t.Errorf("the Service's are %+v, and the others' %+v", following, set)
		}
	}
	s.listener.FollowsService, s.listener.Mode = true, settings.Permissive
	s.connect(t, plain.from("10.0.3.8"))
	if got := s.following(s.listener.Gateway, s.listener.Kubernetes)[8080]; got.WithHeader.Count != 2 || got.WithoutHeader.Count != 1 {
		t.Errorf("the Service's are those of both modes: %+v", got)
	}
	if got := s.Gateway(s.listener.Gateway); len(got) != 1 || len(s.following(gateway.ID{Name: "other"}, s.listener.Kubernetes)) != 0 ||
		len(s.following(s.listener.Gateway, gateway.KubernetesService{})) != 0 || len(s.Gateway(gateway.ID{Name: "other"})) != 0 {
		t.Errorf("got %+v", got)
	}
}

// TestTwoLoadBalancersAreOneSummary has instances behind two Services, whose modes are set.
func TestTwoLoadBalancersAreOneSummary(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Strict)
	begin := s.clock
	s.listener.Trusted = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	s.connect(t, closed.from("10.0.3.8"), byClient, byClient.from("10.0.3.8"), closed.from("192.0.2.1"))
	s.listener.Trusted, s.listener.Kubernetes.Name = nil, "other"
	s.clock = s.clock.Add(time.Minute)
	s.connect(t, byClient, byClient.from("10.0.3.9"), closed.from("10.0.3.11"))
	for range 20 { // the map of the ports has no order
		got := s.port()
		h := got.WithHeader
		slices.SortFunc(h.Addresses, netip.Addr.Compare)
		if h.Count != 4 || h.First != begin || h.Last != s.clock || !h.Began.After(begin) || fmt.Sprint(h.Addresses) != "[10.0.3.7 10.0.3.8 10.0.3.9]" {
			t.Errorf("with headers: %+v", h)
		}
		if !got.Restricted || got.RefusedTrusted || !got.RefusedHeaderSenders || got.Refused.Count != 2 || got.Untrusted.Count != 1 {
			t.Errorf("got %+v", got)
		}
	}
}

// TestHeadersFromOutsideTrustedCIDRsAreCountedApart: they may be those of a load balancer that the list lacks.
func TestHeadersFromOutsideTrustedCIDRsAreCountedApart(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	s.listener.Trusted = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	s.connect(t, byClient.from("192.0.2.1"), byClient.from("192.0.2.2"), plain.from("192.0.2.3"), closed.from("192.0.2.4"))
	s.listener.Trusted, s.listener.Kubernetes.Name = nil, "other"
	s.connect(t, byClient)
	got := s.port()
	if got.Untrusted.Count != 3 || got.UntrustedHeaders.Count != 2 || fmt.Sprint(got.UntrustedHeaders.Addresses) != "[192.0.2.2]" {
		t.Errorf("from outside trusted_cidrs: %+v, with headers: %+v", got.Untrusted, got.UntrustedHeaders)
	}
	if got.WithHeader.Count != 1 || got.Unknown.Count != 1 {
		t.Errorf("got %+v", got)
	}
}

// TestConnectionsThatShowNothingAreCounted: they show that a health check goes on.
func TestConnectionsThatShowNothingAreCounted(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	s.connect(t, closed, closed)
	if got := s.port().Unknown; got.Count != 2 || got.Last != s.clock {
		t.Errorf("got %+v", got)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	s.connect(t, byClient)
	for i := range 2 * maxPeers {
		s.connect(t, plain.from(fmt.Sprintf("10.1.%d.%d", i/256, i%256)))
	}
	if n := s.ports[portKey{s.listener.Gateway, s.listener.Kubernetes, false, 8080}].peers.Len(); n != maxPeers {
		t.Errorf("%d addresses are kept", n)
	}
	s.listener.Trusted = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}
	s.connect(t, byClient)
	for i := range 2 * maxPeers {
		s.connect(t, plain.from(fmt.Sprintf("10.1.%d.%d", i/256, i%256)))
	}
	s.connect(t, plain)
	if got := s.port(); got.Untrusted.Count != 2*maxPeers || got.WithoutHeader.Count != 2*maxPeers {
		t.Errorf("untrusted addresses displace trusted ones: %+v", got)
	}
	for i := range maxPorts {
		s.listener.Gateway.Name = fmt.Sprint(i)
		s.connect(t, plain)
	}
	if len(s.ports) != maxPorts {
		t.Errorf("%d ports are kept", len(s.ports))
	}
	s.clock = s.clock.Add(2 * Window)
	s.listener.Gateway.Name = "new"
	s.connect(t, plain)
	if len(s.ports) != 1 {
		t.Errorf("%d ports are kept that no Envoy reports", len(s.ports)-1)
	}
}

// TestWatchGivesChangesOfItsServiceOnly: it gives what is there already, and then changes, at most once a
// second.
func TestWatchGivesChangesOfItsServiceOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStory(settings.Permissive)
		s.listener.FollowsService = true
		s.connect(t, byClient)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		var all []Ports
		put := func(p Ports) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, p)
		}
		got := func() []Ports {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(all)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Watch(ctx, edge.Gateway, edge.Kubernetes, put)
		}()
		wantCounts := func(counts ...int) {
			t.Helper()
			synctest.Wait()
			var given []int
			for _, p := range got() {
				given = append(given, p[8080].WithHeader.Count)
			}
			if !slices.Equal(given, counts) {
				t.Errorf("it has given %v connections, want %v", given, counts)
			}
		}
		wantCounts(1)
		s.connect(t, byClient)
		wantCounts(1)
		s.connect(t, byClient)
		time.Sleep(999 * time.Millisecond)
		wantCounts(1)
		time.Sleep(time.Millisecond)
		wantCounts(1, 3)
		for name, change := range map[string]func(*Listener){
			"no connection":         nil,
			"a mode that is set":    func(l *Listener) { l.FollowsService = false },
			"another Service":       func(l *Listener) { l.Kubernetes.Name = "other" },
			"another gateway's":     func(l *Listener) { l.Gateway.Name = "other" },
			"no Service to look at": func(l *Listener) { l.FollowsService, l.Kubernetes = false, gateway.KubernetesService{} },
		} {
			time.Sleep(time.Second)
			if change == nil {
				s.add(s.listener, nil)
			} else {
				other := *s
				change(&other.listener)
				other.connect(t, byClient)
			}
			synctest.Wait()
			if len(got()) != 2 {
				t.Errorf("%s is given", name)
			}
		}
		s.listener.Port = 8443
		s.connect(t, byClient)
		wantCounts(1, 3, 3)
		if last := got()[2]; len(last) != 2 {
			t.Errorf("got %+v, want two ports", last)
		}
		cancel()
		<-done
		if len(s.watchers) != 0 {
			t.Error("the watch has not ended")
		}
	})
}

// TestAScrapeHasNoSeriesOfOldPorts scrapes while a port still has connections, a Window after they have ended, and when
// there are new ones.
func TestAScrapeHasNoSeriesOfOldPorts(t *testing.T) {
	t.Parallel()
	r := prometheus.NewRegistry()
	s := &story{Store: NewStore(r), listener: edge, clock: time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)}
	s.now = func() time.Time { return s.clock }
	want := func(when string, ports ...string) {
		t.Helper()
		families, err := r.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range families {
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() == "port" {
						got = append(got, l.GetValue())
					}
				}
			}
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, ports) {
			t.Errorf("%s: the ports are %q, want %q", when, got, ports)
		}
	}
	s.connect(t, plain, byClient)
	s.clock = s.clock.Add(Window - time.Second)
	s.listener.Port = 8443
	s.connect(t, plain, byClient)
	want("both have connections", "8080", "8443")
	s.clock = s.clock.Add(time.Second)
	want("8080 has none for a Window", "8443")
	s.clock = s.clock.Add(Window)
	want("neither has any")
	s.connect(t, plain, byClient)
	want("8443 has one again", "8443")
}

// TestSeriesEndWithTheirPort: the metric has no series of a port that is forgotten, unless it is counted
// behind another load balancer.
func TestSeriesEndWithTheirPort(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Permissive)
	s.connect(t, plain, byClient)
	s.listener.Port = 8443
	s.connect(t, plain)
	s.clock = s.clock.Add(Window)
	s.listener.Kubernetes.Name = "other"
	s.connect(t, plain)
	for i := range maxPorts {
		s.listener.Port = 10_000 + i
		s.connect(t, plain)
	}
	const gateway = "p/team a/edge&=%/\n"
	if n := testutil.ToFloat64(s.connections.WithLabelValues(gateway, "8443", "no_header")); n != 2 {
		t.Errorf("a port that one load balancer still leads to has %v connections, want 2", n)
	}
	if n := testutil.CollectAndCount(s.connections); n != maxPorts {
		t.Errorf("there are %d series of %d ports", n, maxPorts)
	}
	if s.connections.DeletePartialMatch(prometheus.Labels{"port": "8080"}) != 0 {
		t.Error("a forgotten port has a series")
	}
}
