//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// outageTexts are the states of Consul as a whole, by the name of the fault, and what /readyz then says. An empty text is for
// answers with which Usher goes on: they are no outage.
var outageTexts = map[string]string{
	"500":                     "consul answered 500",
	"503":                     "consul answered 503",
	"429":                     "consul answered 429",
	"403":                     "consul answered 403",
	"404":                     "consul answered 404",
	"hang":                    "no answer within 5s",
	"reset before the answer": "connection reset by peer",
	"truncated body":          "unexpected EOF",
	"no leader":               "has no leader",
	"lower index":             "",
	"same index at once":      "",
}

// outageCells are the faults of everything at once that runningOutageWorker tries.
func outageCells() []faultCell {
	var cells []faultCell
	for _, f := range lab.Faults {
		if _, ok := outageTexts[f.Name]; ok {
			cells = append(cells, faultCell{question: lab.EveryQuery, fault: f})
		}
	}
	return cells
}

// recoveries is the table of how long the first change took after each fault had ended.
type recoveries struct {
	mu   sync.Mutex
	rows []string
}

func (r *recoveries) add(c faultCell, noticed, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows = append(r.rows, fmt.Sprintf("%-24s | visible after %6.2fs | change arrived %5.2fs after the end", c.fault, noticed.Seconds(), took.Seconds()))
}

func (r *recoveries) String() string {
	slices.Sort(r.rows)
	return strings.Join(r.rows, "\n")
}

// runningOutageWorker has all of Consul at fault while Usher runs. The real Envoy is under load, and another Envoy comes.
type runningOutageWorker struct {
	*liveWorker
	table *recoveries
}

func (w *runningOutageWorker) run(t *testing.T, c faultCell) {
	logged := w.usher.logSize(t)
	trouble := w.begin(t, c)
	defer trouble.clear()
	begin := time.Now()
	trouble.waitHit(t)
	if outageTexts[c.fault.Name] == "" {
		w.wantChangeArrives(t)
	}
	w.waitVisible(t, c)
	noticed := time.Since(begin)
	w.wantNewEnvoyServed(t)
	trouble.clear()
	begin = time.Now()
	w.wantChangeArrives(t)
	took := time.Since(begin)
	w.table.add(c, noticed, took)
	if took > recoveryDeadline {
		t.Errorf("a change arrived %v after the end of the fault, want at most %v", took, recoveryDeadline)
	}
	w.waitNothingVisible(t)
	w.wantLoggedOnce(t, c, logged)
	w.wantNoEffect(t, c)
	w.wantNoneLost(t)
}

// waitVisible waits until /readyz names the state, and no other one.
func (w *runningOutageWorker) waitVisible(t *testing.T, c faultCell) {
	t.Helper()
	testprocess.Eventually(t, "/readyz names "+c.fault.Name, testprocess.StartDeadline, func() error {
		text, err := w.usher.ask("/readyz")
		if err != nil {
			return errors.Join(err, w.usher.Alive())
		}
		for name, other := range outageTexts {
			if other != "" && name != c.fault.Name && strings.Contains(text, other) {
				return fmt.Errorf("it names %q: %s", name, text)
			}
		}
		if want := outageTexts[c.fault.Name]; !strings.Contains(text, want) || want == "" && strings.Contains(text, "consul at") {
			return fmt.Errorf("it says %q", text)
		}
		return nil
	})
}

// waitNothingVisible waits until /readyz names no state of Consul any more.
func (w *runningOutageWorker) waitNothingVisible(t *testing.T) {
	t.Helper()
	testprocess.Eventually(t, "/readyz names no fault", testprocess.StartDeadline, func() error {
		text, err := w.usher.ask("/readyz")
		if err == nil && strings.Contains(text, "consul at") {
			err = fmt.Errorf("it says %q", text)
		}
		return errors.Join(err, w.usher.Alive())
	})
}

// wantNewEnvoyServed connects another Envoy whose token Consul has allowed before, and wants it to get all that the first has.
func (w *runningOutageWorker) wantNewEnvoyServed(t *testing.T) {
	t.Helper()
	fresh := newRecorder(w.gateway)
	defer fresh.connect(w.dialXDS(t, w.host, w.port))()
	testprocess.Eventually(t, "an Envoy that is new has everything", testprocess.StartDeadline, func() error {
		for _, typeURL := range []string{resource.ListenerType, resource.ClusterType, resource.EndpointType, resource.RouteType, resource.SecretType} {
			want, got := w.fake.versions(typeURL), fresh.versions(typeURL)
			for name, version := range want {
				if got[name] != version {
					return errors.Join(fmt.Errorf("%s %q has version %q, want %q", shortType(typeURL), name, got[name], version), fresh.lastEnd())
				}
			}
		}
		return nil
	})
}

// wantLoggedOnce wants one line for the beginning of an outage: one for each permission that the token seems to lack if Consul
// refuses everything, and else one alone.
func (w *runningOutageWorker) wantLoggedOnce(t *testing.T, c faultCell, from int) {
	t.Helper()
	begins := map[string]int{}
	for line := range strings.Lines(testprocess.ReadFile(t, w.usher.Stderr)[from:]) {
		if !strings.Contains(line, "cannot read from consul") {
			continue
		}
		begins[attributeOf(line, "outcome")+" "+attributeOf(line, "error")]++
	}
	if len(begins) == 0 && outageTexts[c.fault.Name] != "" {
		t.Error("the log does not have the outage")
	}
	if len(begins) > 1 && c.fault.Name != "403" {
		t.Errorf("the log has the outage as %d: %v", len(begins), begins)
	}
	for of, n := range begins {
		if n != 1 {
			t.Errorf("the log has %d lines about %s, want 1", n, of)
		}
	}
}

// attributeOf returns an attribute of a line of Usher's log.
func attributeOf(line, key string) string {
	_, rest, _ := strings.Cut(line, " "+key+"=")
	if strings.HasPrefix(rest, `"`) {
		rest, _, _ = strings.Cut(rest[1:], `"`)
		return rest
	}
	rest, _, _ = strings.Cut(rest, " ")
	return strings.TrimSpace(rest)
}
