//go:build e2e

package lab

import (
	"regexp"
	"strings"
	"testing"
)

// CompareOutage stops the service and brings it back, with requests in between.
func (l *Comparison) CompareOutage(t *testing.T, o Outage) {
	t.Helper()
	l.outage = o.Gone.Name
	l.outages = append(l.outages, o.Gone.Name)
	l.Compare(t, o.Gone)
	for _, g := range l.Both() {
		g.Load.WaitMore(t)
	}
	l.Compare(t, o.Back)
	l.outage = ""
	l.record(o.Back.Name + ", everywhere")
}

// wantSameOutages wants requests to fail in outages, and Usher's gateway not to
// fail them in a way in which Consul's own does not. How many fail is not
// compared: that is how long it took.
func (l *Comparison) wantSameOutages(t *testing.T) {
	t.Helper()
	usher, own := l.outageFailures(t, l.OnUsher), l.outageFailures(t, l.OnConsul)
	for _, outage := range l.outages {
		t.Logf("outage: %s: with usher %v, with consul's own xDS %v", outage, usher[outage], own[outage])
		if len(usher[outage]) == 0 || len(own[outage]) == 0 {
			t.Errorf("outage: %s: it was none for one of the two", outage)
		}
		for way, n := range usher[outage] {
			if !hasOutcome(own[outage], way) {
				t.Errorf("outage: %s: with usher %d requests ended with %s, with consul's own xDS none", outage, n, way)
			}
		}
	}
}

// hasOutcome reports whether one of the outcomes is that one. Without a reason it
// equals any with the same status: a connection that is kept from before the access log was
// changed is logged as it was then, or not at all.
func hasOutcome(ways map[string]int, way string) bool {
	for w := range ways {
		if w == way || strings.HasPrefix(w, way+" ") {
			return true
		}
	}
	return false
}

// outageFailures counts a load's failures in outages, by the outage and by what
// the client got.
func (l *Comparison) outageFailures(t *testing.T, g *LoadedGateway) map[string]map[string]int {
	t.Helper()
	reasons := g.failureReasons(t)
	counts := map[string]map[string]int{}
	for _, f := range g.Load.Failures {
		outage := l.lastChangeBefore(g.Load, g.Load.endOf(f)).outage
		if outage == "" {
			continue
		}
		if counts[outage] == nil {
			counts[outage] = map[string]int{}
		}
		counts[outage][f.outcome(reasons[f.Path])]++
	}
	return counts
}

var (
	answeredStatus = regexp.MustCompile(`^status \d+`)
	flagsOfReason  = regexp.MustCompile(`^\[([^;]*)`)
)

// outcome is what the client got, and Envoy's response flags.
func (f LoadFailure) outcome(reason string) string {
	status := answeredStatus.FindString(f.Cause)
	if status == "" {
		return "no answer"
	}
	if flags := flagsOfReason.FindStringSubmatch(reason); flags != nil {
		status += " " + flags[1]
	}
	return f.connection() + ": " + status
}

// Outage is a change that stops the service, and one that brings it back.
type Outage struct{ Gone, Back Change }
