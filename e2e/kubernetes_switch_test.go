//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestBalancerAndServiceAreSwitchedApart switches PROXY headers on and off at the load
// balancer and in its Service, one long after the other, under 300 requests a second
// through two pods. Each pod's Usher is killed in a grace period. No request fails, each
// one is in the access log with the address that the load balancer sent for it, and both
// Ushers send the same whenever both have the same mode.
//
// Outside a grace period the Service changes first, as at every cloud, because the cloud
// reads it. Within a grace period the load balancer also changes first, both on and off:
// a user has reverted a change.
//
// USHER_APART sets the time between the two (2s); a cloud needs at least 20s.
func TestBalancerAndServiceAreSwitchedApart(t *testing.T) {
	t.Parallel()
	s := startSwitchedApart(t, 300)
	s.stay(t, "off")

	s.annotate(t, true)
	s.stay(t, "permissive")
	s.wait()
	s.setHeader(t, lab.SendV2)

	s.setHeader(t, lab.SendNone)
	s.waitInGrace(t)
	s.annotate(t, false)
	s.stay(t, "permissive")
	s.setHeader(t, lab.SendV2)
	s.waitInGrace(t)
	s.annotate(t, true)
	s.first.Restart(t)
	s.stay(t, "permissive")
	s.stay(t, "strict")

	s.annotate(t, false)
	s.stay(t, "permissive")
	s.second.Restart(t)
	s.stay(t, "permissive")
	s.wait()
	s.setHeader(t, lab.SendNone)
	s.stay(t, "off")

	s.load.WantNoFailures(t)
	s.wantAddresses(t)
}

// switchedApart is the lab with two pods behind the load balancer, under load.
type switchedApart struct {
	*lab.KubernetesLab
	first, second *lab.Pod
	apart, grace  time.Duration
	load          *lab.Load
	headers       []switched
	sent          map[string]map[string]string // what both Ushers sent, by mode
}

// switched is a change of the header that the load balancer sends on new connections.
type switched struct {
	header   lab.ProxyHeader
	from, to time.Time // while the change was in progress
}

// startSwitchedApart starts two pods, whose Ushers get further flags, and as many requests a second.
func startSwitchedApart(t *testing.T, rate int, args ...string) *switchedApart {
	t.Helper()
	apart := 2 * time.Second
	if text := os.Getenv("USHER_APART"); text != "" {
		var err error
		if apart, err = time.ParseDuration(text); err != nil {
			t.Fatalf("USHER_APART: %v", err)
		}
	}
	s := &switchedApart{KubernetesLab: lab.StartKubernetesLab(t), apart: apart, grace: 5 * apart, sent: map[string]map[string]string{}}
	s.ApplyChart(t, "../internal/loadbalancer/testdata/consul-values.yaml", false)
	s.first = s.StartPod(t, s.Gateway, s.grace, args...)
	s.second = s.StartPod(t, s.AddHost(t, "gateway2", lab.Gateway2IP), s.grace, args...)
	s.HAProxy.Kill() // it has one target only
	s.HAProxy = lab.StartHAProxy(t, lab.HAProxyOptions{
		Host: s.Balancer, Targets: []*lab.Host{s.first.Host, s.second.Host}, Ports: []int{8080}, Header: lab.SendNone,
	})
	lab.WaitStatus(t, s.Request("/"), 200)
	s.headers = []switched{{header: lab.SendNone}}
	s.load = lab.StartLoadAt(t, s.Request("/"), rate)
	return s
}

// wait waits for the time between the two switches.
func (s *switchedApart) wait() { time.Sleep(s.apart) }

// waitInGrace is wait for a switch of the load balancer within a grace period.
func (s *switchedApart) waitInGrace(t *testing.T) {
	t.Helper()
	s.wait()
	if s.first.Usher.GracePeriodEnd(t) == "" {
		t.Fatalf("this machine is too slow: the grace period of %v is over; set USHER_APART to more than %v", s.grace, s.apart)
	}
}

// setHeader switches the load balancer, and lets the load run for a while.
func (s *switchedApart) setHeader(t *testing.T, header lab.ProxyHeader) {
	t.Helper()
	from := time.Now()
	s.HAProxy.SetHeader(t, header)
	s.headers = append(s.headers, switched{header, from, time.Now()})
	s.load.WaitMore(t)
}

