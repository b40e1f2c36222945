//go:build e2e

package e2e

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

// tightInterval is how often a change is looked for at an Envoy: often enough
// that the looking does not blur how long the change took.
const tightInterval = 2 * time.Millisecond

// twoGateways are two instances of one ingress gateway in front of one Consul:
// one Envoy has Usher as its xDS server, the other Consul itself. Both serve
// the same load, from the same client.
type twoGateways struct {
	*lab
	Consul *consulAgent
	Usher  *loadedGateway
	Own    *loadedGateway // Consul's own xDS
	Twin   *loadedGateway // one more on the same Usher; nil for none

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

// loadedGateway is a gateway under load.
type loadedGateway struct {
	*envoy
	load *load
	// broken counts what the test itself was answered, beside the load, and no
	// client should be.
	broken atomic.Int64
	logAt  int64 // how much of the access log is older than the change
}

// change is one change in Consul and how to see it at an Envoy.
type change struct {
	name  string
	write func() error
	// shows is nil once the Envoy has the change.
	shows func(g *loadedGateway) error
}

// startLoad puts the load on all gateways.
func (l *twoGateways) startLoad(t *testing.T) {
	t.Helper()
	for _, g := range l.all() {
		target := call{From: l.Client, To: g.Host.addr(8080)}
		waitStatus(t, target, http.StatusOK)
		g.load = startLoad(t, target)
	}
}

func (l *twoGateways) both() []*loadedGateway { return []*loadedGateway{l.Usher, l.Own} }

// all are both, and the twin.
func (l *twoGateways) all() []*loadedGateway {
	if l.Twin == nil {
		return l.both()
	}
	return append(l.both(), l.Twin)
}

// tellAll makes changes of one kind, and wants them to reach Usher's Envoy sooner,
// all in all: a single one may be held up by whatever else the machine does.
func (l *twoGateways) tellAll(t *testing.T, kind string, changes []change) {
	t.Helper()
	var usher, own time.Duration
	for _, c := range changes {
		a, b := l.tell(t, c)
		usher, own = usher+a, own+b
	}
	t.Logf("changes: usher %d ms, consul %d ms, 1 : %.1f: %s",
		usher.Milliseconds(), own.Milliseconds(), own.Seconds()/usher.Seconds(), kind)
	if usher >= own {
		t.Errorf("%s: all changes took %v with usher and %v with consul's own xDS", kind, usher, own)
	}
}

// tell makes the change, waits for it at both Envoys, and prints how long it
// took each.
func (l *twoGateways) tell(t *testing.T, c change) (usher, own time.Duration) {
	t.Helper()
	l.wantAhead(t, c, l.both())
	begin := time.Now()
	first, second := l.Usher.watch(begin, c), l.Own.watch(begin, c)
	l.write(t, c)
	a, b := <-first, <-second
	if err := errors.Join(a.err, b.err); err != nil {
		t.Fatal(err)
	}
	t.Logf("change: usher %3d ms, consul %4d ms: %s", a.took.Milliseconds(), b.took.Milliseconds(), c.name)
	l.settle(t, c, l.both())
	return a.took, b.took
}

// make makes the change and waits for it at all Envoys.
func (l *twoGateways) make(t *testing.T, c change) {
	t.Helper()
	l.wantAhead(t, c, l.all())
	begin := time.Now()
	l.write(t, c)
	l.settle(t, c, l.all())
	t.Logf("change: everywhere after %d ms: %s", time.Since(begin).Milliseconds(), c.name)
}

// write makes the change.
func (l *twoGateways) write(t *testing.T, c change) {
	t.Helper()
	l.mark(c.name)
	if err := c.write(); err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
}

// mark notes a change.
func (l *twoGateways) mark(change string) {
	l.moments = append(l.moments, moment{change: change, at: time.Now(), outage: l.outage})
}

// wantAhead makes sure that the change is still to come at the Envoys.
func (l *twoGateways) wantAhead(t *testing.T, c change, gateways []*loadedGateway) {
	t.Helper()
	for _, g := range gateways {
		g.markLog(t)
		if c.shows(g) == nil {
			t.Fatalf("%s: %s has it before it is made", c.name, g.Name)
		}
	}
}

// settle waits until every thread of the Envoys has the change.
func (l *twoGateways) settle(t *testing.T, c change, gateways []*loadedGateway) {
	t.Helper()
	const row = 10
	for _, g := range gateways {
		eventually(t, c.name+" at all of "+g.Name, changeDeadline, func() error {
			for range row {
				if err := c.shows(g); err != nil {
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
func (g *loadedGateway) watch(begin time.Time, c change) <-chan sighting {
	seen := make(chan sighting, 1)
	go func() {
		for {
			err := c.shows(g)
			took := time.Since(begin)
			switch {
			case err == nil:
				seen <- sighting{took: took}
				return
			case took > changeDeadline || testprocess.IsHopeless(err):
				seen <- sighting{err: fmt.Errorf("%s: not at %s after %v: %w", c.name, g.Name, took, err)}
				return
			}
			time.Sleep(tightInterval)
		}
	}()
	return seen
}

// ask makes a request of the client's to the gateway, to port 8080 unless the
// call says another one.
func (g *loadedGateway) ask(c call) (answer, error) {
	if c.To == "" {
		c.To = g.Host.addr(8080)
	}
	c.From = g.load.target.From
	got, err := c.do(context.Background())
	if err == nil && got.Status >= http.StatusInternalServerError {
		g.broken.Add(1)
	}
	return got, err
}

// has wants the text in an answer of the admin interface.
func (g *loadedGateway) has(path, text string) error {
	body, err := g.admin(path)
	if err == nil && !strings.Contains(body, text) {
		err = fmt.Errorf("%s has no %q", path, text)
	}
	return err
}

// hasNot wants the text not to be in an answer of the admin interface.
func (g *loadedGateway) hasNot(path, text string) error {
	body, err := g.admin(path)
	if err == nil && strings.Contains(body, text) {
		err = fmt.Errorf("%s has %q", path, text)
	}
	return err
}

// dumps wants the text in an answer of the admin interface.
func dumps(path, text string) func(*loadedGateway) error {
	return func(g *loadedGateway) error { return g.has(path, text) }
}

// lacks wants the text not to be in an answer of the admin interface.
func lacks(path, text string) func(*loadedGateway) error {
	return func(g *loadedGateway) error { return g.hasNot(path, text) }
}

// markLog makes logs look at what is logged from now on.
func (g *loadedGateway) markLog(t *testing.T) {
	t.Helper()
	info, err := os.Stat(g.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	g.logAt = info.Size()
}

// logs wants the text in the new part of the access log.
func (g *loadedGateway) logs(text string) error {
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

// wantNoFailures stops the load on all. Every failure is printed, of Consul's
// own gateway by their number: those are no failure of the test.
func (l *twoGateways) wantNoFailures(t *testing.T) {
	t.Helper()
	for _, g := range l.all() {
		g.load.stop()
	}
	l.wantSameOutages(t)
	for _, g := range l.all() {
		if g.load.sent == 0 {
			t.Errorf("load on %s: nothing was sent", g.Name)
		}
		if n := g.broken.Load(); n > 0 && g != l.Own {
			t.Errorf("%d of the test's own requests to %s were answered 500 or more", n, g.Name)
		}
		l.wantNoneLost(t, g)
	}
}

// wantNoneLost wants no failure of a gateway's load outside of outages, unless it
// is Consul's own.
func (l *twoGateways) wantNoneLost(t *testing.T, g *loadedGateway) {
	t.Helper()
	reasons := g.reasons(t)
	lost := map[string]int{}
	for _, f := range g.load.failures {
		m := l.momentOf(g.load, f)
		f.Cause = strings.TrimSpace(f.Cause + " " + reasons[f.Path])
		lost[fmt.Sprintf("%s after %q: %s", f.kind(), m.change, f.Cause)]++
		if g != l.Own && m.outage == "" {
			ended := g.load.start.Add(f.After + f.Took).Sub(m.at)
			t.Errorf("load on %s: %v, answered %d ms after %q", g.Name, f, ended.Milliseconds(), m.change)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(lost)) {
		t.Logf("load on %s: lost %d on a %s", g.Name, lost[what], what)
	}
	t.Logf("load on %s: %d requests in %.1fs, slowest %v, %d failures",
		g.Name, g.load.sent, time.Since(g.load.start).Seconds(), g.load.slowest.Round(time.Millisecond),
		len(g.load.failures))
}

// momentOf is the last change before the request's end.
func (l *twoGateways) momentOf(load *load, f loadFailure) moment {
	end := load.start.Add(f.After + f.Took)
	last := moment{change: "the start", at: load.start}
	for _, m := range l.moments {
		if m.at.Before(end) {
			last = m
		}
	}
	return last
}

// reasons are Envoy's own words, from its access log, for the requests of the
// load that it did not answer 200, by path.
func (g *loadedGateway) reasons(t *testing.T) map[string]string {
	t.Helper()
	reasons := map[string]string{}
	for _, e := range g.Log.entries(t) {
		if path := e.text("path"); strings.HasPrefix(path, loadPrefix) && e.text("status") != "200" {
			reasons[path] = fmt.Sprintf("[%s %s; cluster %s, host %s %s]",
				e.text("flags"), e.text("details"), e.text("cluster"), e.text("host"), e.text("reason"))
		}
	}
	return reasons
}

// logFormat is proxy-defaults with an access log that has the mark, and what
// the reasons need.
func logFormat(mark string) *api.ProxyConfigEntry {
	return &api.ProxyConfigEntry{
		Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal,
		AccessLogs: &api.AccessLogsConfig{Enabled: true, JSONFormat: fmt.Sprintf(`{"mark": %q,
			"path": "%%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%%", "status": "%%RESPONSE_CODE%%",
			"flags": "%%RESPONSE_FLAGS%%", "details": "%%RESPONSE_CODE_DETAILS%%", "cluster": "%%UPSTREAM_CLUSTER%%",
			"host": "%%UPSTREAM_HOST%%", "reason": "%%UPSTREAM_TRANSPORT_FAILURE_REASON%%"}`, mark)},
	}
}

// waitChecked waits until a service's instance has passed a check. Before, it
// passes only because it was registered so, and the first check may have come
// before its sidecar.
func (a *consulAgent) waitChecked(t *testing.T, service string) {
	t.Helper()
	eventually(t, service+" has passed a check", changeDeadline, func() error {
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
	eventually(t, service+" is passing in the catalog", changeDeadline, func() error {
		passing, _, err := a.Client.Health().Connect(service, "", true, nil)
		if err == nil && len(passing) == 0 {
			err = errors.New("it is not")
		}
		return err
	})
}
