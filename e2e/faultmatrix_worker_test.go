//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// faultGateway is what the workers have: a gateway, an Usher behind a fault proxy,
// and a fake Envoy. To show that a change arrives, an instance is moved of a
// service that no other gateway has.
type faultGateway struct {
	*faultLab
	gateway string
	host    *lab.Host
	port    int // of Usher, for Envoys
	proxy   *lab.FaultProxy
	signer  *signerProxy
	usher   *faultUsher
	fake    *recorder
	moved   int
}

func (f *faultLab) newGateway(t *testing.T, i int, h *lab.Host, port int) *faultGateway {
	t.Helper()
	r := &faultGateway{
		faultLab: f, gateway: fmt.Sprint("gateway-", i), host: h, port: port, moved: 30000 + 1000*i,
		proxy: f.startProxy(t, h), signer: startSignerProxy(t, h, f.Consul),
	}
	r.fake = newRecorder(r.gateway)
	r.move(t)
	r.writeEntry(t, r.gateway)
	return r
}

// startUsher starts an Usher.
func (r *faultGateway) startUsher(t *testing.T) {
	t.Helper()
	r.usher = r.launch(t, r.host, r.port, r.proxy, r.signer.URL)
	r.usher.waitServing(t)
}

// trouble is a fault that is there.
type activeFault struct {
	gateway *faultGateway
	cell    faultCell
	in      *lab.Injection
	clear   func()
}

// inject begins the fault of a cell.
func (r *faultGateway) inject(c faultCell) activeFault {
	if c.signer != nil {
		r.signer.inject(*c.signer)
		return activeFault{gateway: r, cell: c, clear: r.signer.clear}
	}
	in := r.proxy.Inject(c.question, c.fault)
	return activeFault{gateway: r, cell: c, in: in, clear: in.Clear}
}

// waitHit waits until Usher has met with the fault often enough.
func (f activeFault) waitHit(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%v hits", f.cell), testprocess.StartDeadline, func() error {
		hits, _ := f.gateway.signer.counts()
		if f.in != nil {
			hits = f.in.Hits()
		}
		if hits < f.cell.hits() {
			return errors.Join(fmt.Errorf("%d times so far", hits), f.gateway.usher.Alive())
		}
		return nil
	})
}

// waitOver clears the fault, and waits until Usher has Consul's answer.
func (f activeFault) waitOver(t *testing.T) {
	t.Helper()
	var good *lab.Counter
	if f.in != nil {
		good = f.gateway.proxy.CountGood(f.cell.question)
	}
	f.clear()
	if f.cell.isAnswer() {
		return
	}
	if f.cell.signer != nil {
		f.gateway.writeEntry(t, f.gateway.gateway) // after "resource exhausted" Usher would wait for half a minute
	}
	testprocess.Eventually(t, fmt.Sprintf("after %v the answer is good", f.cell), testprocess.StartDeadline, func() error {
		_, n := f.gateway.signer.counts()
		if good != nil {
			n = good.Count()
		}
		if n == 0 {
			return errors.Join(errNotYet, f.gateway.usher.Alive())
		}
		return nil
	})
}

// move moves the instance, and gives its new port.
func (r *faultGateway) move(t *testing.T) int {
	t.Helper()
	r.moved++
	marker := markerOf(r.gateway)
	registerSidecar(t, r.Consul, sidecarOf(marker, marker, r.moved))
	return r.moved
}

// wantChangeArrives moves the instance, and waits for that at the fake Envoy.
func (r *faultGateway) wantChangeArrives(t *testing.T) {
	t.Helper()
	r.fake.waitEndpoint(t, r.move(t))
}

// waitReauthorized waits until Usher has asked twice more whether the fake Envoy
// may still be connected. Nothing else happens where nothing is handed on.
func (r *faultGateway) waitReauthorized(t *testing.T) {
	t.Helper()
	r.proxy.CountGood(lab.Query{Name: "authorize", Path: "/v1/internal/acl/authorize"}).Wait(t, 4)
}