// annotate switches the Service, and waits until both Ushers are in a new grace period
// with the same end.
func (s *switchedApart) annotate(t *testing.T, on bool) {
	t.Helper()
	before := s.first.Usher.GracePeriodEnd(t)
	var value *string
	if on {
		value = new("*")
	}
	s.API.Annotate(t, awsHeaders, value)
	testprocess.Eventually(t, "both Ushers are in the same grace period", testprocess.ChangeDeadline, func() error {
		first, second := s.first.Usher.GracePeriodEnd(t), s.second.Usher.GracePeriodEnd(t)
		if first == "" || first == before || first != second {
			return fmt.Errorf("they end at %q and %q, and the last one at %q", first, second, before)
		}
		return nil
	})
}

// stay waits until both pods are in a mode. Then both Ushers have to send the same as
// each other and as the last time in this mode, and the load runs for a while.
func (s *switchedApart) stay(t *testing.T, mode string) {
	t.Helper()
	s.waitBoth(t, mode, 0)
	if first, second := s.first.Usher.GracePeriodEnd(t), s.second.Usher.GracePeriodEnd(t); first != second {
		t.Errorf("%s: the grace periods end at %s and %s", mode, first, second)
	}
	sent := lab.WantSameResources(t, mode, s.first, s.second)
	if diff := cmp.Diff(s.sent[mode], sent); s.sent[mode] != nil && diff != "" {
		t.Errorf("%s: versions the last time -, now +:\n%s", mode, diff)
	}
	for other, versions := range s.sent {
		if other != mode && cmp.Equal(versions, sent) {
			t.Errorf("%s is sent with the versions of %s", mode, other)
		}
	}
	s.sent[mode] = sent
	s.load.WaitMore(t)
}

// wantAddresses checks that the access logs have, for every request of the load, the
// client's address if its connection came with a header, and else the load balancer's.
func (s *switchedApart) wantAddresses(t *testing.T) {
	t.Helper()
	logged := s.logged(t)
	seen := map[int]int{} // requests, by the index in headers
	wrong := 0
	for _, r := range s.load.Answered {
		i := s.headerOf(r)
		if i < 0 {
			continue // the load balancer was being switched
		}
		seen[i]++
		want := map[lab.ProxyHeader]string{lab.SendNone: lab.BalancerIP, lab.SendV2: lab.ClientIP}[s.headers[i].header]
		if got := logged[r.Path]; got != want && wrong < 10 {
			wrong++
			t.Errorf("access log has %q for %s, want %s: the load balancer sent %s", got, r.Path, want, s.headers[i].header)
		}
	}
	for i, header := range s.headers {
		t.Logf("load balancer with %s: %d requests with the right address", header.header, seen[i])
		if seen[i] < s.load.Rate/8 {
			t.Errorf("only %d requests came after change %d of the load balancer, to %s", seen[i], i, header.header)
		}
	}
}

// headerOf returns the index in headers for a request's connection; -1 if the load
// balancer was being switched.
func (s *switchedApart) headerOf(r lab.LoadRequest) int {
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

// logged waits until the access logs have all requests of the load, each once, and
// returns the clients' addresses by path.
func (s *switchedApart) logged(t *testing.T) map[string]string {
	t.Helper()
	var addresses map[string]string
	testprocess.Eventually(t, "the access logs have every request", testprocess.ChangeDeadline, func() error {
		addresses = map[string]string{}
		for _, p := range []*lab.Pod{s.first, s.second} {
			for _, logEntry := range p.Envoy.Log.Entries(t) {
				path := logEntry.Text("path")
				if !strings.HasPrefix(path, lab.LoadPrefix) {
					continue
				}
				if addresses[path] != "" {
					return testprocess.Permanent(errors.New(path + " was logged twice"))
				}
				addresses[path] = logEntry.IP(t, "downstream_remote_address")
			}
		}
		for _, r := range s.load.Answered {
			if addresses[r.Path] == "" {
				return errors.New(r.Path + " is missing")
			}
		}
		return nil
	})
	return addresses
}
