//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"testing"
)

// TestUsherIsKilledUnderLoad kills Usher and starts it again, three times, while
// requests come in. None fails. The Envoy that comes back has everything already
// and is sent nothing, and it follows the next change.
func TestUsherIsKilledUnderLoad(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, false)
	l.HAProxy.setHeader(t, v2Header)
	l.setMode(t, "permissive")
	options := usherOptions{Host: l.Gateway, Consul: l.Consul}
	usher := startUsher(t, options)
	gateway := startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: usher.GRPCAddr})
	l.wantClientsAddress(t, gateway)
	if usher.sum(t, resourceBytes) == 0 {
		t.Fatal("a new Envoy was sent no resource")
	}
	load := startLoad(t, l.call("/"))
	for _, mode := range []string{"strict", "permissive", "strict"} {
		usher.Kill()
		load.waitMore(t)
		usher = startUsher(t, options)
		usher.waitStream(t)
		load.waitMore(t)
		if sent := usher.sum(t, resourceBytes); sent != 0 {
			t.Errorf("an Envoy that was up to date was sent %v bytes of resources", sent)
		}
		l.setMode(t, mode)
		l.waitMode(t, l.Gateway, mode)
	}
	load.wantNoFailures(t)
}

// TestUsherIsKilledInTheMiddleOfASwitch kills Usher while all of the load is
// being switched to a new cluster: when Consul has the change and Usher may not,
// when an Envoy has the cluster, and when one Envoy has all and the other may
// not. The next Usher finishes what the last one began, and no request fails.
func TestUsherIsKilledInTheMiddleOfASwitch(t *testing.T) {
	t.Parallel()
	s := startSwitchStory(t)
	s.startLoad(t)
	unfinished := 0
	for i := range 9 {
		unfinished += s.killDuring(t, s.next(t, i), s.moment(t, i))
	}
	if unfinished == 0 {
		t.Error("each time both Envoys had the change already: this shows nothing")
	}
	s.wantNoFailures(t)
}

// moment gives what to wait for in the ith switch before Usher is killed.
func (s *switchStory) moment(t *testing.T, i int) func(c change) error {
	t.Helper()
	added := func() int { return s.Usher.stat(t, "cluster_manager.cluster_added") }
	before := added()
	switch i % 3 {
	case 0:
		return func(change) error { return nil }
	case 1:
		return func(change) error {
			if added() == before {
				return errors.New("no cluster came")
			}
			return nil
		}
	default:
		return func(c change) error { return c.shows(s.Usher) }
	}
}

// killDuring makes the change, kills Usher when it is time, starts another one
// and waits for the change at all Envoys. It says how many of Usher's did not
// have it when Usher was dead.
func (s *switchStory) killDuring(t *testing.T, c change, when func(change) error) (unfinished int) {
	t.Helper()
	s.wantAhead(t, c, s.all())
	s.write(t, c)
	eventually(t, c.name+" is under way", changeDeadline, func() error { return when(c) })
	s.server.Kill()
	for _, g := range []*loadedGateway{s.Usher, s.Twin} {
		if c.shows(g) != nil {
			unfinished++
		}
	}
	s.server = startUsher(t, s.options)
	s.settle(t, c, s.all())
	t.Logf("%s: when Usher was killed, %d of 2 Envoys did not have it", c.name, unfinished)
	return unfinished
}

// resourceBytes counts what Envoys were sent.
const resourceBytes = "usher_xds_resource_bytes_total"

// waitStream waits until an Envoy is connected and has its first answers.
func (u *usher) waitStream(t *testing.T) {
	t.Helper()
	eventually(t, "an Envoy comes back", startDeadline, func() error {
		if n := u.sum(t, "usher_xds_acks_total"); n < 2 {
			return fmt.Errorf("%v answers acknowledged, want those of clusters and listeners", n)
		}
		return nil
	})
}

// sum adds up the series of a metric.
func (u *usher) sum(t *testing.T, metric string) float64 {
	t.Helper()
	var total float64
	for _, series := range regexp.MustCompile(`(?m)^`+metric+`(?:\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(u.metrics(t), -1) {
		value, err := strconv.ParseFloat(series[1], 64)
		if err != nil {
			t.Fatalf("%s: %v", metric, err)
		}
		total += value
	}
	return total
}
