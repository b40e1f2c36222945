package monitoring

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
)

// grafanaDashboard is Grafana's model. There is a newer one, which Grafana 10 and 11 cannot read.
type grafanaDashboard = dashboard.Dashboard //nolint:staticcheck // see above

// readDashboard reads the file with Grafana's model.
func readDashboard(t *testing.T) (d grafanaDashboard) {
	t.Helper()
	content, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	plugins.RegisterDefaultPlugins()
	if err := json.Unmarshal(content, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestGrafanaKnowsAllOfTheDashboard wants that Grafana's model refuses neither a field nor a value, in the options of each
// panel, too.
func TestGrafanaKnowsAllOfTheDashboard(t *testing.T) {
	d := readDashboard(t)
	content, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	if errs := refusals(content); errs != "" {
		t.Error(errs)
	}
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	for _, p := range panels(d) {
		if !slices.Contains([]string{"stat", "timeseries", "table"}, p.Type) { // the model lets unknown types pass
			t.Errorf("%s has the type %q", *p.Title, p.Type)
		}
	}
	for known, unknown := range map[string]string{
		`"graphTooltip"`: `"graphTip"`, `"gridPos"`: `"gridPosition"`, `"colorMode"`: `"colourMode"`, `"expr"`: `"expression"`, `"drawStyle"`: `"style"`,
	} {
		if bad := strings.Replace(string(content), known, unknown, 1); refusals([]byte(bad)) == "" {
			t.Errorf("%s in the place of %s is not noticed", unknown, known)
		}
	}
}

// refusals returns what Grafana's model refuses. The model reports no errors as an empty list, and not as nil; then it reads
// the rest of the dashboard, but does not return it.
func refusals(content []byte) string {
	var d grafanaDashboard
	if err := d.UnmarshalJSONStrict(content); err != nil {
		return err.Error()
	}
	return ""
}

// panels returns the panels, without rows.
func panels(d grafanaDashboard) (all []*dashboard.Panel) {
	for _, p := range d.Panels {
		if p.Panel != nil {
			all = append(all, p.Panel)
		}
	}
	return all
}

// queries returns a panel's queries.
func queries(t *testing.T, p *dashboard.Panel) (all []*prometheus.Dataquery) {
	t.Helper()
	for _, target := range p.Targets {
		q, ok := target.(*prometheus.Dataquery)
		if !ok {
			t.Fatalf("%s: %T is no query for Prometheus", *p.Title, target)
		}
		all = append(all, q)
	}
	return all
}

func TestDashboardHasARowForEachQuestion(t *testing.T) {
	var rows []string
	filled := map[string]int{}
	for _, p := range readDashboard(t).Panels {
		if p.RowPanel != nil {
			rows = append(rows, *p.RowPanel.Title)
		} else {
			filled[rows[len(rows)-1]]++ // a row comes first
		}
	}
	want := []string{"Is anything wrong?", "Gateways", "Envoys", "PROXY protocol", "Consul", "Process"}
	if !slices.Equal(rows, want) {
		t.Errorf("the rows are %q, want %q", rows, want)
	}
	for _, row := range want {
		if filled[row] < 5 {
			t.Errorf("%s: %d panels", row, filled[row])
		}
	}
}

var legendLabel = regexp.MustCompile(`{{([^}]*)}}`)

// variables are what Grafana replaces in a query, with a value of each.
var variables = strings.NewReplacer("$__rate_interval", "2m", "$namespace", "consul", "$job", "usher", "$gateway", "edge")

func TestDashboardUsesWhatAScrapeHas(t *testing.T) {
	d, scrape := readDashboard(t), readScrape(t)
	for _, p := range panels(d) {
		if *p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("%s: it has no description or no query", *p.Title)
		}
		for _, q := range queries(t, p) {
			expr := parse(t, *p.Title, variables.Replace(q.Expr))
			has := wantInScrape(t, *p.Title, expr, scrape, `namespace=~"consul"`, `job=~"usher"`)
			wantLabels(t, *p.Title, legendLabel.FindAllStringSubmatch(*q.LegendFormat, -1), has)
			for _, transformation := range p.Transformations {
				wantColumns(t, *p.Title, transformation, has)
			}
		}
	}
}

// wantColumns wants that a table names labels of its query.
func wantColumns(t *testing.T, panel string, transformation dashboard.DataTransformerConfig, has []string) {
	t.Helper()
	options, err := json.Marshal(transformation.Options)
	if err != nil {
		t.Fatal(err)
	}
	var organize struct{ RenameByName map[string]string }
	if err := json.Unmarshal(options, &organize); err != nil {
		t.Fatal(err)
	}
	for column := range organize.RenameByName {
		if column != "Value" && !slices.Contains(has, column) {
			t.Errorf("%s: there is no column %q, only %q", panel, column, has)
		}
	}
	for _, label := range has {
		if organize.RenameByName[label] == "" {
			t.Errorf("%s: the column %q has no title", panel, label)
		}
	}
}

// TestDashboardShowsWhatAlertsAreAbout wants a panel for each metric of an alert.
func TestDashboardShowsWhatAlertsAreAbout(t *testing.T) {
	shown := map[string]bool{}
	for _, p := range panels(readDashboard(t)) {
		for _, q := range queries(t, p) {
			for _, s := range selectors(parse(t, *p.Title, variables.Replace(q.Expr))) {
				shown[s.Name] = true
			}
		}
	}
	for _, r := range readAlerts(t) {
		for _, s := range selectors(parse(t, r.Alert, r.Expr)) {
			if !shown[s.Name] {
				t.Errorf("%s: no panel has %s", r.Alert, s.Name)
			}
		}
	}
}

var labelValues = regexp.MustCompile(`^label_values\((.*), ([a-z]+)\)$`)

func TestDashboardVariables(t *testing.T) {
	d, scrape := readDashboard(t), readScrape(t)
	defined := []string{"__rate_interval"}
	for _, v := range d.Templating.List {
		if defined = append(defined, v.Name); v.Type != dashboard.VariableTypeQuery {
			continue
		}
		found := labelValues.FindStringSubmatch(*v.Definition)
		if found == nil {
			t.Errorf("%s: the query is %q", v.Name, *v.Definition)
			continue
		}
		if has := wantInScrape(t, v.Name, parse(t, v.Name, variables.Replace(found[1])), scrape); !slices.Contains(has, found[2]) {
			t.Errorf("%s: no label %q in %s", v.Name, found[2], found[1])
		}
		if *v.AllValue != ".*" {
			t.Errorf("%s: All is %q, which leaves out series without the label", v.Name, *v.AllValue)
		}
	}
	content, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, used := range regexp.MustCompile(`\$\{?([a-z_]+)`).FindAllStringSubmatch(string(content), -1) {
		if !slices.Contains(defined, used[1]) && used[1] != "__all" {
			t.Errorf("there is no variable %s", used[1])
		}
	}
}

// TestPanelsDoNotOverlap wants that each panel has its place on a grid of 24 columns, and an ID.
func TestPanelsDoNotOverlap(t *testing.T) {
	taken, ids := map[[2]uint32]string{}, map[uint32]bool{}
	for _, p := range panels(readDashboard(t)) {
		if ids[*p.Id] {
			t.Errorf("%s: a second panel has the ID %d", *p.Title, *p.Id)
		}
		ids[*p.Id] = true
		g := p.GridPos
		if g.X+g.W > 24 {
			t.Errorf("%s: it ends in column %d", *p.Title, g.X+g.W)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := taken[[2]uint32{x, y}]; other != "" {
					t.Errorf("%s covers %s", *p.Title, other)
				}
				taken[[2]uint32{x, y}] = *p.Title
			}
		}
	}
}
