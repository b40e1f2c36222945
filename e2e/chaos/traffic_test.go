//go:build e2e

package chaos

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The load: 300 requests a second, a quarter of them to each Envoy.
const (
	httpRate  = 40 // half of them on connections that are kept alive
	httpsRate = 20 // the same
	tcpRate   = 15 // each on a new connection
)

// startTraffic puts the load on all Envoys.
func (w *world) startTraffic() {
	for _, e := range w.envoys {
		e.loads["http"] = lab.StartLoadAt(w.t, w.httpRequest(e), httpRate)
		e.loads["https"] = lab.StartLoadAt(w.t, w.httpsRequest(e), httpsRate)
		e.loads["tcp"] = lab.StartTCPLoad(w.t, w.tcpExchange(e), tcpRate, wantClient)
	}
}

func (w *world) allLoads() []*lab.Load {
	var all []*lab.Load
	for _, e := range w.envoys {
		for _, l := range e.loads {
			all = append(all, l)
		}
	}
	return all
}

// down is when something was killed or stopped, until it served again; to is zero while it does not.
type down struct{ from, to time.Time }

// has reports whether a request from begin to end was under way in that time.
func (d down) has(begin, end time.Time) bool {
	return end.After(d.from) && (d.to.IsZero() || begin.Before(d.to))
}

// downtime is when something did not serve because it was killed or stopped. Requests to it that were under way then are
// excused, and no others.
type downtime struct {
	downs    []down
	recovery *recovery
}

// recovery waits until something serves again.
type recovery struct {
	cancel context.CancelFunc
	done   chan struct{}
	served time.Time // zero: it does not yet
}

// begin begins a downtime, unless one has not ended.
func (d *downtime) begin() {
	d.settle()
	if n := len(d.downs); n == 0 || !d.downs[n-1].to.IsZero() {
		d.downs = append(d.downs, down{from: time.Now()})
	}
}

// endWhen ends the downtime when serves returns nil. It does not wait for that.
func (d *downtime) endWhen(t *testing.T, serves func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &recovery{cancel: cancel, done: make(chan struct{})}
	d.recovery = r
	t.Cleanup(cancel)
	go func() {
		defer close(r.done)
		for ctx.Err() == nil {
			if serves() == nil {
				r.served = time.Now()
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(testprocess.PollInterval):
			}
		}
	}()
}

// settle takes what came of endWhen.
func (d *downtime) settle() {
	if d.recovery == nil {
		return
	}
	d.recovery.cancel()
	<-d.recovery.done
	if served := d.recovery.served; !served.IsZero() {
		d.downs[len(d.downs)-1].to = served
	}
	d.recovery = nil
}

func (w *world) endWhenServing(e *envoy) {
	e.endWhen(w.t, func() error { return w.serves(e) })
}

// listens is nil if the sidecar has the listener that the mesh connects to.
func (x *instance) listens() error {
	ports, err := x.ListenerPorts()
	if err == nil && !slices.Contains(ports, sidecarPort) {
		err = fmt.Errorf("it has the ports %v", ports)
	}
	return err
}

// wantAllServing waits until all that was killed or stopped serves.
func (w *world) wantAllServing() {
	late := time.After(testprocess.StartDeadline)
	wait := func(name string, d *downtime) {
		if d.recovery == nil {
			return
		}
		select {
		case <-d.recovery.done:
		case <-late:
			w.t.Errorf("%s does not serve, %v after the last fault", name, testprocess.StartDeadline)
		}
		d.settle()
	}
	for _, e := range w.envoys {
		wait(e.id, &e.downtime)
	}
	for _, x := range w.instances {
		wait(x.id, &x.downtime)
	}
}

// failure is a failed request.
type failure struct {
	lab.LoadFailure
	at      time.Time // when it began
	where   *envoy
	traffic string // http, https or tcp
}

