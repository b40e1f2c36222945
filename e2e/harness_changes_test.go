//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
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

// startLoad puts the load on both gateways.
func (l *twoGateways) startLoad(t *testing.T) {
	t.Helper()
	for _, g := range l.both() {
		target := call{From: l.Client, To: g.Host.addr(8080)}
		waitStatus(t, target, http.StatusOK)
		g.load = startLoad(t, target)
	}
}

func (l *twoGateways) both() []*loadedGateway { return []*loadedGateway{l.Usher, l.Own} }

// tell makes the change, waits for it at both Envoys, and prints how long it
// took each. Usher's has to be the first.
func (l *twoGateways) tell(t *testing.T, c change) {
	t.Helper()
	l.wantAhead(t, c)
	begin := time.Now()
	usher, own := l.Usher.watch(begin, c), l.Own.watch(begin, c)
	if err := c.write(); err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	a, b := <-usher, <-own
	if err := errors.Join(a.err, b.err); err != nil {
		t.Fatal(err)
	}
	t.Logf("change: usher %3d ms, consul %4d ms: %s", a.took.Milliseconds(), b.took.Milliseconds(), c.name)
	if a.took >= b.took {
		t.Errorf("%s: took %v with usher and %v with consul's own xDS", c.name, a.took, b.took)
	}
	l.settle(t, c)
}

// make makes the change and waits for it at both Envoys.
func (l *twoGateways) make(t *testing.T, c change) {
	t.Helper()
	l.wantAhead(t, c)
	if err := c.write(); err != nil {
		t.Fatalf("%s: %v", c.name, err)
	}
	l.settle(t, c)
}

// wantAhead makes sure that the change is still to come at both Envoys.
func (l *twoGateways) wantAhead(t *testing.T, c change) {
	t.Helper()
	for _, g := range l.both() {
		g.markLog(t)
		if c.shows(g) == nil {
			t.Fatalf("%s: %s has it before it is made", c.name, g.Name)
		}
	}
}

// settle waits until every thread of both Envoys has the change.
func (l *twoGateways) settle(t *testing.T, c change) {
	t.Helper()
	const row = 10
	for _, g := range l.both() {
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
			case took > changeDeadline || errors.As(err, new(hopeless)):
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

// wantNoFailures stops the load on both. Every failure is printed; those of
// Consul's own gateway are no failure of the test.
func (l *twoGateways) wantNoFailures(t *testing.T) {
	t.Helper()
	l.Own.load.stop()
	t.Logf("load on %s: %d requests, %d failures", l.Own.Name, l.Own.load.sent, len(l.Own.load.failures))
	for _, failure := range l.Own.load.failures {
		t.Logf("load on %s: %v", l.Own.Name, failure)
	}
	l.Usher.load.wantNoFailures(t)
	t.Logf("besides: %d answers of 500 and more from usher's, %d from consul's own", l.Usher.broken.Load(), l.Own.broken.Load())
	if n := l.Usher.broken.Load(); n > 0 {
		t.Errorf("%d of the test's own requests to %s were answered 500 or more", n, l.Usher.Name)
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
