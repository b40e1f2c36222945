//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestBalancerAndServiceAreSwitchedApart switches PROXY headers on and off at the
// balancer and in its Service, one long after the other, under 300 requests a
// second through two pods. Each pod's Usher is killed in a grace. No request
// fails, each leaves the address in the access log that the balancer gave for
// it, and both Ushers send the same whenever nothing is under way.
//
// The Service comes first where no grace lasts, as with every cloud, for the
// cloud reads it. Within a grace the balancer comes first, too, both on and off:
// somebody has changed their mind.
//
// USHER_APART sets how far apart (2s); 20s is what a cloud needs at least.
func TestBalancerAndServiceAreSwitchedApart(t *testing.T) {
	t.Parallel()
	s := startSwitchedApart(t)
	s.stay(t, "off")

	s.annotate(t, true)
	s.stay(t, "permissive")
	s.wait()
	s.setHeader(t, v2Header)

	s.setHeader(t, noHeader)
	s.waitInGrace(t)
	s.annotate(t, false)
	s.stay(t, "permissive")
	s.setHeader(t, v2Header)
	s.waitInGrace(t)
	s.annotate(t, true)
	s.first.restart(t)
	s.stay(t, "permissive")
	s.stay(t, "strict")

	s.annotate(t, false)
	s.stay(t, "permissive")
	s.second.restart(t)
	s.stay(t, "permissive")
	s.wait()
	s.setHeader(t, noHeader)
	s.stay(t, "off")

	s.load.wantNoFailures(t)
	s.wantAddresses(t)
}

// switchedApart is the lab with two pods behind the balancer, under load.
type switchedApart struct {
	*kubernetesLab
	first, second *pod
	apart, grace  time.Duration
	load          *load
	headers       []switched
	sent          map[string]map[string]string // what both Ushers sent, by mode
}

// switched is a change of what the balancer writes in front of new connections.
type switched struct {
	header   proxyHeader
	from, to time.Time // while it was made
}

func startSwitchedApart(t *testing.T) *switchedApart {
	t.Helper()
	apart, err := time.ParseDuration(envOr("USHER_APART", "2s"))
	if err != nil {
		t.Fatalf("USHER_APART: %v", err)
	}
	s := &switchedApart{kubernetesLab: startKubernetesLab(t), apart: apart, grace: 5 * apart, sent: map[string]map[string]string{}}
	s.chart(t, "../internal/loadbalancer/testdata/consul-values.yaml", false)
	s.first = s.startPod(t, s.Gateway, s.grace)
	s.second = s.startPod(t, s.addHost(t, "gateway2", gateway2IP), s.grace)
	s.HAProxy.Kill() // it has one target only
	s.HAProxy = startBalancer(t, balancerOptions{
		Host: s.Balancer, Targets: []*host{s.first.host, s.second.host}, Ports: []int{8080}, Header: noHeader,
	})
	waitStatus(t, s.call("/"), 200)
	s.headers = []switched{{header: noHeader}}
	s.load = startLoadAt(t, s.call("/"), 300)
	return s
}

// wait lets the time pass that lies between the two switches.
func (s *switchedApart) wait() { time.Sleep(s.apart) }

// waitInGrace is wait where the balancer was first.
func (s *switchedApart) waitInGrace(t *testing.T) {
	t.Helper()
	s.wait()
	if s.first.usher.graceEnd(t) == "" {
		t.Fatalf("this machine is too slow: the grace of %v is over; set USHER_APART to more than %v", s.grace, s.apart)
	}
}

// setHeader switches the balancer, and lets it work like this for a while.
func (s *switchedApart) setHeader(t *testing.T, header proxyHeader) {
	t.Helper()
	from := time.Now()
	s.HAProxy.setHeader(t, header)
	s.headers = append(s.headers, switched{header, from, time.Now()})
	s.load.waitMore(t)
}

