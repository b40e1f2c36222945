//go:build e2e

package conformance

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/resourcediff"
)

// settleDeadline is how long Consul, and then Usher, may take to settle.
const settleDeadline = 10 * time.Second

// The xDS ports of the Usher that lives through all cases, and of the one that
// is started for a case.
const (
	usherPort = 18000
	coldPort  = 18010
)

// TestSameResourcesAsConsul loads one case after the other into one Consul. For
// each, a fresh Envoy asks Consul. One Envoy stays with one Usher through all
// cases, so that each case is also a change that it follows; another one asks
// that Usher afresh, and a third one an Usher that has just started. All must end
// up with the same.
func TestSameResourcesAsConsul(t *testing.T) { compareCases(t, current) }

// TestSameResourcesAsConsulBetween does the same with a Consul between that and the oldest.
func TestSameResourcesAsConsulBetween(t *testing.T) { compareCases(t, between) }

// TestSameResourcesAsOldConsul does the same with the cases that the older
// Consul takes.
func TestSameResourcesAsOldConsul(t *testing.T) { compareCases(t, older) }

func compareCases(t *testing.T, ref reference) {
	t.Parallel()
	cases := readCases(t)
	s := startSuite(t, ref)
	s.releases = envoys
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			if says, ok := ref.refused[c.Name]; ok {
				s.refuses(t, c, says)
				return
			}
			s.run(t, c)
		})
	}
	t.Logf("%d sets taken by Envoy, looked at for %v", s.validated, s.validating.Round(time.Second))
	t.Logf("Consul %s: %d of %d cases equal, %d not taken by it, %d resources, %d differences allowed, %d old spellings",
		ref.version, s.equal, len(cases), s.refused, s.resources, len(s.used), len(s.spelled))
	if s.ran+s.refused < len(cases) {
		return // what the others need is not known
	}
	s.everythingIsNeeded(t)
}

// everythingIsNeeded fails for what is listed and no case has shown.
func (s *suite) everythingIsNeeded(t *testing.T) {
	t.Helper()
	s.allowancesAreNeeded(t)
	for _, o := range s.ref.spellings {
		if !s.spelled[o.key()] {
			t.Errorf("no case has the old spelling %s", o.key())
		}
	}
	if len(s.ref.refused) != s.refused {
		t.Errorf("%d cases are listed as not taken, %d were found", len(s.ref.refused), s.refused)
	}
}

func (s *suite) allowancesAreNeeded(t *testing.T) {
	t.Helper()
	for i := range allowed {
		a := &allowed[i]
		if a.concerns(s.ref.version) && a.peered == s.peered && !s.used[a] {
			t.Errorf("no case needs the allowed difference %s %s", a.typeURL, a.path)
		}
	}
}

var (
	seed   = flag.Uint64("seed", 1, "seed of the random cases; 0 takes a new one")
	random = flag.Int("random", 300, "number of random cases")
)

// TestSameResourcesAsConsulForRandomCases does the same with generated
// cases. A case that differs is printed; its name is the flag -seed and
// its number.
func TestSameResourcesAsConsulForRandomCases(t *testing.T) {
	t.Parallel()
	from := *seed
	for from == 0 {
		from = rand.Uint64() % 1_000_000
	}
	s := startSuite(t, current)
	s.releases = envoys[:1]
	for i := range *random {
		c := generate(from, i)
		t.Run(c.Name, func(t *testing.T) {
			s.run(t, c)
			if t.Failed() {
				t.Logf("the case, shrunk:\n%s", s.shrink(t, c))
			}
		})
	}
	t.Logf("seed %d: %d of %d cases equal, %d resources", from, s.equal, s.ran, s.resources)
}

// startSuite starts the parts that live through all cases.
func startSuite(t *testing.T, ref reference) *suite {
	t.Helper()
	return startSuiteAt(t, ref, loopback())
}

