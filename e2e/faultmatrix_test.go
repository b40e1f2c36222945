//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/usherproxy/usher/e2e/lab"
)

// questions are all that Usher asks of Consul's HTTP API.
var questions = []lab.Query{
	{Name: "agent", Path: "/v1/agent/self"},
	{Name: "roots", Path: "/v1/connect/ca/roots"},
	{Name: "leaf", Path: "/v1/agent/connect/ca/leaf/"},
	{Name: "gateway-services", Path: "/v1/catalog/gateway-services/"},
	{Name: "ingress-gateway", Path: "/v1/config/ingress-gateway"},
	{Name: "mesh", Path: "/v1/config/mesh"},
	{Name: "proxy-defaults", Path: "/v1/config/proxy-defaults"},
	{Name: "instances", Path: "/v1/health/service/gateway-?merge-central-config"},
	{Name: "discovery-chain", Path: "/v1/discovery-chain/static-server"},
	{Name: "health", Path: "/v1/health/connect/shop"},
	{Name: "health of all legs", Path: "/v1/health/connect/static-server"}, // of the service that is under load
	{Name: "health of a peer", Path: "/v1/health/connect/static-server?peer"},
	{Name: "health of a datacenter", Path: "/v1/health/connect/static-server?dc=dc2"},
	{Name: "mesh-gateways", Path: "/v1/catalog/services"},
	{Name: "mesh-gateway", Path: "/v1/health/service/mesh-gateway"},
	{Name: "peering", Path: "/v1/peering/"},
	{Name: "authorize", Path: "/v1/internal/acl/authorize"},
}

// faultCell is a fault of one question, or of the signing of certificates.
type faultCell struct {
	question lab.Query
	fault    lab.Fault
	signer   *signerFault // nil for a question
}

func (c faultCell) String() string {
	if c.signer != nil {
		return "signer: " + c.signer.name
	}
	return c.question.Name + ": " + c.fault.Name
}

// faultCells are all of them. Neighbours have different faults: those that run at
// the same time wait, and take memory, for different reasons.
func faultCells() []faultCell {
	var cells []faultCell
	for i := range signerFaults {
		cells = append(cells, faultCell{signer: &signerFaults[i]})
	}
	for _, q := range questions {
		for _, f := range lab.Faults {
			cells = append(cells, faultCell{question: q, fault: f})
		}
	}
	return cells
}

// wholeCells are the faults of everything at once: Consul is not there, or
// something else is in its place.
func wholeCells() []faultCell {
	var cells []faultCell
	for _, f := range lab.Faults {
		if !strings.Contains(f.Name, "index") {
			cells = append(cells, faultCell{question: lab.EveryQuery, fault: f})
		}
	}
	return cells
}

// knownEffect is an answer that looks like what Consul says when it is so. Usher cannot
// but believe it.
type knownEffect struct {
	why  string
	lost []string // what an Envoy then loses: how the losses begin
	// refused says that requests of the load have nowhere to go.
	refused bool
	// late says that it is believed after ten seconds, and at a restart only: a cell
	// may be over before.
	late bool
}

var knownEffects = map[string]knownEffect{
	"health: []":           {why: "a service without instances", lost: []string{`load assignment "shop.`}},
	"health of a peer: []": {why: "a peer that exports no instance", lost: []string{`cluster "failover-target~2~static-server.`}},
	"health of all legs: []": {why: "a service without instances anywhere", lost: []string{
		`load assignment "failover-target~0~static-server.`, `cluster "failover-target~2~static-server.`,
	}, refused: true},
	"peering: 404":      {why: "no such peering", lost: []string{`cluster "failover-target~2~static-server.`}, late: true},
	"mesh-gateway: []":  {why: "a mesh gateway without instances", lost: []string{`load assignment "failover-target~1~static-server.`}},
	"mesh-gateways: {}": {why: "a datacenter without mesh gateways", lost: []string{`load assignment "failover-target~1~static-server.`}},
}

// standstills are the answers that contradict others, so that Usher hands nothing
// on while they are there.
var standstills = []string{
	"gateway-services: null", "gateway-services: []", "gateway-services: [null]",
	"ingress-gateway: null", "ingress-gateway: []", "instances: null", "instances: []",
}

// hits is how often the fault has to hit the question for Usher to have made
// what it makes of it: once more than it takes Usher to give up hope, unless
// it waits for the answer, or is in no hurry to ask again.
func (c faultCell) hits() int {
	switch {
	case c.signer != nil && (c.signer.name == "hang" || c.signer.name == codes.ResourceExhausted.String()):
		return 1
	case slices.Contains([]string{"hang", "slow body", "endless body"}, c.fault.Name), c.isAnswer():
		return 1
	}
	return 4
}

// isAnswer reports whether the fault is an answer as Consul gives it to a question
// that cannot block, so that it is asked again only after a while.
func (c faultCell) isAnswer() bool {
	answers := map[string][]string{
		"agent":   {"403", "404", "no index", "index 0"},
		"peering": {"no index", "index 0"},
	}
	return slices.Contains(answers[c.question.Name], c.fault.Name)
}