// annotate switches the Service, and waits until both Ushers have begun the grace
// for it, which ends at the same time.
func (s *switchedApart) annotate(t *testing.T, on bool) {
	t.Helper()
	before := s.first.usher.graceEnd(t)
	var value *string
	if on {
		value = new("*")
	}
	s.API.Annotate(t, awsHeaders, value)
	eventually(t, "both Ushers have begun the same grace", changeDeadline, func() error {
		first, second := s.first.usher.graceEnd(t), s.second.usher.graceEnd(t)
		if first == "" || first == before || first != second {
			return fmt.Errorf("they end at %q and %q, and the last one at %q", first, second, before)
		}
		return nil
	})
}

// stay waits until both pods are in a mode. Then both Ushers send the same, which
// is what they sent when they last were, and the load comes through for a while.
func (s *switchedApart) stay(t *testing.T, mode string) {
	t.Helper()
	for _, p := range []*pod{s.first, s.second} {
		p.follows(t, mode, s.grace+changeDeadline)
	}
	if first, second := s.first.usher.graceEnd(t), s.second.usher.graceEnd(t); first != second {
		t.Errorf("%s: the graces end at %s and %s", mode, first, second)
	}
	sent := wantEqual(t, mode, s.first, s.second)
	if diff := cmp.Diff(s.sent[mode], sent); s.sent[mode] != nil && diff != "" {
		t.Errorf("%s: versions the last time -, now +:\n%s", mode, diff)
	}
	for other, versions := range s.sent {
		if other != mode && cmp.Equal(versions, sent) {
			t.Errorf("%s is sent with the versions of %s", mode, other)
		}
	}
	s.sent[mode] = sent
	s.load.waitMore(t)
}

// wantAddresses wants in the access logs, for every request of the load, the
// client's address if its connection came with a header, and the balancer's if
// not.
func (s *switchedApart) wantAddresses(t *testing.T) {
	t.Helper()
	logged := s.logged(t)
	seen := map[int]int{} // requests, by the index of what the balancer did
	wrong := 0
	for _, r := range s.load.answered {
		i := s.settled(r)
		if i < 0 {
			continue // the balancer was being switched
		}
		seen[i]++
		want := map[proxyHeader]string{noHeader: balancerIP, v2Header: clientIP}[s.headers[i].header]
		if got := logged[r.Path]; got != want && wrong < 10 {
			wrong++
			t.Errorf("access log has %q for %s, want %s: the balancer sent %s", got, r.Path, want, s.headers[i].header)
		}
	}
	for i, header := range s.headers {
		t.Logf("balancer with %s: %d requests with the right address", header.header, seen[i])
		if seen[i] < s.load.rate/8 {
			t.Errorf("only %d requests came after change %d of the balancer, to %s", seen[i], i, header.header)
		}
	}
}

// settled is the index of what the balancer did when a request's connection was
// made; -1 if nobody knows.
func (s *switchedApart) settled(r loadRequest) int {
	at := 0
	for i, h := range s.headers[1:] {
		switch {
		case h.to.Before(r.Opened):
			at = i + 1
		case h.from.Before(r.Served):
			return -1
		}
	}
	return at
}

// logged waits until the access logs have all requests of the load, each once,
// and gives the clients' addresses by path.
func (s *switchedApart) logged(t *testing.T) map[string]string {
	t.Helper()
	var addresses map[string]string
	eventually(t, "the access logs have every request", changeDeadline, func() error {
		addresses = map[string]string{}
		for _, p := range []*pod{s.first, s.second} {
			for _, entry := range p.envoy.Log.entries(t) {
				path := entry.text("path")
				if !strings.HasPrefix(path, loadPrefix) {
					continue
				}
				if addresses[path] != "" {
					return testprocess.Hopeless(errors.New(path + " is there twice"))
				}
				addresses[path] = entry.ip(t, "downstream_remote_address")
			}
		}
		for _, r := range s.load.answered {
			if addresses[r.Path] == "" {
				return errors.New("not that for " + r.Path)
			}
		}
		return nil
	})
	return addresses
}