// waitComplete waits until the fake Envoy has everything.
func (r *faultGateway) waitComplete(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, "the fake Envoy has everything", testprocess.StartDeadline, func() error {
		if err := r.usher.Alive(); err != nil {
			return err
		}
		if n := len(r.fake.versions(resource.ListenerType)); n != 5 {
			return errors.Join(fmt.Errorf("it has %d listeners", n), r.fake.lastEnd())
		}
		for typeURL, names := range r.fake.names() {
			have := r.fake.versions(typeURL)
			for name := range names {
				if have[name] == "" {
					return fmt.Errorf("%s %q is missing", shortType(typeURL), name)
				}
			}
		}
		return nil
	})
	r.wantChangeArrives(t)
}

// wantNoEffect wants no loss at the fake Envoy but those of a truth, nothing that
// a real one refuses, and an Usher that lives and has not panicked.
func (r *faultGateway) wantNoEffect(t *testing.T, c faultCell) {
	t.Helper()
	truth := knownEffects[c.String()]
	missing := slices.Clone(truth.lost)
	for _, loss := range r.fake.drainLosses() {
		begins := func(prefix string) bool { return strings.HasPrefix(loss, prefix) }
		missing = slices.DeleteFunc(missing, begins)
		if !slices.ContainsFunc(truth.lost, begins) {
			t.Errorf("sent on the wire: %s", loss)
		}
	}
	if len(missing) > 0 && !truth.late {
		t.Errorf("%s: nothing was lost of %q", truth.why, missing)
	}
	if err := r.usher.Alive(); err != nil {
		t.Fatal(err)
	}
	for _, metric := range []string{"usher_panics_total", "usher_xds_nacks_total"} {
		if n := r.usher.sum(t, metric); n != 0 {
			t.Errorf("%s is %v", metric, n)
		}
	}
}

// liveWorker has a real Envoy, too, which is under load.
type liveWorker struct {
	*faultGateway
	envoy    *lab.Envoy
	load     *lab.Load
	failures int           // that were reported
	served   time.Duration // since the load's start: see waitServed
	trouble  activeFault   // of a wholeWorker
}

func (f *faultLab) startLiveWorker(t *testing.T, i int) *liveWorker {
	t.Helper()
	h := f.AddHost(t, fmt.Sprint("gateway-", i), fmt.Sprint("198.18.1.", 10+i))
	w := &liveWorker{faultGateway: f.newGateway(t, i, h, 18000)}
	w.startUsher(t)
	w.envoy = lab.StartGateway(t, lab.GatewayOptions{Host: h, Consul: f.Consul, Envoy: lab.EnvoyNew, GRPCAddr: "http://" + w.usher.xds, Service: w.gateway, Token: lab.ManagementToken})
	t.Cleanup(w.fake.connect(f.dialXDS(t, h, w.port)))
	w.waitComplete(t)
	target := lab.Request{From: f.Client, To: h.Addr(8080)}
	lab.WaitStatus(t, target, http.StatusOK)
	w.load = lab.StartLoadAt(t, target, 20)
	return w
}

func (w *liveWorker) prepare(*testing.T, faultCell) {}

// begin lets the fault begin. If the test fails, it shows what Usher has logged since.
func (w *liveWorker) begin(t *testing.T, c faultCell) activeFault {
	logged := w.usher.logSize(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("usher's log meanwhile:\n%s", w.usher.logSince(t, logged))
		}
	})
	w.fake.drainLosses()
	return w.inject(c)
}

func (w *liveWorker) run(t *testing.T, c faultCell) {
	trouble := w.begin(t, c)
	defer trouble.clear()
	if c.signer != nil {
		w.writeEntry(t, w.gateway)
	}
	trouble.waitHit(t)
	if slices.Contains(standstills, c.String()) {
		w.waitReauthorized(t)
	} else {
		w.wantChangeArrives(t)
	}
	if truth := knownEffects[c.String()]; !truth.late {
		w.fake.waitLosses(t, truth.lost)
	}
	trouble.waitOver(t)
	w.wantChangeArrives(t)
	w.wantNoEffect(t, c)
	if knownEffects[c.String()].refused {
		w.waitServed(t)
	}
	w.wantNoneLost(t)
}

