//go:build e2e

package e2e

import (
	"os"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/memory"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestMemoryStaysBelowTheFormula lets an Usher have more and more of what costs
// memory: services, Envoys, of which some acknowledge nothing, and attackers. At
// each step its peak is at most what the formula gives, and more than what the
// formula says is live without what is new.
func TestMemoryStaysBelowTheFormula(t *testing.T) {
	const services, streams, silent = 300, 500, 100
	g := startUsherIn(t, 0)
	m := &measuredUsher{limitedUsher: g, load: memory.Load{Services: 1, Endpoints: 1}}
	m.want(t, "at the start", memory.Load{})

	before := m.load
	ports := make([]int, services)
	for i := range ports {
		ports[i] = 20000 + i
	}
	registerMany(t, &lab.Lab{Network: g.Network, Consul: g.Consul}, ports)
	e := lab.ConnectFakeEnvoy(t, lab.XDSPort{From: g.Gateway}.Dial(t), fakeenvoy.Delta, g.Token)
	e.Subscribe(resource.EndpointType, "*")
	awaitPorts(t, e, changed(ports, 0, 1))
	e.Disconnect()
	m.load.Services, m.load.Endpoints = services+1, services+1
	m.churn(t, ports)
	m.want(t, "with services", before)

	before = m.load
	g.crowd.joinOver(t, lab.XDSPort{From: g.Gateway}, streams, 1)
	g.crowd.waitVersion(t, "")
	g.crowd.joinSilent(t, lab.XDSPort{From: g.Gateway}, silent)
	m.load.Streams = streams + silent
	m.churn(t, ports)
	m.want(t, "with Envoys", before)

	before = m.load
	s := newAttackers(t, g.Gateway.Addr(18000), g.Client, g.Balancer, g.Service)
	s.startAll(t)
	waitLimitsReached(t, g.Usher, "request_size", "request_bytes", "first_request_time")
	m.load.Callers, m.load.Requests = 500, 64<<20
	m.churn(t, ports)
	m.want(t, "under attack", before)
	g.crowd.wantNoneLost(t)
}

// measuredUsher is an Usher whose memory is compared with the formula.
type measuredUsher struct {
	*limitedUsher
	load memory.Load
}

// churn changes the ports of a part of the services and waits for the last change.
func (m *measuredUsher) churn(t *testing.T, ports []int) {
	t.Helper()
	l := &lab.Lab{Network: m.Network, Consul: m.Consul}
	e := lab.ConnectFakeEnvoy(t, lab.XDSPort{From: m.Gateway}.Dial(t), fakeenvoy.Delta, m.Token)
	e.Subscribe(resource.EndpointType, "*")
	awaitPorts(t, e, changed(ports, 0, 1))
	for i := 0; i < len(ports); i += 5 {
		ports[i]++
		registerNumbered(t, l, i, ports[i])
	}
	awaitPorts(t, e, changed(ports, 0, 5))
	e.Disconnect()
}

// want wants the peak since the process started between what the formula says is
// live with the load before, and what it gives for the load now.
func (m *measuredUsher) want(t *testing.T, when string, before memory.Load) {
	t.Helper()
	if err := m.Usher.Alive(); err != nil {
		t.Fatal(err)
	}
	peak := lab.PeakMemory(t, m.Usher.Pid())
	least, most := before.Live(), m.load.Peak()
	if before == (memory.Load{}) {
		least = 0
	}
	t.Logf("%s: peak %d MiB, want %d to %d MiB", when, peak>>20, least>>20, most>>20)
	if peak > most {
		t.Errorf("%s: the peak is %d MiB, and the formula gives %d MiB", when, peak>>20, most>>20)
	}
	if peak <= least {
		t.Errorf("%s: the peak is %d MiB, and the formula gives %d MiB without what is new: a term is larger than it has to be", when, peak>>20, least>>20)
	}
}

// TestAMemoryLimitBelowTheFormula has an Usher with a memory limit that is too low for what it holds. It serves all the
// same, and says what is wrong.
func TestAMemoryLimitBelowTheFormula(t *testing.T) {
	n := lab.NewNetwork(t)
	consul := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: n.Control, Secure: true})
	n.RegisterCatalog(t, consul)
	u := lab.StartUsher(t, lab.UsherOptions{Host: n.Gateway, Consul: consul, Env: []string{"GOMEMLIMIT=4MiB"}})
	u.WaitOutput(t, `msg="start check" check=memory result="the limit is 4 MiB (GOMEMLIMIT), and with these flags Usher can need `)
	u.WaitProblem(t, testprocess.StartDeadline, "usher's memory: what it holds fills more than 90 % of its memory limit of 4 MiB")
	e := lab.ConnectFakeEnvoy(t, lab.XDSPort{From: n.Gateway, Address: "127.0.0.1:18000"}.Dial(t), fakeenvoy.Delta, consul.DefaultToken())
	e.Subscribe(resource.ClusterType)
	e.Ack(e.Next())
}

// TestTheMemoryLimitIsThatOfTheContainer has an Usher in a cgroup of 200 MiB.
func TestTheMemoryLimitIsThatOfTheContainer(t *testing.T) {
	if os.Getenv("GOMEMLIMIT") != "" {
		t.Fatal("unset GOMEMLIMIT: Usher would take it instead of the limit of its cgroup")
	}
	n := lab.NewNetwork(t)
	consul := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: n.Gateway})
	u := lab.StartUsher(t, lab.UsherOptions{Host: n.Gateway, Consul: consul, Memory: 200 << 20})
	u.WaitOutput(t, `msg="start check" check=memory result="ok, the limit is 180 MiB (90 % of the cgroup's memory limit)`)
	if got := u.MetricSum(t, "go_gc_gomemlimit_bytes"); int(got)>>20 != 180 && int(got)>>20 != 179 {
		t.Errorf("go_gc_gomemlimit_bytes is %v, want 180 MiB", got)
	}
}
