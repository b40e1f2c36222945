package monitoring

import (
	"bufio"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
)

const (
	alertsFile    = "../../charts/usher/files/alerts.yaml"
	dashboardFile = "../../charts/usher/files/dashboard.json"
	runbooksFile  = "../../docs/runbooks.md"
	// scrapeFile has the series of a real scrape; e2e/metrics_test.go compares it with one.
	scrapeFile = "../../e2e/testdata/metrics.txt"
)

// targetLabels are the labels that Prometheus adds to each series: the first two always, the others with the Prometheus
// Operator (ServiceMonitor). It renames a metric's label that has such a name.
var targetLabels = []string{"instance", "job", "namespace", "pod", "service", "endpoint", "container"}

// readScrape returns the labels of each metric of a real scrape.
func readScrape(t *testing.T) map[string][]string {
	t.Helper()
	file, err := os.Open(scrapeFile)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	textParser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := textParser.TextToMetricFamilies(bufio.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{"up": {}} // of Prometheus itself
	for name, f := range families {
		own := map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				own[l.GetName()] = true
			}
		}
		all[name] = slices.Sorted(maps.Keys(own))
		if f.GetType().String() == "HISTOGRAM" {
			all[name+"_count"], all[name+"_sum"] = all[name], all[name]
			all[name+"_bucket"] = append(all[name], "le")
		}
	}
	return all
}

// TestNoScrapeOverwritesALabel wants that each label keeps its name, however Prometheus finds Usher.
func TestNoScrapeOverwritesALabel(t *testing.T) {
	for name, own := range readScrape(t) {
		for _, l := range own {
			if slices.Contains(targetLabels, l) {
				t.Errorf("%s: the label %s is a target's", name, l)
			}
		}
	}
}

func parse(t *testing.T, where, expr string) parser.Expr {
	t.Helper()
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %s: %v", where, expr, err)
	}
	return parsed
}

// wantInScrape wants that each metric and label of an expression is in the scrape, and returns the labels of its result. Each
// selector has the matchers.
func wantInScrape(t *testing.T, where string, expr parser.Expr, scrape map[string][]string, matchers ...string) []string {
	t.Helper()
	available := slices.Clone(targetLabels)
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		s, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		own, known := scrape[s.Name]
		if !known {
			t.Errorf("%s: no scrape has the metric %q", where, s.Name)
		}
		available = append(available, own...)
		var has []string
		for _, m := range s.LabelMatchers {
			if has = append(has, m.String()); m.Name != model.MetricNameLabel && !slices.Contains(append(own, targetLabels...), m.Name) {
				t.Errorf("%s: %s has no label %q", where, s.Name, m.Name)
			}
		}
		for _, m := range matchers {
			if !slices.Contains(has, m) {
				t.Errorf("%s: %s lacks %s", where, s, m)
			}
		}
		return nil
	})
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if a, ok := n.(*parser.AggregateExpr); ok {
			for _, l := range a.Grouping {
				if !slices.Contains(available, l) {
					t.Errorf("%s: there is no label %q in %s", where, l, a)
				}
			}
		}
		return nil
	})
	return resultLabels(expr, available)
}

// selectors returns the selectors of an expression.
func selectors(expr parser.Expr) (all []*parser.VectorSelector) {
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		if s, ok := n.(*parser.VectorSelector); ok {
			all = append(all, s)
		}
		return nil
	})
	return all
}

// ofConnectedEnvoys are the metrics that count what is connected to one replica, so that only a sum has all.
var ofConnectedEnvoys = []string{
	"usher_gateway_envoys", "usher_held_back_listeners", "usher_xds_rejected", "usher_xds_streams", "usher_xds_pending_streams", "usher_dataplane_ads_streams",
}

// TestConnectedEnvoysAreAddedUp wants that no alert and no panel takes one replica's Envoys for all.
func TestConnectedEnvoysAreAddedUp(t *testing.T) {
	seen := map[string]bool{}
	want := func(where, expr string) {
		parser.Inspect(parse(t, where, expr), func(n parser.Node, path []parser.Node) error {
			s, ok := n.(*parser.VectorSelector)
			if !ok || !slices.Contains(ofConnectedEnvoys, s.Name) {
				return nil
			}
			seen[s.Name] = true
			if sum, ok := path[len(path)-1].(*parser.AggregateExpr); !ok || sum.Op != parser.SUM {
				t.Errorf("%s: %s is not summed over the replicas: %s", where, s.Name, expr)
			}
			return nil
		})
	}
	for _, r := range readAlerts(t) {
		want(r.Alert, r.Expr)
	}
	for _, p := range panels(readDashboard(t)) {
		for _, q := range queries(t, p) {
			want(*p.Title, variables.Replace(q.Expr))
		}
	}
	for _, name := range ofConnectedEnvoys {
		if !seen[name] {
			t.Errorf("no alert and no panel has %s", name)
		}
	}
}

// resultLabels returns which of the labels the series of an expression's result have.
func resultLabels(expr parser.Expr, available []string) []string {
	switch e := expr.(type) {
	case *parser.AggregateExpr:
		if e.Op == parser.TOPK || e.Op == parser.BOTTOMK {
			return resultLabels(e.Expr, available)
		}
		return e.Grouping
	case *parser.BinaryExpr:
		if e.Op == parser.LOR {
			return append(slices.Clone(resultLabels(e.LHS, available)), resultLabels(e.RHS, available)...)
		}
		if _, scalar := e.LHS.(*parser.NumberLiteral); scalar || e.LHS.Type() == parser.ValueTypeScalar {
			return resultLabels(e.RHS, available)
		}
		return resultLabels(e.LHS, available)
	case *parser.ParenExpr:
		return resultLabels(e.Expr, available)
	case *parser.Call:
		switch e.Func.Name {
		case "absent":
			return nil
		case "sort_desc":
			return resultLabels(e.Args[0], available)
		case "histogram_quantile":
			return slices.DeleteFunc(slices.Clone(resultLabels(e.Args[1], available)), func(l string) bool { return l == "le" })
		}
	}
	return available
}

// wantLabels wants that the labels that a text uses are among these.
func wantLabels(t *testing.T, where string, used [][]string, has []string) {
	t.Helper()
	for _, l := range used {
		if !slices.Contains(has, l[1]) {
			t.Errorf("%s: there is no label %q, only %q", where, l[1], has)
		}
	}
}