func startSuiteAt(t *testing.T, ref reference, ip string) *suite {
	t.Helper()
	s := &suite{
		ref: ref, ip: ip, consul: startConsul(t, ip, ref.version), used: map[*allowance]bool{}, spelled: map[string]bool{},
	}
	s.usher = startUsher(t, s.consul, usherPort)
	follower, stop := connect(t, s.usher)
	t.Cleanup(stop)
	s.follower = follower
	return s
}

// suite is what the cases share.
type suite struct {
	ref      reference
	peered   bool   // there is a cluster peer
	ip       string // of all parts
	consul   *consulServer
	usher    string // xDS address
	follower *envoy

	used                           map[*allowance]bool
	spelled                        map[string]bool // the old spellings that were met, by key
	ran, equal, refused, resources int

	releases   []string // of Envoy, that every set is shown to
	validated  int
	validating time.Duration
}

func (s *suite) run(t *testing.T, c lab.GatewayCase) {
	s.ran++
	s.consul.reset(t)
	if err := s.consul.load(c); err != nil {
		t.Fatal(err)
	}
	want, stopOwn, err := s.askConsul(t, c.Nothing)
	if err != nil {
		t.Fatal(err)
	}
	defer stopOwn()
	fresh, stop := connect(t, s.usher)
	defer stop()
	cold, stopCold := connect(t, startUsher(t, s.consul, coldPort))
	defer stopCold()
	s.expect(t, "the Envoy that stays", s.follower, want)
	s.expect(t, "a fresh Envoy", fresh, want)
	s.expect(t, "the Envoy of a fresh Usher", cold, want)
	s.takenByEnvoy(t, s.releases)
	if t.Failed() {
		return
	}
	s.equal++
	for _, byName := range want.resources {
		s.resources += len(byName)
	}
}

// refuses demands that Consul does not take a case, and says so.
func (s *suite) refuses(t *testing.T, c lab.GatewayCase, says string) {
	t.Helper()
	s.refused++
	s.consul.reset(t)
	err := s.consul.load(c)
	if err == nil {
		var stop func()
		if _, stop, err = s.askConsul(t, false); err == nil {
			stop()
		}
	}
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("Consul %s: %v, want it to refuse the case with %q", s.ref.version, err, says)
		return
	}
	t.Logf("not taken: %s", says)
}

// expect waits until an Envoy has the resources.
func (s *suite) expect(t *testing.T, who string, e *envoy, want *original) {
	t.Helper()
	used, err := s.awaitEqual(e, want, settleDeadline)
	if err != nil {
		t.Errorf("%s: not as with Consul within %v:\n%v", who, settleDeadline, err)
		return
	}
	maps.Copy(s.used, used)
}

// awaitEqual waits until an Envoy has the resources, and returns the allowances
// that this needed; the error says in what they differ at the deadline.
func (s *suite) awaitEqual(e *envoy, want *original, deadline time.Duration) (map[*allowance]bool, error) {
	timeout := time.NewTimer(deadline)
	defer timeout.Stop()
	for {
		used := map[*allowance]bool{}
		problem := check(e.seen, want.resources, s.ref.version, used)
		if problem == nil {
			return used, nil
		}
		select {
		case e.seen = <-e.views:
		case v := <-want.views:
			if err := want.take(v); err != nil {
				return nil, err
			}
		case <-timeout.C:
			return nil, problem
		}
	}
}

// check says in what a view is not what is wanted.
func check(v view, want resources, version string, used map[*allowance]bool) error {
	if v.Missing != "" {
		return fmt.Errorf("missing: %s", v.Missing)
	}
	has, err := v.Resources.Canonical()
	if err != nil {
		return err
	}
	var lines []string
	for _, d := range unexplained(resourcediff.Compare(want, has), version, used) {
		lines = append(lines, describe(d))
	}
	if len(lines) > 0 {
		return errors.New(strings.Join(lines, "\n"))
	}
	return nil
}
