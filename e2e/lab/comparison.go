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
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TightInterval is how often a change is looked for at an Envoy: often enough
// that the looking does not blur how long the change took.
const TightInterval = 2 * time.Millisecond

// Comparison are two instances of one ingress gateway in front of one Consul:
// one Envoy has Usher as its xDS server, the other Consul itself. Both serve
// the same load, from the same client.
type Comparison struct {
	*Network
	Consul        *Consul
	OnUsher       *LoadedGateway
	OnConsul      *LoadedGateway // Consul's own xDS
	SecondOnUsher *LoadedGateway // one more on the same Usher; nil for none

	// moments are the changes so far, for the causes of failures.
	moments []moment
	// outage is the change that took away what serves the load, "" while nothing
	// has.
	outage  string
	outages []string // all so far
}

// moment is when a change was made.
type moment struct {
	change string
	at     time.Time
	outage string // requests fail, as they should; "" in no outage
}

// LoadedGateway is a gateway under load.
type LoadedGateway struct {
	*Envoy
	Load *Load
	// broken counts what the test itself was answered, beside the load, and no
	// client should be.
	broken atomic.Int64
	logAt  int64 // how much of the access log is older than the change
}

// Change is one change in Consul and how to see it at an Envoy.
type Change struct {
	Name  string
	Apply func() error
	// Visible is nil once the Envoy has the change.
	Visible func(g *LoadedGateway) error
}

// StartLoad puts the load on all gateways.
func (l *Comparison) StartLoad(t *testing.T) {
	t.Helper()
	for _, g := range l.All() {
		target := Request{From: l.Client, To: g.Host.Addr(8080)}
		WaitStatus(t, target, http.StatusOK)
		g.Load = StartLoad(t, target)
	}
}

// Both returns the gateway on Usher and the one on Consul.
func (l *Comparison) Both() []*LoadedGateway { return []*LoadedGateway{l.OnUsher, l.OnConsul} }

// All are both, and the twin.
func (l *Comparison) All() []*LoadedGateway {
	if l.SecondOnUsher == nil {
		return l.Both()
	}
	return append(l.Both(), l.SecondOnUsher)
}

// CompareAll makes changes of one kind, and wants them to reach Usher's Envoy sooner,
// all in all: a single one may be held up by whatever else the machine does.
func (l *Comparison) CompareAll(t *testing.T, kind string, changes []Change) {
	t.Helper()
	var usher, own time.Duration
	for _, c := range changes {
		a, b := l.Compare(t, c)
		usher, own = usher+a, own+b
	}
	t.Logf("changes: usher %d ms, consul %d ms, 1 : %.1f: %s",
		usher.Milliseconds(), own.Milliseconds(), own.Seconds()/usher.Seconds(), kind)
	if usher >= own {
		t.Errorf("%s: all changes took %v with usher and %v with consul's own xDS", kind, usher, own)
	}
}

// Compare makes the change, waits for it at both Envoys, and prints how long it
// took each.
func (l *Comparison) Compare(t *testing.T, c Change) (usher, own time.Duration) {
	t.Helper()
	l.WantNotYet(t, c, l.Both())
	begin := time.Now()
	first, second := l.OnUsher.watch(begin, c), l.OnConsul.watch(begin, c)
	l.Apply(t, c)
	a, b := <-first, <-second
	if err := errors.Join(a.err, b.err); err != nil {
		t.Fatal(err)
	}
	t.Logf("change: usher %3d ms, consul %4d ms: %s", a.took.Milliseconds(), b.took.Milliseconds(), c.Name)
	l.WaitEverywhere(t, c, l.Both())
	return a.took, b.took
}

// Make makes the change and waits for it at all Envoys.
func (l *Comparison) Make(t *testing.T, c Change) {
	t.Helper()
	l.WantNotYet(t, c, l.All())
	begin := time.Now()
	l.Apply(t, c)
	l.WaitEverywhere(t, c, l.All())
	t.Logf("change: everywhere after %d ms: %s", time.Since(begin).Milliseconds(), c.Name)
}

// Apply makes the change.
func (l *Comparison) Apply(t *testing.T, c Change) {
	t.Helper()
	l.mark(c.Name)
	if err := c.Apply(); err != nil {
		t.Fatalf("%s: %v", c.Name, err)
	}
}

// mark notes a change.
func (l *Comparison) mark(change string) {
	l.moments = append(l.moments, moment{change: change, at: time.Now(), outage: l.outage})
}

// WantNotYet makes sure that the change is still to come at the Envoys.
func (l *Comparison) WantNotYet(t *testing.T, c Change, gateways []*LoadedGateway) {
	t.Helper()
	for _, g := range gateways {
		g.markLog(t)
		if c.Visible(g) == nil {
			t.Fatalf("%s: %s has it before it is made", c.Name, g.Name)
		}
	}
}

