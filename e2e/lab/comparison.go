//go:build e2e

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Comparison are two instances of one ingress gateway in front of one Consul:
// one Envoy has Usher as its xDS server, the other Consul itself. Both serve
// the same load, from the same client.
type Comparison struct {
	*Network
	Consul        *Consul
	OnUsher       *LoadedGateway
	OnConsul      *LoadedGateway // Consul's own xDS
	SecondOnUsher *LoadedGateway // one more on the same Usher; nil for none

	// applied are the changes so far. They explain failures.
	applied []appliedChange
	// outage is the change that stopped the service, "" outside of outages.
	outage  string
	outages []string // all so far
}

// appliedChange is when a change was made.
type appliedChange struct {
	name   string
	at     time.Time
	outage string // in which requests have to fail; "" in none
}

// LoadedGateway is a gateway under load.
type LoadedGateway struct {
	*Envoy
	Load     *Load
	logStart int64 // size of the access log before the change

	mu           sync.Mutex
	serverErrors []serverError
}

// serverError is one of the test's own requests that was answered 500 or more.
type serverError struct {
	at   time.Time // of the answer
	text string
}

// Change is one change in Consul and how to see it at an Envoy.
type Change struct {
	Name  string
	Apply func() error
	// Visible is nil once the Envoy has the change.
	Visible func(g *LoadedGateway) error
}

// underLoad limits how many comparisons are under load at the same time: each takes
// half a core.
var underLoad = make(chan struct{}, 2)

// StartLoad puts the load on all gateways. It waits while two other comparisons
// are under load.
func (l *Comparison) StartLoad(t *testing.T) {
	t.Helper()
	underLoad <- struct{}{}
	t.Cleanup(func() { <-underLoad })
	for _, g := range l.All() {
		target := Request{From: l.Client, To: g.Host.Addr(8080)}
		WaitStatus(t, target, http.StatusOK)
		g.Load = StartLoad(t, target)
	}
}

// Both returns the gateway on Usher and the one on Consul.
func (l *Comparison) Both() []*LoadedGateway { return []*LoadedGateway{l.OnUsher, l.OnConsul} }

// All returns both, and the second one on Usher.
func (l *Comparison) All() []*LoadedGateway {
	if l.SecondOnUsher == nil {
		return l.Both()
	}
	return append(l.Both(), l.SecondOnUsher)
}

// CompareAll makes changes of one type, and wants them to reach Usher's Envoy
// sooner in total: the machine may delay a single one.
func (l *Comparison) CompareAll(t *testing.T, what string, changes []Change) {
	t.Helper()
	var usher, consul time.Duration
	for _, c := range changes {
		u, o := l.Compare(t, c)
		usher, consul = usher+u, consul+o
	}
	if usher >= consul {
		t.Errorf("%s: all changes took %v with Usher and %v with Consul's own xDS", what, usher, consul)
	}
}

// Compare makes the change and waits for it at both Envoys. It returns how long
// each of them took. How fast Usher is, e2e/bench measures.
func (l *Comparison) Compare(t *testing.T, c Change) (usher, consul time.Duration) {
	t.Helper()
	l.WantNotYet(t, c, l.Both())
	begin := time.Now()
	onUsher, onConsul := l.OnUsher.waitVisible(begin, c), l.OnConsul.waitVisible(begin, c)
	l.Apply(t, c)
	u, o := <-onUsher, <-onConsul
	if err := errors.Join(u.err, o.err); err != nil {
		t.Fatal(err)
	}
	l.WaitEverywhere(t, c, l.Both())
	return u.took, o.took
}

// Make makes the change and waits for it at all Envoys.
func (l *Comparison) Make(t *testing.T, c Change) {
	t.Helper()
	l.WantNotYet(t, c, l.All())
	l.Apply(t, c)
	l.WaitEverywhere(t, c, l.All())
}

// Apply makes the change.
func (l *Comparison) Apply(t *testing.T, c Change) {
	t.Helper()
	l.record(c.Name)
	if err := c.Apply(); err != nil {
		t.Fatalf("%s: %v", c.Name, err)
	}
}

// record remembers a change and its time.
func (l *Comparison) record(change string) {
	l.applied = append(l.applied, appliedChange{name: change, at: time.Now(), outage: l.outage})
}

// WantNotYet wants the change not to be visible at the Envoys.
func (l *Comparison) WantNotYet(t *testing.T, c Change, gateways []*LoadedGateway) {
	t.Helper()
	for _, g := range gateways {
		g.skipEarlierLog(t)
		if c.Visible(g) == nil {
			t.Fatalf("%s: %s has it before it is made", c.Name, g.Name)
		}
	}
}

