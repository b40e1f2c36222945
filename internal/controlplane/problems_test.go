package controlplane

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// problemsOf returns the problems of many gateways, of which each has one, and one that all have.
func problemsOf(gateways int) (p *Problems, shared problem.Problem) {
	p = NewProblems(slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	shared = problem.Problem{Where: "web.hcl:3", What: "wrong"}
	for i := range gateways {
		own := problem.Problem{Where: fmt.Sprintf("gateway %d", i), What: "wrong"}
		p.setGateway(gateway.ID{Name: fmt.Sprint("edge-", i)}, []problem.Problem{own, shared})
	}
	return p, shared
}

// BenchmarkProblemsOfManyGateways shows that the time grows with the gateways, and not with their square.
func BenchmarkProblemsOfManyGateways(b *testing.B) {
	for _, n := range []int{100, 1000} {
		p, shared := problemsOf(n)
		b.Run(fmt.Sprintf("report/gateways=%d", n), func(b *testing.B) {
			for b.Loop() {
				p.Report("the config directory", []problem.Problem{shared})
				p.Report("the config directory", nil)
			}
		})
		b.Run(fmt.Sprintf("list/gateways=%d", n), func(b *testing.B) {
			for b.Loop() {
				p.Current()
			}
		})
	}
}

// TestTheSameReportAgainCostsNothingForGateways counts what it allocates with few and with many gateways.
func TestTheSameReportAgainCostsNothingForGateways(t *testing.T) {
	again := func(gateways int) float64 {
		p, shared := problemsOf(gateways)
		return testing.AllocsPerRun(10, func() { p.Report("the config directory", []problem.Problem{shared}) })
	}
	if few, many := again(2), again(200); many > few {
		t.Errorf("%v allocations with 2 gateways, and %v with 200", few, many)
	}
}

// TestASourceThatReportsTheSameAgainChangesNothing checks it for the gauges, and for the sources of the next change.
func TestASourceThatReportsTheSameAgainChangesNothing(t *testing.T) {
	p, shared := problemsOf(2)
	want := func(step string, all, edge float64) {
		t.Helper()
		ofAll, ofEdge := testutil.ToFloat64(p.count.WithLabelValues("", "degraded")), testutil.ToFloat64(p.count.WithLabelValues("edge-0", "degraded"))
		if ofAll != all || ofEdge != edge {
			t.Errorf("%s: %v problems of all, and %v of edge-0, want %v and %v", step, ofAll, ofEdge, all, edge)
		}
	}
	for range 2 {
		p.Report("a", []problem.Problem{shared})
		p.Report("b", []problem.Problem{shared})
		want("two sources have it", 2, 1)
	}
	p.Report("a", nil)
	want("one source has it", 1, 1)
	p.removeGateway(gateway.ID{Name: "edge-1"})
	p.Report("b", nil)
	want("only gateways have it", 0, 2)
	if n := testutil.CollectAndCount(p.count); n != 2*len(problem.Severities) {
		t.Errorf("%d series, want those of one gateway and of all", n)
	}
	p.removeGateway(gateway.ID{Name: "edge-0"})
	if len(p.origins)+len(p.shared) > 0 || len(p.Current()) > 0 {
		t.Errorf("left: %v, %v, %v", p.origins, p.shared, p.Current())
	}
}
