//go:build e2e

package e2e

import (
	"errors"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestUsherIsKilledUnderLoad kills Usher and starts it again, three times, under
// load. No request fails. The Envoy that connects again is up to date, is sent
// nothing, and gets the next change.
func TestUsherIsKilledUnderLoad(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	l.HAProxy.SetHeader(t, lab.SendV2)
	l.SetMode(t, "permissive")
	options := lab.UsherOptions{Host: l.Gateway, Consul: l.Consul}
	usher := lab.StartUsher(t, options)
	gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	l.WantClientAddress(t, gateway)
	if usher.MetricSum(t, resourceBytes) == 0 {
		t.Fatal("a new Envoy was sent no resource")
	}
	load := lab.StartLoad(t, l.Request("/"))
	for _, mode := range []string{"strict", "permissive", "strict"} {
		usher.Kill()
		load.WaitMore(t)
		usher = lab.StartUsher(t, options)
		usher.WaitStream(t)
		load.WaitMore(t)
		if sent := usher.MetricSum(t, resourceBytes); sent != 0 {
			t.Errorf("an Envoy that was up to date was sent %v bytes of resources", sent)
		}
		l.SetMode(t, mode)
		l.WaitMode(t, l.Gateway, mode)
	}
	load.WantNoFailures(t)
}

// TestUsherIsKilledInTheMiddleOfASwitch kills Usher while all of the load is
// being switched to a new cluster: when Consul has the change and Usher may not,
// when an Envoy has the cluster, and when one Envoy has everything and the other
// may not. The next Usher finishes the switch, and no request fails.
func TestUsherIsKilledInTheMiddleOfASwitch(t *testing.T) {
	t.Parallel()
	s := startSwitchStory(t)
	s.StartLoad(t)
	unfinished := 0
	for i := range 9 {
		unfinished += s.killDuring(t, s.next(t, i), s.killPoint(t, i))
	}
	if unfinished == 0 {
		t.Error("each time both Envoys had the change already: this shows nothing")
	}
	s.WantNoFailures(t)
}

// killPoint returns what to wait for in the ith switch before Usher is killed.
func (s *switchStory) killPoint(t *testing.T, i int) func(c lab.Change) error {
	t.Helper()
	added := func() int { return s.OnUsher.Stat(t, "cluster_manager.cluster_added") }
	before := added()
	switch i % 3 {
	case 0:
		return func(lab.Change) error { return nil }
	case 1:
		return func(lab.Change) error {
			if added() == before {
				return errors.New("no cluster came")
			}
			return nil
		}
	default:
		return func(c lab.Change) error { return c.Visible(s.OnUsher) }
	}
}

// killDuring makes the change, kills Usher when it is time, starts another one
// and waits for the change at all Envoys. It says how many of Usher's did not
// have it when Usher was dead.
func (s *switchStory) killDuring(t *testing.T, c lab.Change, when func(lab.Change) error) (unfinished int) {
	t.Helper()
	s.WantNotYet(t, c, s.All())
	s.Apply(t, c)
	testprocess.Eventually(t, c.Name+" is under way", testprocess.ChangeDeadline, func() error { return when(c) })
	s.server.Kill()
	for _, g := range []*lab.LoadedGateway{s.OnUsher, s.SecondOnUsher} {
		if c.Visible(g) != nil {
			unfinished++
		}
	}
	s.server = lab.StartUsher(t, s.options)
	s.WaitEverywhere(t, c, s.All())
	t.Logf("%s: when Usher was killed, %d of 2 Envoys did not have it", c.Name, unfinished)
	return unfinished
}

// resourceBytes counts what Envoys were sent.
const resourceBytes = "usher_xds_resource_bytes_total"