// WaitEverywhere waits until every thread of the Envoys has the change.
func (l *Comparison) WaitEverywhere(t *testing.T, c Change, gateways []*LoadedGateway) {
	t.Helper()
	const consecutive = 10
	for _, g := range gateways {
		testprocess.Eventually(t, c.Name+" at all of "+g.Name, testprocess.ChangeDeadline, func() error {
			for range consecutive {
				if err := c.Visible(g); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// arrival is how long a change took to reach an Envoy.
type arrival struct {
	took time.Duration
	err  error
}

// waitVisible waits until the change is visible.
func (g *LoadedGateway) waitVisible(begin time.Time, c Change) <-chan arrival {
	seen := make(chan arrival, 1)
	go func() {
		for {
			err := c.Visible(g)
			took := time.Since(begin)
			switch {
			case err == nil:
				seen <- arrival{took: took}
				return
			case took > testprocess.ChangeDeadline || testprocess.IsPermanent(err):
				seen <- arrival{err: fmt.Errorf("%s: not at %s after %v: %w", c.Name, g.Name, took, err)}
				return
			}
			time.Sleep(testprocess.PollInterval)
		}
	}()
	return seen
}

// Request makes a request from the client to the gateway, to port 8080 unless the
// request has another address.
func (g *LoadedGateway) Request(c Request) (Response, error) {
	if c.To == "" {
		c.To = g.Host.Addr(8080)
	}
	c.From = g.Load.Target.From
	got, err := c.Do(context.Background())
	if err == nil && got.Status >= http.StatusInternalServerError {
		g.mu.Lock()
		defer g.mu.Unlock()
		text := fmt.Sprintf("%s%s: %d %s", c.Host, c.Path, got.Status, got.Body)
		g.serverErrors = append(g.serverErrors, serverError{time.Now(), text})
	}
	return got, err
}

// DumpHas wants the text in an answer of the admin interface.
func (g *LoadedGateway) DumpHas(path, text string) error {
	body, err := g.Admin(path)
	if err == nil && !strings.Contains(body, text) {
		err = fmt.Errorf("%s has no %q", path, text)
	}
	return err
}

// DumpHasNot wants the text not to be in an answer of the admin interface.
func (g *LoadedGateway) DumpHasNot(path, text string) error {
	body, err := g.Admin(path)
	if err == nil && strings.Contains(body, text) {
		err = fmt.Errorf("%s has %q", path, text)
	}
	return err
}

// HasInDump wants the text in an answer of the admin interface.
func HasInDump(path, text string) func(*LoadedGateway) error {
	return func(g *LoadedGateway) error { return g.DumpHas(path, text) }
}

// HasNotInDump wants the text not to be in an answer of the admin interface.
func HasNotInDump(path, text string) func(*LoadedGateway) error {
	return func(g *LoadedGateway) error { return g.DumpHasNot(path, text) }
}

// skipEarlierLog makes HasLogged ignore what was logged before.
func (g *LoadedGateway) skipEarlierLog(t *testing.T) {
	t.Helper()
	info, err := os.Stat(g.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	g.logStart = info.Size()
}

// HasLogged wants the text in the access log after skipEarlierLog.
func (g *LoadedGateway) HasLogged(text string) error {
	file, err := os.Open(g.Stdout)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(g.logStart, io.SeekStart); err != nil {
		return err
	}
	fresh, err := io.ReadAll(file)
	if err == nil && !strings.Contains(string(fresh), text) {
		err = fmt.Errorf("the access log has no %q", text)
	}
	return err
}

// WantNoFailures stops all loads and wants no failed request. Failures of Consul's
// own gateway are counted and printed, and do not fail the test.
func (l *Comparison) WantNoFailures(t *testing.T) {
	t.Helper()
	for _, g := range l.All() {
		g.Load.Stop()
	}
	l.wantSameOutages(t)
	for _, g := range l.All() {
		if g.Load.sent == 0 {
			t.Errorf("load on %s: nothing was sent", g.Name)
		}
		l.wantNoServerError(t, g)
		l.wantNoLostRequest(t, g)
	}
}

// wantNoServerError wants no answer of 500 or more to the test's own requests, with the
// exceptions of wantNoLostRequest.
func (l *Comparison) wantNoServerError(t *testing.T, g *LoadedGateway) {
	t.Helper()
	for _, e := range g.serverErrors {
		if m := l.lastChangeBefore(g.Load, e.at); g != l.OnConsul && m.outage == "" {
			t.Errorf("own request to %s: %s, answered %d ms after %q", g.Name, e.text, e.at.Sub(m.at).Milliseconds(), m.name)
		}
	}
}

// wantNoLostRequest wants no failed request outside of outages, except at Consul's
// own gateway.
func (l *Comparison) wantNoLostRequest(t *testing.T, g *LoadedGateway) {
	t.Helper()
	reasons := g.failureReasons(t)
	lost := map[string]int{}
	for _, f := range g.Load.Failures {
		ended := g.Load.endOf(f)
		m := l.lastChangeBefore(g.Load, ended)
		f.Cause = strings.TrimSpace(f.Cause + " " + reasons[f.Path])
		lost[fmt.Sprintf("%s after %q: %s", f.connection(), m.name, f.Cause)]++
		if g != l.OnConsul && m.outage == "" {
			t.Errorf("load on %s: %v, answered %d ms after %q", g.Name, f, ended.Sub(m.at).Milliseconds(), m.name)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(lost)) {
		t.Logf("load on %s: lost %d on a %s", g.Name, lost[what], what)
	}
	t.Logf("load on %s: %d requests in %.1fs, slowest %v, %d failures",
		g.Name, g.Load.sent, time.Since(g.Load.Started).Seconds(), g.Load.slowest.Round(time.Millisecond),
		len(g.Load.Failures))
}

// lastChangeBefore is the last change before a time.
func (l *Comparison) lastChangeBefore(load *Load, end time.Time) appliedChange {
	last := appliedChange{name: "the start", at: load.Started}
	for _, m := range l.applied {
		if m.at.Before(end) {
			last = m
		}
	}
	return last
}

// failureReasons are the reasons in Envoy's access log for the requests of the load
// that it did not answer with 200, by path.
func (g *LoadedGateway) failureReasons(t *testing.T) map[string]string {
	t.Helper()
	reasons := map[string]string{}
	for _, e := range g.Log.Entries(t) {
		if path := e.Text("path"); strings.HasPrefix(path, LoadPrefix) && e.Text("status") != "200" {
			reasons[path] = fmt.Sprintf("[%s %s; cluster %s, host %s %s]",
				e.Text("flags"), e.Text("details"), e.Text("cluster"), e.Text("host"), e.Text("reason"))
		}
	}
	return reasons
}

// ProxyDefaultsWithLog is proxy-defaults with an access log that contains the mark,
// and what failureReasons reads.
func ProxyDefaultsWithLog(mark string) *api.ProxyConfigEntry {
	return &api.ProxyConfigEntry{
		Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal,
		AccessLogs: &api.AccessLogsConfig{Enabled: true, JSONFormat: fmt.Sprintf(`{"mark": %q,
			"path": "%%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%%", "status": "%%RESPONSE_CODE%%",
			"flags": "%%RESPONSE_FLAGS%%", "details": "%%RESPONSE_CODE_DETAILS%%", "cluster": "%%UPSTREAM_CLUSTER%%",
			"host": "%%UPSTREAM_HOST%%", "reason": "%%UPSTREAM_TRANSPORT_FAILURE_REASON%%"}`, mark)},
	}
}

// WaitChecked waits until a service's instance has passed a check. Before, it
// passes only because it was registered so, and the first check may have come
// before its sidecar.
func (a *Consul) WaitChecked(t *testing.T, service string) {
	t.Helper()
	testprocess.Eventually(t, service+" has passed a check", testprocess.ChangeDeadline, func() error {
		checks, err := a.Client.Agent().ChecksWithFilter(fmt.Sprintf("ServiceName == %q", service+"-sidecar-proxy"))
		if err != nil {
			return err
		}
		for _, check := range checks {
			if check.Status == api.HealthPassing && strings.HasSuffix(check.Output, "Success") {
				return nil
			}
		}
		return errors.New("not yet")
	})
	testprocess.Eventually(t, service+" is passing in the catalog", testprocess.ChangeDeadline, func() error {
		passing, _, err := a.Client.Health().Connect(service, "", true, nil)
		if err == nil && len(passing) == 0 {
			err = errors.New("it is not")
		}
		return err
	})
}

// StartGateways starts Usher and both gateways, each on its own host.
func (l *Comparison) StartGateways(t *testing.T) {
	t.Helper()
	usher := StartUsher(t, UsherOptions{Host: l.Gateway, Consul: l.Consul})
	l.OnUsher = &LoadedGateway{Envoy: StartGateway(t, GatewayOptions{
		Host: l.Gateway, Consul: l.Consul, Envoy: EnvoyNew, GRPCAddr: usher.GRPCAddr, ID: "on-usher",
	})}
	other := l.AddHost(t, "gateway2", Gateway2IP)
	l.OnConsul = &LoadedGateway{Envoy: StartGateway(t, GatewayOptions{
		Host: other, Consul: l.Consul, Envoy: EnvoyNew, ID: "on-consul",
	})}
	for _, g := range l.Both() {
		g.WaitListener(t, 8080)
	}
}

// WriteEntry writes an entry with one request.
func (l *Comparison) WriteEntry(e api.ConfigEntry) error {
	_, _, err := l.Consul.Client.ConfigEntries().Set(e, nil)
	return err
}

// Writing returns the function of a change that writes an entry.
func (l *Comparison) Writing(e api.ConfigEntry) func() error {
	return func() error { return l.WriteEntry(e) }
}
