//go:build e2e

package conformance

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// settleDeadline is how long Consul, and then Usher, may take to settle.
const settleDeadline = 10 * time.Second

// usherPort is the xDS port of the Usher that lives through all cases.
const usherPort = 18000

// TestSameResourcesAsConsul loads one case after the other into one Consul. For
// each, a fresh Envoy asks Consul. One Envoy stays with one Usher through all
// cases, so that each case is also a change that it follows, and another one
// asks that Usher anew. All must end up with the same.
func TestSameResourcesAsConsul(t *testing.T) {
	ip := loopback()
	consul := startConsul(t, ip)
	usher := startUsher(t, consul, ip, usherPort)
	follower, stop := connect(t, usher)
	defer stop()

	cases := readCases(t)
	s := &suite{consul: consul, usher: usher, follower: follower, used: map[allowance]bool{}}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { s.run(t, c) })
	}
	t.Logf("%d of %d cases equal, %d resources, %d differences allowed", s.equal, len(cases), s.resources, len(s.used))
	if s.ran < len(cases) {
		return // what the others need is not known
	}
	for _, a := range allowed {
		if !s.used[a] {
			t.Errorf("no case needs the allowed difference %s %s", a.typeURL, a.path)
		}
	}
}

// suite is what the cases share.
type suite struct {
	consul   *consulServer
	usher    string // xDS address
	follower *envoy

	used                  map[allowance]bool
	ran, equal, resources int
}

func (s *suite) run(t *testing.T, c testCase) {
	s.ran++
	s.consul.clear(t)
	s.consul.load(t, c)

	onConsul, stop := connect(t, s.consul.grpc)
	want, err := settled(onConsul)
	stop()
	if err != nil {
		t.Fatalf("Consul: %v", err)
	}
	fresh, stop := connect(t, s.usher)
	defer stop()
	s.expect(t, "the Envoy that stays", s.follower, want)
	s.expect(t, "a fresh Envoy", fresh, want)
	if t.Failed() {
		return
	}
	s.equal++
	for _, byName := range want {
		s.resources += len(byName)
	}
	t.Logf("equal: %s", count(want))
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
	problem := errors.New("it got nothing")
	timeout := time.NewTimer(settleDeadline)
	defer timeout.Stop()
	for {
		select {
		case v := <-e.views:
			used := map[allowance]bool{}
			if problem = s.check(v, want, used); problem == nil {
				for a := range used {
					s.used[a] = true
				}
				return
			}
		case <-timeout.C:
			t.Errorf("%s: not as with Consul within %v:\n%v", who, settleDeadline, problem)
			return
		}
	}
}

// check says in what a view is not what is wanted.
func (s *suite) check(v view, want resources, used map[allowance]bool) error {
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

// count says how many resources of each type there are.
func count(r resources) string {
	var parts []string
	for _, typeURL := range append(append([]string{}, wildcardTypes...), namedTypes...) {
		if n := len(r[typeURL]); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, typeURL[strings.LastIndex(typeURL, ".")+1:]))
		}
	}
	return strings.Join(parts, ", ")
}