// wantNoneLost wants that no request has failed since it was called last, but for
// those that began before waitServed was.
func (w *liveWorker) wantNoneLost(t *testing.T) {
	t.Helper()
	w.load.Mu.Lock()
	defer w.load.Mu.Unlock()
	failed := slices.DeleteFunc(slices.Clone(w.load.Failures[w.failures:]), func(f lab.LoadFailure) bool { return f.After < w.served })
	if len(failed) > 0 {
		t.Errorf("load: %d requests failed, the first and the last: %v, %v", len(failed), failed[0], failed[len(failed)-1])
	}
	w.failures = len(w.load.Failures)
}

// recover starts another Usher where the last one has ended, or would not soon
// ask the question again.
func (w *liveWorker) recover(t *testing.T, c faultCell, failed bool) {
	t.Helper()
	if w.usher.Alive() == nil && !c.isAnswer() && !failed {
		return
	}
	w.usher.Kill()
	w.startUsher(t)
	w.waitComplete(t)
	w.fake.drainLosses()
	if failed {
		w.waitServed(t)
	}
}

// waitServed waits until requests are answered again, and forgives those that
// began before and were not. The real Envoy may be behind the fake one: it is
// done with the fault only when it has the last change.
func (w *liveWorker) waitServed(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("the endpoint with port %d reaches envoy", w.moved), testprocess.ChangeDeadline, func() error {
		clusters, err := w.envoy.Admin("/clusters")
		if err == nil && !strings.Contains(clusters, fmt.Sprintf(":%d::", w.moved)) {
			return errNotYet
		}
		return err
	})
	lab.WaitStatus(t, w.load.Target, http.StatusOK)
	w.served = time.Since(w.load.Started)
}

// restartWorker has no Usher between two faults.
type restartWorker struct {
	*faultGateway
	whole map[string]map[string]held // what the fake Envoy has when nothing is wrong
}

func (f *faultLab) startRestartWorker(t *testing.T, i int) *restartWorker {
	t.Helper()
	w := &restartWorker{faultGateway: f.newGateway(t, i, f.Control, 18100+2*i)}
	registerSidecar(t, f.Consul, &api.AgentService{
		Kind: api.ServiceKindIngressGateway, ID: w.gateway, Service: w.gateway, Address: lab.ControlIP, Port: 8443,
	})
	w.startUsher(t)
	leave := w.fake.connect(f.dialXDS(t, f.Control, w.port))
	defer leave()
	w.waitComplete(t)
	w.usher.Kill()
	w.whole = w.fake.copy()
	return w
}

func (w *restartWorker) prepare(*testing.T, faultCell) {}

func (w *restartWorker) run(t *testing.T, c faultCell) {
	trouble := w.inject(c)
	defer trouble.clear()
	w.startUsher(t)
	defer w.fake.connect(w.dialXDS(t, w.host, w.port))()
	if c.question.Name != "authorize" {
		w.usher.waitStream(t)
		w.usher.waitDecided(t, c.isPatient())
	}
	trouble.waitHit(t)
	switch {
	case c.question.Name == "authorize":
	case slices.Contains(standstills, c.String()) || w.usher.sum(t, "usher_consul_snapshots_total") == 0:
		w.waitReauthorized(t)
	default:
		w.wantChangeArrives(t)
	}
	if truth := knownEffects[c.String()]; !truth.late {
		w.fake.waitLosses(t, truth.lost)
	}
	trouble.waitOver(t)
	w.wantChangeArrives(t)
	w.wantNoEffect(t, c)
}

func (w *restartWorker) recover(_ *testing.T, _ faultCell, failed bool) {
	w.usher.Kill()
	if failed {
		w.fake.restore(w.whole)
		w.fake.drainLosses()
	}
}

// outageWorker starts Usher while its real Envoy is under load and all of Consul
// is at fault.
type outageWorker struct{ *liveWorker }

func (w *outageWorker) prepare(t *testing.T, c faultCell) {
	t.Helper()
	w.fake.drainLosses()
	w.usher.Kill()
	w.trouble = w.inject(c)
	w.startUsher(t)
}

func (w *outageWorker) run(t *testing.T, c faultCell) {
	defer w.trouble.clear()
	w.trouble.waitHit(t)
	w.load.WaitMore(t)
	w.load.WaitMore(t)
	w.trouble.clear()
	begin := time.Now()
	w.wantChangeArrives(t)
	t.Logf("recovered after %v", time.Since(begin).Round(time.Millisecond))
	w.wantNoEffect(t, c)
	w.wantNoneLost(t)
}
