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

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
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
// that Usher anew, and a third one an Usher that has just started. All must end
// up with the same.
func TestSameResourcesAsConsul(t *testing.T) {
	cases := readCases(t)
	s := startSuite(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { s.run(t, c) })
	}
	t.Logf("%d of %d cases equal, %d resources, %d differences allowed", s.equal, s.ran, s.resources, len(s.used))
	if s.ran < len(cases) {
		return // what the others need is not known
	}
	for _, a := range allowed {
		if !s.used[a] {
			t.Errorf("no case needs the allowed difference %s %s", a.typeURL, a.path)
		}
	}
}

var (
	seed   = flag.Uint64("seed", 1, "seed of the random cases; 0 takes a new one")
	random = flag.Int("random", 100, "number of random cases")
)

// TestSameResourcesAsConsulForRandomCases does the same with cases that nobody
// has written. A case that differs is printed; its name is the flag -seed and
// its number.
func TestSameResourcesAsConsulForRandomCases(t *testing.T) {
	from := *seed
	for from == 0 {
		from = rand.Uint64() % 1_000_000
	}
	s := startSuite(t)
	for i := range *random {
		c := generate(from, i)
		t.Run(c.name, func(t *testing.T) {
			s.run(t, c)
			if t.Failed() {
				t.Logf("the case, shrunk:\n%s", s.shrink(t, c))
			}
		})
	}
	t.Logf("seed %d: %d of %d cases equal, %d resources", from, s.equal, s.ran, s.resources)
}

// startSuite starts the parts that live through all cases.
func startSuite(t *testing.T) *suite {
	t.Helper()
	ip := loopback()
	s := &suite{ip: ip, consul: startConsul(t, ip), used: map[allowance]bool{}}
	s.usher = startUsher(t, s.consul, ip, usherPort)
	follower, stop := connect(t, s.usher)
	t.Cleanup(stop)
	s.follower = follower
	return s
}

// suite is what the cases share.
type suite struct {
	ip       string // of all parts
	consul   *consulServer
	usher    string // xDS address
	follower *envoy

	used                  map[allowance]bool
	ran, equal, resources int
}

func (s *suite) run(t *testing.T, c testCase) {
	s.ran++
	s.consul.clear(t)
	if err := s.consul.load(c); err != nil {
		t.Fatal(err)
	}
	want, err := s.askConsul(t)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(want[resource.ListenerType]) == 0; got != c.Nothing {
		t.Errorf("Consul gives %d listeners: the case does not show what it is about", len(want[resource.ListenerType]))
	}
	fresh, stop := connect(t, s.usher)
	defer stop()
	cold, stopCold := connect(t, startUsher(t, s.consul, s.ip, coldPort))
	defer stopCold()
	s.expect(t, "the Envoy that stays", s.follower, want)
	s.expect(t, "a fresh Envoy", fresh, want)
	s.expect(t, "the Envoy of a fresh Usher", cold, want)
	if t.Failed() {
		return
	}
	s.equal++
	for _, byName := range want {
		s.resources += len(byName)
	}
}

// askConsul gives what an Envoy gets from Consul.
func (s *suite) askConsul(t *testing.T) (resources, error) {
	t.Helper()
	e, stop := connect(t, s.consul.grpc)
	defer stop()
	r, err := settled(e)
	if err != nil {
		return nil, fmt.Errorf("consul: %w", err)
	}
	return r, nil
}

// settled waits until an Envoy has everything that its resources refer to.
func settled(e *envoy) (resources, error) {
	var last view
	timeout := time.NewTimer(settleDeadline)
	defer timeout.Stop()
	for {
		select {
		case last = <-e.views:
			if last.missing == "" {
				return last.resources.canonical()
			}
		case <-timeout.C:
			return nil, fmt.Errorf("not settled within %v: missing: %s", settleDeadline, last.missing)
		}
	}
}

// expect waits until an Envoy has the resources.
func (s *suite) expect(t *testing.T, who string, e *envoy, want resources) {
	t.Helper()
	used, err := awaitEqual(e, want, settleDeadline)
	if err != nil {
		t.Errorf("%s: not as with Consul within %v:\n%v", who, settleDeadline, err)
		return
	}
	maps.Copy(s.used, used)
}

// awaitEqual waits until an Envoy has the resources, and gives the allowances
// that this needed; the error says in what they differ at the deadline.
func awaitEqual(e *envoy, want resources, deadline time.Duration) (map[allowance]bool, error) {
	problem := errors.New("it got nothing")
	timeout := time.NewTimer(deadline)
	defer timeout.Stop()
	for {
		select {
		case v := <-e.views:
			used := map[allowance]bool{}
			if problem = v.check(want, used); problem == nil {
				return used, nil
			}
		case <-timeout.C:
			return nil, problem
		}
	}
}

// check says in what a view is not what is wanted.
func (v view) check(want resources, used map[allowance]bool) error {
	if v.missing != "" {
		return fmt.Errorf("missing: %s", v.missing)
	}
	has, err := v.resources.canonical()
	if err != nil {
		return err
	}
	var lines []string
	for _, d := range unexplained(compare(want, has), used) {
		lines = append(lines, d.String())
	}
	if len(lines) > 0 {
		return errors.New(strings.Join(lines, "\n"))
	}
	return nil
}
