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

// down is when something was killed or stopped, until it served again.
type down struct {
	from   time.Time
	to     time.Time // zero while it does not serve
	latest time.Time // what fails after that is not excused, although it does not serve; zero: no bound
	killed bool      // and perhaps stopped after that
}

// What it takes to serve again.
const (
	wakeTime    = 5 * time.Second  // after a stop; nothing is lost
	restartTime = 30 * time.Second // after a kill, and after what keeps its configuration away
)

// has reports whether a request from begin to end was under way in that time.
func (d down) has(begin, end time.Time) bool {
	over := func(t time.Time) bool { return !t.IsZero() && !begin.Before(t) }
	return end.After(d.from) && !over(d.to) && !over(d.latest)
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
func (d *downtime) begin(killed bool) {
	d.settle()
	if n := len(d.downs); n == 0 || !d.downs[n-1].to.IsZero() {
		d.downs = append(d.downs, down{from: time.Now()})
	}
	last := d.last()
	last.killed, last.latest = last.killed || killed, time.Time{}
}

// isDown reports whether it is killed or stopped at the moment, or does not serve yet.
func (d *downtime) isDown() bool {
	if len(d.downs) == 0 || !d.last().to.IsZero() {
		return false
	}
	if d.recovery == nil {
		return true
	}
	select {
	case <-d.recovery.done:
		return false
	default:
		return true
	}
}

func (d *downtime) last() *down { return &d.downs[len(d.downs)-1] }

// bound ends the excuse at a time, although it does not serve yet.
func (d *downtime) bound(latest time.Time) { d.last().latest = latest }

// endStop ends the downtime of a stop. It returns false if a kill before the stop is not over.
func (d *downtime) endStop() bool {
	if d.last().killed {
		return false
	}
	d.last().to = time.Now().Add(wakeTime)
	return true
}

// excuseMore gives killed Envoys more time at the end of a step that has kept their configuration away.
func (w *world) excuseMore(s Step, begin time.Time) {
	for i, e := range w.envoys {
		if len(e.downs) > 0 && s.delays(i) && begin.Before(e.last().latest) {
			e.bound(time.Now().Add(restartTime))
		}
	}
}

// delays reports whether an Envoy that starts may get its configuration only after the step.
func (s Step) delays(envoy int) bool {
	switch s.Kind {
	case StopEnvoy, DeleteEnvoy, ResetXDSLink, CutXDSLink, SlowXDSLink:
		return s.Target == envoy
	case KillConsul, StopConsul, KillAllConsul, StopAllConsul, ResetConsulLink, CutConsulLink, SlowConsulLink,
		DeleteUsher, KillUsher, RestartUsher, StopUsher:
		return true
	}
	return false
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
	d.last().to = d.recovery.served
	d.recovery = nil
}

func (w *world) endWhenServing(e *envoy) {
	e.bound(time.Now().Add(restartTime))
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

// wantAllServing waits until all that was killed serves.
func (w *world) wantAllServing() {
	ctx, cancel := context.WithTimeout(context.Background(), testprocess.StartDeadline)
	defer cancel()
	wait := func(name string, d *downtime) {
		if d.recovery == nil {
			return
		}
		select {
		case <-d.recovery.done:
		case <-ctx.Done():
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

// excused reports whether it was under way while its Envoy, or the instance that it went to, was killed or stopped.
func (w *world) excused(f failure) bool {
	during := func(d down) bool { return d.has(f.at, f.at.Add(f.Took)) }
	return slices.ContainsFunc(f.where.downs, during) || slices.ContainsFunc(w.second().downs, during) && w.wentToSecond(f)
}

// wentToSecond reports whether a request went to the second instance of web, by the access log. A killed Envoy has not written
// the latest lines.
func (w *world) wentToSecond(f failure) bool {
	const unwritten = 15 * time.Second // Envoy writes them every 10
	line := f.logged()
	return strings.Contains(line, fmt.Sprintf(`"upstream_host":%q`, w.second().host.Addr(sidecarPort))) ||
		line == notLogged && slices.ContainsFunc(f.where.downs, func(d down) bool {
			return d.killed && d.from.After(f.at) && d.from.Before(f.at.Add(unwritten))
		})
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
			w.t.Logf("%s is excused for %v from %.1fs on", e.id, d.to.Sub(d.from).Round(100*time.Millisecond), d.from.Sub(w.started).Seconds())
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
			strings.Join(w.before(f.at.Add(f.Took)), "; "), f.logged())
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

const notLogged = "nothing"

// logged is what the Envoy's access log says of a request. Loads of two ports may have the same paths.
func (f failure) logged() string {
	port := map[string]int{"http": httpPort, "https": httpsPort, "tcp": lab.TCPPort}[f.traffic]
	for _, output := range f.where.outputs {
		file, err := os.Open(output)
		if err != nil {
			return err.Error()
		}
		defer file.Close()
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if strings.Contains(lines.Text(), fmt.Sprintf("%q", f.Path)) && strings.Contains(lines.Text(), fmt.Sprintf(`:%d"`, port)) {
				return lines.Text()
			}
		}
	}
	return notLogged
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