// excused reports whether it was under way while its Envoy, or an instance of its service, was killed or stopped.
func (w *world) excused(f failure) bool {
	downs := f.where.downs
	if f.traffic != "tcp" {
		downs = slices.Concat(downs, w.second().downs)
	}
	return slices.ContainsFunc(downs, func(d down) bool { return d.has(f.at, f.at.Add(f.Took)) })
}

// reportTraffic stops the load. It prints every failure that is not excused, with what happened before it.
func (w *world) reportTraffic() {
	total, excused := 0, 0
	var failures []failure
	for _, e := range w.envoys {
		for _, traffic := range []string{"http", "https", "tcp"} {
			l := e.loads[traffic]
			if l == nil {
				continue // the run did not come so far
			}
			l.Stop()
			total += len(l.Answered) + len(l.Failures)
			if len(l.Answered) == 0 {
				w.t.Errorf("no %s request to %s was answered", traffic, e.id)
			}
			for _, f := range l.Failures {
				failures = append(failures, failure{f, l.Started.Add(f.After), e, traffic})
			}
		}
		e.settle()
		for _, d := range e.downs {
			w.t.Logf("%s did not serve for %v from %.1fs on", e.id, d.to.Sub(d.from).Round(100*time.Millisecond), d.from.Sub(w.started).Seconds())
		}
	}
	w.second().settle()
	slices.SortFunc(failures, func(a, b failure) int { return a.at.Compare(b.at) })
	lost := map[string]int{}
	for _, f := range failures {
		if w.excused(f) {
			excused++
			continue
		}
		lost[f.where.id]++
		w.t.Errorf("%8.1fs to %8.1fs %s %s to %s, %s: %s\n    before: %s\n    log: %s",
			f.at.Sub(w.started).Seconds(), f.at.Add(f.Took).Sub(w.started).Seconds(), f.traffic, f.connection(), f.where.id, f.Path, f.Cause,
			strings.Join(w.before(f.at.Add(f.Took)), "; "), f.where.logged(f.Path))
	}
	w.t.Logf("%d requests; %d failed while what they went to was killed or stopped, and %d did otherwise %v",
		total, excused, len(failures)-excused, lost)
}

func (f failure) connection() string {
	if f.Kept {
		return "on a kept connection"
	}
	return "on a new connection"
}

// before are the last actions before a time.
func (w *world) before(at time.Time) []string {
	const some = 5
	i, _ := slices.BinarySearchFunc(w.log, at, func(l logLine, at time.Time) int { return cmp.Compare(l.at.UnixNano(), at.UnixNano()) })
	var texts []string
	for _, l := range w.log[max(0, i-some):i] {
		texts = append(texts, fmt.Sprintf("%.1fs %s", l.at.Sub(w.started).Seconds(), strings.TrimSpace(l.text)))
	}
	return texts
}

// logged is what the Envoy's access log says of a request.
func (e *envoy) logged(path string) string {
	for _, output := range e.outputs {
		file, err := os.Open(output)
		if err != nil {
			return err.Error()
		}
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if strings.Contains(lines.Text(), fmt.Sprintf("%q", path)) {
				return lines.Text()
			}
		}
	}
	return "nothing"
}

// keepLogs copies all outputs to the directory CHAOS_LOGS, if there is one and the test has failed.
func (w *world) keepLogs() {
	if !w.t.Failed() {
		return
	}
	for _, p := range w.processes() {
		w.keepLog(p.Stderr)
	}
	for _, e := range w.envoys {
		for _, output := range e.outputs {
			w.keepLog(output)
			w.keepLog(filepath.Join(filepath.Dir(output), "stderr"))
		}
	}
}

// keepLog copies a file to the directory CHAOS_LOGS, if there is one.
func (w *world) keepLog(path string) {
	dir := os.Getenv("CHAOS_LOGS")
	if dir == "" {
		return
	}
	content, err := os.ReadFile(path)
	if err == nil {
		name := strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "_")
		err = os.WriteFile(filepath.Join(dir, name), content, 0o644)
	}
	if err != nil {
		w.t.Log(err)
	}
}