// WaitEverywhere waits until every thread of the Envoys has the change.
func (l *Comparison) WaitEverywhere(t *testing.T, c Change, gateways []*LoadedGateway) {
	t.Helper()
	const row = 10
	for _, g := range gateways {
		testprocess.Eventually(t, c.Name+" at all of "+g.Name, testprocess.ChangeDeadline, func() error {
			for range row {
				if err := c.Visible(g); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// sighting says how long a change took to reach an Envoy.
type sighting struct {
	took time.Duration
	err  error
}

// watch looks for the change until it shows.
func (g *LoadedGateway) watch(begin time.Time, c Change) <-chan sighting {
	seen := make(chan sighting, 1)
	go func() {
		for {
			err := c.Visible(g)
			took := time.Since(begin)
			switch {
			case err == nil:
				seen <- sighting{took: took}
				return
			case took > testprocess.ChangeDeadline || testprocess.IsHopeless(err):
				seen <- sighting{err: fmt.Errorf("%s: not at %s after %v: %w", c.Name, g.Name, took, err)}
				return
			}
			time.Sleep(TightInterval)
		}
	}()
	return seen
}

// Request makes a request of the client's to the gateway, to port 8080 unless the
// call says another one.
func (g *LoadedGateway) Request(c Request) (answer, error) {
	if c.To == "" {
		c.To = g.Host.Addr(8080)
	}
	c.From = g.Load.Target.From
	got, err := c.Do(context.Background())
	if err == nil && got.Status >= http.StatusInternalServerError {
		g.broken.Add(1)
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

// DumpHas wants the text in an answer of the admin interface.
func DumpHas(path, text string) func(*LoadedGateway) error {
	return func(g *LoadedGateway) error { return g.DumpHas(path, text) }
}

// DumpHasNot wants the text not to be in an answer of the admin interface.
func DumpHasNot(path, text string) func(*LoadedGateway) error {
	return func(g *LoadedGateway) error { return g.DumpHasNot(path, text) }
}

// markLog makes logs look at what is logged from now on.
func (g *LoadedGateway) markLog(t *testing.T) {
	t.Helper()
	info, err := os.Stat(g.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	g.logAt = info.Size()
}

// LogHas wants the text in the new part of the access log.
func (g *LoadedGateway) LogHas(text string) error {
	file, err := os.Open(g.Stdout)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.Seek(g.logAt, io.SeekStart); err != nil {
		return err
	}
	fresh, err := io.ReadAll(file)
	if err == nil && !strings.Contains(string(fresh), text) {
		err = fmt.Errorf("the access log has no %q", text)
	}
	return err
}

// WantNoFailures stops the load on all. Every failure is printed, of Consul's
// own gateway by their number: those are no failure of the test.
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
		if n := g.broken.Load(); n > 0 && g != l.OnConsul {
			t.Errorf("%d of the test's own requests to %s were answered 500 or more", n, g.Name)
		}
		l.wantNoneLost(t, g)
	}
}

// wantNoneLost wants no failure of a gateway's load outside of outages, unless it
// is Consul's own.
func (l *Comparison) wantNoneLost(t *testing.T, g *LoadedGateway) {
	t.Helper()
	reasons := g.reasons(t)
	lost := map[string]int{}
	for _, f := range g.Load.Failures {
		m := l.momentOf(g.Load, f)
		f.Cause = strings.TrimSpace(f.Cause + " " + reasons[f.Path])
		lost[fmt.Sprintf("%s after %q: %s", f.kind(), m.change, f.Cause)]++
		if g != l.OnConsul && m.outage == "" {
			ended := g.Load.Started.Add(f.After + f.Took).Sub(m.at)
			t.Errorf("load on %s: %v, answered %d ms after %q", g.Name, f, ended.Milliseconds(), m.change)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(lost)) {
		t.Logf("load on %s: lost %d on a %s", g.Name, lost[what], what)
	}
	t.Logf("load on %s: %d requests in %.1fs, slowest %v, %d failures",
		g.Name, g.Load.sent, time.Since(g.Load.Started).Seconds(), g.Load.slowest.Round(time.Millisecond),
		len(g.Load.Failures))
}

// momentOf is the last change before the request's end.
func (l *Comparison) momentOf(load *Load, f LoadFailure) moment {
	end := load.Started.Add(f.After + f.Took)
	last := moment{change: "the start", at: load.Started}
	for _, m := range l.moments {
		if m.at.Before(end) {
			last = m
		}
	}
	return last
}

// reasons are Envoy's own words, from its access log, for the requests of the
// load that it did not answer 200, by path.
func (g *LoadedGateway) reasons(t *testing.T) map[string]string {
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

// ProxyDefaultsWithLog is proxy-defaults with an access log that has the mark, and what
// the reasons need.
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

// StartGateways starts Usher and the two, each on a host of its own.
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

// Writing is a change that writes an entry.
func (l *Comparison) Writing(e api.ConfigEntry) func() error {
	return func() error { return l.WriteEntry(e) }
}