// isPatient reports whether the restart is watched until Usher goes on without the
// answer, which it does late: a few faults show it for every question that
// concerns only a part of the gateway.
func (c faultCell) isPatient() bool {
	part := c.signer != nil || slices.Contains([]string{
		"discovery-chain", "health", "health of all legs", "health of a peer", "health of a datacenter", "mesh-gateways", "mesh-gateway", "peering",
	}, c.question.Name)
	return part && slices.Contains([]string{"500", "403", "hang", "garbage", "[null]"}, c.fault.Name)
}

// A live worker has an Envoy, and a restart worker waits for ten seconds in every
// third cell.
const (
	liveWorkers    = 6
	restartWorkers = 24
)

// TestFaultMatrix lets every fault hit every query, while Usher runs and when it
// starts. No request fails, nothing that an Envoy has is removed or emptied,
// nothing panics, and once the fault is gone a change in Consul arrives.
func TestFaultMatrix(t *testing.T) {
	begin := time.Now()
	f := startFaultLab(t)
	live, restart := newFaultTable("live", faultCells()), newFaultTable("restart", faultCells())
	var workers []func(t *testing.T)
	var ready []*liveWorker
	for i := range liveWorkers {
		w := f.startLiveWorker(t, i)
		ready = append(ready, w)
		workers = append(workers, func(t *testing.T) { live.work(t, w) })
	}
	for i := range restartWorkers {
		w := f.startRestartWorker(t, liveWorkers+i)
		workers = append(workers, func(t *testing.T) { restart.work(t, w) })
	}
	// Not by t.Parallel, which lets no more run at once than there are processors:
	// a cell waits most of its time.
	wantAllAsked(t, ready[0].usher)
	t.Logf("%v until everything runs", time.Since(begin).Round(time.Second))
	var work sync.WaitGroup
	for _, worker := range workers {
		work.Go(func() { worker(t) })
	}
	work.Wait()
	t.Logf("%v until every question was at fault", time.Since(begin).Round(time.Second))
	running, recovered := newFaultTable("running", outageCells()), &recoveries{}
	for _, w := range ready {
		work.Go(func() { running.work(t, &runningOutageWorker{w, recovered}) })
	}
	work.Wait()
	t.Logf("%v until all of Consul was at fault while usher runs:\n%v", time.Since(begin).Round(time.Second), recovered)
	whole := newFaultTable("whole", wholeCells())
	for _, w := range ready {
		work.Go(func() { whole.work(t, &outageWorker{w}) })
	}
	work.Wait()
	t.Logf("%v; %v; %v; %v", live, restart, running, whole)
}

// wantAllAsked wants the questions to be those that an Usher asks: the kinds of its
// watches, and who may connect.
func wantAllAsked(t *testing.T, u *faultUsher) {
	t.Helper()
	metrics, err := u.ask("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{"authorize": true}
	for _, series := range regexp.MustCompile(`(?m)^usher_consul_watches\{kind="(.+)"\} [1-9]`).FindAllStringSubmatch(metrics, -1) {
		asked[series[1]] = true
	}
	known := map[string]bool{}
	for _, q := range questions {
		kind, _, _ := strings.Cut(q.Name, " of ")
		known[kind] = true
	}
	if !maps.Equal(asked, known) {
		t.Errorf("usher asks %v, and %v is put at fault", slices.Sorted(maps.Keys(asked)), slices.Sorted(maps.Keys(known)))
	}
}

// faultTable hands out cells, and counts them.
type faultTable struct {
	name string
	next chan faultCell
	cells,
	good atomic.Int64
}

func newFaultTable(name string, cells []faultCell) *faultTable {
	table := &faultTable{name: name}
	if only := os.Getenv("USHER_FAULT"); only != "" {
		cells = slices.DeleteFunc(cells, func(c faultCell) bool { return !regexp.MustCompile(only).MatchString(c.String()) })
	}
	table.next = make(chan faultCell, len(cells))
	for _, c := range cells {
		table.next <- c
	}
	close(table.next)
	return table
}

func (f *faultTable) String() string {
	return fmt.Sprintf("%s: %d of %d (question x fault) without effect", f.name, f.good.Load(), f.cells.Load())
}

// faultWorker meets faults, one after the other.
type faultWorker interface {
	// prepare does what has to outlive the cell.
	prepare(t *testing.T, c faultCell)
	run(t *testing.T, c faultCell)
	// recover makes the worker fit for the next fault after one that had an effect.
	recover(t *testing.T, c faultCell, failed bool)
}

func (f *faultTable) work(t *testing.T, w faultWorker) {
	t.Helper()
	for c := range f.next {
		f.cells.Add(1)
		w.prepare(t, c)
		ok := t.Run(f.name+" "+c.String(), func(t *testing.T) { w.run(t, c) })
		if ok {
			f.good.Add(1)
		}
		w.recover(t, c, !ok)
	}
}
