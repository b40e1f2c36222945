package evidence

import (
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/settings"
)

// TestOnlyMalformedAreRunsOfTrustedAddresses: a load balancer that sends headers begins all connections with one, and
// only trusted_cidrs says that it is one.
func TestOnlyMalformedAreRunsOfTrustedAddresses(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Off)
	connect := func(address string, entries ...entry) {
		for _, e := range entries {
			s.connect(t, e.from(address))
			s.clock = s.clock.Add(time.Second)
		}
	}
	connect("10.0.3.7", broken, broken, broken)
	if got := s.port(); got.OnlyMalformed.Count != 0 || got.Restricted {
		t.Errorf("without trusted_cidrs: %+v", got)
	}
	s.listener.Trusted = edge.Trusted
	begin := s.clock
	connect("10.0.3.8", broken, broken)
	connect("192.0.2.1", broken, broken, broken, broken)
	if got := s.port(); got.OnlyMalformed.Count != 0 || !got.Restricted {
		t.Errorf("two of a trusted address, and four of another one: %+v", got.OnlyMalformed)
	}
	connect("10.0.3.8", broken)
	got := s.port().OnlyMalformed
	if got.Count != 3 || got.First != begin || got.Last != s.clock.Add(-time.Second) || len(got.Addresses) != 1 || got.Addresses[0].String() != "10.0.3.8" {
		t.Errorf("three of a trusted address: %+v", got)
	}
	connect("10.0.3.8", plain, broken, broken)
	if got := s.port().OnlyMalformed; got.Count != 0 {
		t.Errorf("one was understood: %+v", got)
	}
	connect("10.0.3.8", broken)
	s.listener.Mode = settings.Permissive
	connect("10.0.3.8", byClient)
	if got := s.port().OnlyMalformed; got.Count != 0 {
		t.Errorf("its header was read: %+v", got)
	}
	s.listener.Mode = settings.Off
	connect("10.0.3.8", broken, broken, broken)
	s.clock = s.clock.Add(Window)
	connect("10.0.3.9", plain)
	if got := s.port().OnlyMalformed; got.Count != 0 {
		t.Errorf("after a window: %+v", got)
	}
}

// TestOnlyMalformedIsTheLongestRun: one address proves nothing for another.
func TestOnlyMalformedIsTheLongestRun(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Off)
	s.listener.Trusted = edge.Trusted
	begin := s.clock
	for range 4 {
		s.connect(t, broken.from("10.0.3.9"))
		s.clock = s.clock.Add(time.Minute)
	}
	for range 3 {
		s.connect(t, broken.from("10.0.3.8"))
	}
	got := s.port().OnlyMalformed
	if got.Count != 4 || got.First != begin || got.Last != begin.Add(3*time.Minute) || len(got.Addresses) != 2 {
		t.Errorf("got %+v, want the four of 10.0.3.9, and both addresses", got)
	}
}

func TestOneBadClientIsNoLoadBalancer(t *testing.T) {
	t.Parallel()
	s := newStory(settings.Off)
	s.connect(t, broken, broken, plain, broken, broken, plain)
	if got := s.port(); got.Malformed.Count != 0 {
		t.Errorf("between others: %+v", got)
	}
	s.connect(t, broken, broken, broken)
	if got := s.port(); got.Malformed.Count != 1 {
		t.Errorf("three in a row: %+v", got)
	}
}

func TestMostlyMalformed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		malformed, others int
		want              bool
	}{{2, 0, false}, {3, 0, true}, {3, 2, true}, {5, 5, false}, {6, 5, true}} {
		s := Summary{Malformed: Tally{Count: c.malformed}, WithoutHeader: Tally{Count: c.others}}
		if got := s.MostlyMalformed(); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}
