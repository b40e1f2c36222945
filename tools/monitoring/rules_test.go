package monitoring

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
)

// readAlerts reads the file as Prometheus does.
func readAlerts(t *testing.T) []rulefmt.Rule {
	t.Helper()
	content, err := os.ReadFile(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(content, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	if len(groups.Groups) != 1 {
		t.Fatalf("%d groups, and the chart reads the first one", len(groups.Groups))
	}
	return groups.Groups[0].Rules
}

var templateLabel = regexp.MustCompile(`\$labels\.(\w+)`)

func TestAlertsUseWhatAScrapeHas(t *testing.T) {
	scrape := readScrape(t)
	for _, r := range readAlerts(t) {
		has := wantInScrape(t, r.Alert, parse(t, r.Alert, r.Expr), scrape, `job="usher"`)
		if strings.Count(r.Expr, `{job="usher"`) != strings.Count(r.Expr, "{") {
			t.Errorf("%s: the chart cannot replace the job in %s", r.Alert, r.Expr)
		}
		parse(t, r.Alert, strings.ReplaceAll(r.Expr, `job="usher"`, `namespace="consul", job="usher-metrics"`)) // as the chart does
		for _, text := range r.Annotations {
			wantLabels(t, r.Alert, templateLabel.FindAllStringSubmatch(text, -1), has)
		}
	}
}

// TestAlertsSayWhatToDo wants a summary, a description, a severity, and a runbook that exists and begins with the alert's
// meaning.
func TestAlertsSayWhatToDo(t *testing.T) {
	text, err := os.ReadFile(runbooksFile)
	if err != nil {
		t.Fatal(err)
	}
	runbooks := map[string]string{}
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		runbooks[strings.ToLower(title)] = body
	}
	var names []string
	for _, r := range readAlerts(t) {
		names = append(names, strings.ToLower(r.Alert))
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s has no summary or no description", r.Alert)
		}
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s has the severity %q", r.Alert, r.Labels["severity"])
		}
		page, anchor, _ := strings.Cut(r.Annotations["runbook_url"], "#")
		if !strings.HasSuffix(page, "/docs/runbooks.md") || anchor != strings.ToLower(r.Alert) {
			t.Errorf("%s: the runbook is %s", r.Alert, r.Annotations["runbook_url"])
		}
		for _, part := range []string{"**What is wrong.**", "**Where.**", "**What to do.**"} {
			if !strings.Contains(runbooks[anchor], part) {
				t.Errorf("%s: the runbook has no %s", r.Alert, part)
			}
		}
	}
	for title := range runbooks {
		if !slices.Contains(names, title) {
			t.Errorf("docs/runbooks.md has %q, and no alert leads there", title)
		}
	}
}

// story has an alert's series in promtool's notation, with a sample each minute. Each series gets the labels of a target
// unless it has an instance.
type story struct {
	alert        string
	severity     string // of alerts with one name; empty: there is one
	fires, quiet []string
	summary      string // of the first alert that fires
	minutes      int    // 0: 100
}

var stories = []story{
	{
		alert: "UsherDown", fires: []string{`up{} 0x100`}, quiet: []string{`up{} 0x100`, `up{instance="b"} 1x100`},
		summary: "No replica of Usher runs, or Prometheus cannot read its metrics.",
	},
	{
		alert:   "UsherOutage",
		fires:   []string{`usher_config_problems{gateway="edge",severity="outage"} 2x100`},
		quiet:   []string{`usher_config_problems{gateway="edge",severity="outage"} 0x100`, `usher_config_problems{gateway="edge",severity="degraded"} 1x100`},
		summary: "The gateway edge has an outage: a listener or an Envoy serves nothing.",
	},
	{
		alert:   "UsherListenerHeldBack",
		fires:   []string{`usher_held_back_listeners{gateway="edge",port="8080"} 3x100`, `usher_held_back_listeners{gateway="edge",port="8080",instance="b"} 2x100`},
		quiet:   []string{`usher_held_back_listeners{gateway="edge",port="8080"} 3 stale _x98`}, // the series ends
		summary: "The gateway edge serves nothing on port 8080 (Envoys: 5), because Usher holds the listener back.",
	},
	{
		alert:   "UsherEnvoyRejectsUpdate",
		fires:   []string{`usher_xds_rejected{gateway="edge",type="listener"} 1x100`, `usher_xds_rejected{gateway="edge",type="listener",instance="b"} 3x100`},
		quiet:   []string{`usher_xds_rejected{gateway="edge",type="listener"} 1 1 stale _x97`},
		summary: "An Envoy of the gateway edge rejects its latest listener (Envoys: 4).",
	},
	{
		alert: "UsherDoesNotServeGateway",
		fires: []string{
			`usher_gateway_proxy_protocol_instances{gateway="edge"} 3x100`, `usher_gateway_envoys{gateway="edge"} 1x100`,
			`usher_gateway_proxy_protocol_instances{gateway="edge",instance="b"} 3x100`, `usher_gateway_envoys{gateway="edge",instance="b"} 1x100`,
		},
		quiet: []string{
			`usher_gateway_proxy_protocol_instances{gateway="edge"} 2x100`, `usher_gateway_envoys{gateway="edge"} 1x100`,
			`usher_gateway_proxy_protocol_instances{gateway="edge",instance="b"} 2x100`, `usher_gateway_envoys{gateway="edge",instance="b"} 1x100`,
		},
		summary: "Some Envoys of the gateway edge are not connected to Usher, and its load balancer sends PROXY headers (instances: 3).",
	},
	{
		alert: "UsherGatewayCertificateExpires",
		fires: []string{
			`usher_consul_certificate_expiry_timestamp_seconds{gateway="edge"} 3600x100`, `usher_consul_certificate_lifetime_seconds{gateway="edge"} 3600x100`,
			`usher_consul_certificate_expiry_timestamp_seconds{gateway="other"} 36000x100`, `usher_consul_certificate_lifetime_seconds{gateway="other"} 3600x100`,
		},
		quiet: []string{
			`usher_consul_certificate_expiry_timestamp_seconds{gateway="edge"} 6400x100`, `usher_consul_certificate_lifetime_seconds{gateway="edge"} 3600x100`,
		},
		summary: "The certificate of the gateway edge has 0% of its lifetime left.",
	},
	{ // a tenth of two hours
		alert: "UsherTLSCertificateExpires", severity: "warning",
		fires:   []string{`usher_tls_certificate_expiry_timestamp_seconds{} 3600x100`, `usher_tls_certificate_lifetime_seconds{} 7200x100`},
		quiet:   []string{`usher_tls_certificate_expiry_timestamp_seconds{} 6660x100`, `usher_tls_certificate_lifetime_seconds{} 7200x100`},
		summary: "The certificate of a:18001 for Envoys expires in 6m 0s.",
	},
	{ // 30 of 1,095 days, at minute 0
		alert: "UsherTLSCertificateExpires", severity: "warning",
		fires:   []string{`usher_tls_certificate_expiry_timestamp_seconds{} 2591990x100`, `usher_tls_certificate_lifetime_seconds{} 94608000x100`},
		quiet:   []string{`usher_tls_certificate_expiry_timestamp_seconds{} 2600000x100`, `usher_tls_certificate_lifetime_seconds{} 94608000x100`},
		summary: "The certificate of a:18001 for Envoys expires in 29d 23h 54m 50s.",
	},
	{ // a thirtieth of two hours
		alert: "UsherTLSCertificateExpires", severity: "critical",
		fires:   []string{`usher_tls_certificate_expiry_timestamp_seconds{} 420x100`, `usher_tls_certificate_lifetime_seconds{} 7200x100`},
		quiet:   []string{`usher_tls_certificate_expiry_timestamp_seconds{} 6180x100`, `usher_tls_certificate_lifetime_seconds{} 7200x100`},
		summary: "The certificate of a:18001 for Envoys has expired.",
	},
	{ // three of 1,095 days
		alert: "UsherTLSCertificateExpires", severity: "critical",
		fires:   []string{`usher_tls_certificate_expiry_timestamp_seconds{} 259190x100`, `usher_tls_certificate_lifetime_seconds{} 94608000x100`},
		quiet:   []string{`usher_tls_certificate_expiry_timestamp_seconds{} 266000x100`, `usher_tls_certificate_lifetime_seconds{} 94608000x100`},
		summary: "The certificate of a:18001 for Envoys expires in 2d 23h 54m 50s.",
	},
	{
		alert: "UsherConsulUnreachable", fires: []string{`usher_consul_up{pod="usher-1"} 1x10 0x90`}, quiet: []string{`usher_consul_up{pod="usher-1"} 1x10 0 0 1x90`},
		summary: "Consul does not answer usher-1.",
	},
	{
		alert: "UsherConsulUnreachableForHours", minutes: 800,
		fires: []string{`usher_consul_last_answer_timestamp_seconds{} 60x800`},
		quiet: []string{
			`usher_consul_last_answer_timestamp_seconds{} 7200x800`,
			`usher_consul_last_answer_timestamp_seconds{instance="just started"} 0x800`, // never, which UsherConsulUnreachable says
		},
		summary: "a:18001 has had no answer from Consul for 12h 6m 0s.",
	},
	{
		alert:   "UsherConsulQueriesFail",
		fires:   []string{`usher_consul_watches_failing{kind="leaf"} 2x100`},
		quiet:   []string{`usher_consul_watches_failing{kind="leaf"} 0x100`},
		summary: "Queries of a:18001 to Consul fail (leaf: 2).",
	},
	{
		alert:   "UsherConfigurationProblem",
		fires:   []string{`usher_config_problems{gateway="",severity="degraded"} 1x100`},
		quiet:   []string{`usher_config_problems{gateway="edge",severity="notice"} 1x100`, `usher_config_problems{gateway="edge",severity="degraded"} 1 0x100`},
		summary: "Usher has a problem.",
	},
	{
		alert:   "UsherConnectionsAgainstMode",
		fires:   []string{`usher_reported_connections_total{gateway="edge",port="8080",type="malformed"} 0+1x100`},
		quiet:   []string{`usher_reported_connections_total{gateway="edge",port="8080",type="header"} 0+1x100`, `usher_reported_connections_total{gateway="edge",port="8080",type="refused"} 0x50 9x50`},
		summary: "Connections to port 8080 of the gateway edge do not agree with its mode of PROXY protocol (malformed).",
	},
	{
		alert: "UsherListenerModesDiffer",
		fires: []string{
			`usher_listener_info{gateway="edge",port="8080",mode="off",source="the default"} 1x100`,
			`usher_listener_info{gateway="edge",port="8080",mode="strict",source="usher.hcl:3",instance="b"} 1x100`,
		},
		quiet: []string{
			`usher_listener_info{gateway="edge",port="8080",mode="strict",source="usher.hcl:3"} 1x100`,
			`usher_listener_info{gateway="edge",port="8080",mode="strict",source="/etc/usher.hcl:3",instance="b"} 1x100`,
			`usher_listener_info{gateway="edge",port="8081",mode="off",source="the default"} 1x100`,
		},
		summary: "Instances of the gateway edge have different modes of PROXY protocol on port 8080 (modes: 2).",
	},
	{
		alert: "UsherEnvoyMissing",
		fires: []string{`usher_gateway_instances{gateway="edge"} 2x100`, `usher_gateway_envoys{gateway="edge"} 1x100`},
		quiet: []string{
			`usher_gateway_instances{gateway="edge"} 2x100`, `usher_gateway_envoys{gateway="edge"} 1x100`,
			`usher_gateway_instances{gateway="edge",instance="b"} 2x100`, `usher_gateway_envoys{gateway="edge",instance="b"} 0x20 1x80`,
		},
		summary: "Some Envoys of the gateway edge are not connected to Usher (registered instances: 2).",
	},
	{
		alert:   "UsherServesNoEnvoy",
		fires:   []string{`usher_xds_streams{protocol="delta"} 0x100`},
		quiet:   []string{`usher_xds_streams{protocol="delta"} 0x100`, `usher_xds_streams{protocol="delta",instance="b"} 1x100`},
		summary: "No Envoy is connected to Usher.",
	},
	{
		alert:   "UsherStreamsDenied",
		fires:   []string{`usher_xds_denied_streams_total{reason="permission_denied"} 0 1x100`},
		quiet:   []string{`usher_xds_denied_streams_total{reason="permission_denied"} 5x100`},
		summary: "Usher refuses Envoys (permission_denied).",
	},
	{
		alert:   "UsherTLSHandshakesFail",
		fires:   []string{`usher_tls_handshake_failures_total{port="xds"} 0 1x100`},
		quiet:   []string{`usher_tls_handshake_failures_total{port="xds"} 5x100`},
		summary: "TLS handshakes at Usher's port xds fail.",
	},
	{
		alert:   "UsherLimitReached",
		fires:   []string{`usher_xds_limited_total{limit="streams"} 0x10 1x90`},
		quiet:   []string{`usher_xds_limited_total{limit="streams"} 1x100`},
		summary: "Callers of Usher reach the limit streams.",
	},
	{
		alert: "UsherTooManyGateways", fires: []string{`usher_refused_gateways_total{} 0 1x100`}, quiet: []string{`usher_refused_gateways_total{} 1x100`},
		summary: "a:18001 serves no further gateway.",
	},
	{
		alert:   "UsherLoginsFail",
		fires:   []string{`usher_consul_logins_total{component="usher",outcome="refused"} 0 1x100`},
		quiet:   []string{`usher_consul_logins_total{component="usher",outcome="ok"} 0+1x100`, `usher_consul_logins_total{component="usher",outcome="failed"} 3x100`},
		summary: "Logins at Consul are refused (usher).",
	},
	{
		alert: "UsherCannotReadServices", fires: []string{`usher_kubernetes_watches_failing{} 1x100`}, quiet: []string{`usher_kubernetes_watches_failing{} 0x100`},
		summary: "a:18001 cannot read the Service of a gateway (Services: 1).",
	},
	{
		alert:   "UsherDataplaneCallsFail",
		fires:   []string{`usher_dataplane_calls_total{outcome="unreachable"} 0 1x100`},
		quiet:   []string{`usher_dataplane_calls_total{outcome="error"} 0+1x100`},
		summary: "a:18001 cannot pass calls of consul-dataplanes on to Consul.",
	},
	{
		alert:   "UsherDataplaneGatewayUnknown",
		fires:   []string{`usher_dataplane_ads_streams_total{destination="unknown"} 0 1x100`},
		quiet:   []string{`usher_dataplane_ads_streams_total{destination="consul"} 0+1x100`},
		summary: "a:18001 cannot find out which services are ingress gateways.",
	},
	{
		alert:   "UsherDataplaneLimitReached",
		fires:   []string{`usher_dataplane_limited_total{limit="calls"} 0 1x100`},
		quiet:   []string{`usher_dataplane_limited_total{limit="calls"} 1x100`},
		summary: "consul-dataplanes reach the limit calls.",
	},
	{
		alert: "UsherPanicked", fires: []string{`usher_panics_total{part="worker"} 0x50 1x50`}, quiet: []string{`usher_panics_total{part="worker"} 1x100`},
		summary: "A part of Usher panicked (worker).",
	},
	{
		alert: "UsherConsulConnectionsShared", fires: []string{`usher_consul_queries_sharing_connections{} 4x100`}, quiet: []string{`usher_consul_queries_sharing_connections{} 4x10 0x90`},
		summary: "Changes in Consul reach a:18001 seconds late.",
	},
	{
		alert:   "UsherVersionsDiffer",
		fires:   []string{`usher_build_info{version="v1",revision="a"} 1x100`, `usher_build_info{version="v2",revision="b",instance="b"} 1x100`},
		quiet:   []string{`usher_build_info{version="v1",revision="a"} 1x100`, `usher_build_info{version="v1",revision="a",instance="b"} 1x100`},
		summary: "Replicas of Usher run different versions (versions: 2).",
	},
	{
		alert: "UsherLogLinesDropped", fires: []string{`usher_log_lines_dropped_total{} 0 7x100`}, quiet: []string{`usher_log_lines_dropped_total{} 7x100`},
		summary: "The log of a:18001 is incomplete.",
	},
}

// TestAlertsFire evaluates each alert each minute, on series on which it has to fire and on such on which it must not, nor on
// those of another job.
func TestAlertsFire(t *testing.T) {
	alerts := readAlerts(t)
	for _, r := range alerts {
		if !slices.ContainsFunc(stories, func(s story) bool { return s.tells(r) }) {
			t.Errorf("%s (%s) has no story", r.Alert, r.Labels["severity"])
		}
	}
	for _, s := range stories {
		t.Run(s.alert, func(t *testing.T) {
			i := slices.IndexFunc(alerts, s.tells)
			if i < 0 {
				t.Fatal("there is no such alert")
			}
			rule := alerts[i]
			got := s.evaluate(t, rule, s.fires, "usher")
			if len(got) == 0 {
				t.Error("it does not fire")
			} else if got[0] != s.summary {
				t.Errorf("the summary is %q, want %q", got[0], s.summary)
			}
			if got := s.evaluate(t, rule, s.quiet, "usher"); len(got) > 0 {
				t.Errorf("it fires: %q", got)
			}
			if got := s.evaluate(t, rule, s.fires, "other"); len(got) > 0 && s.alert != "UsherDown" {
				t.Errorf("it fires for another job: %q", got)
			}
		})
	}
}

// tells reports whether the story is one of this alert.
func (s story) tells(r rulefmt.Rule) bool {
	return r.Alert == s.alert && (s.severity == "" || s.severity == r.Labels["severity"])
}

// evaluate returns the summaries of the alert when it fires first, sorted.
func (s story) evaluate(t *testing.T, r rulefmt.Rule, series []string, job string) []string {
	t.Helper()
	var load strings.Builder
	load.WriteString("load 1m\n")
	for _, line := range series {
		target := fmt.Sprintf("{job=%q,", job)
		if !strings.Contains(line, "instance=") {
			target += `instance="a:18001",`
		}
		load.WriteString("  " + strings.Replace(line, "{", target, 1) + "\n")
	}
	storage := promqltest.LoadedStorage(t, load.String())
	query := rules.EngineQueryFunc(promqltest.NewTestEngine(t, false, 0, promqltest.DefaultMaxSamplesPerQuery), storage)
	rule := rules.NewAlertingRule(r.Alert, parse(t, r.Alert, r.Expr), time.Duration(r.For), 0, labels.FromMap(r.Labels),
		labels.FromMap(r.Annotations), labels.EmptyLabels(), "", true, slog.New(slog.DiscardHandler))
	minutes := s.minutes
	if minutes == 0 {
		minutes = 100
	}
	for m := range minutes {
		if _, err := rule.Eval(context.Background(), 0, time.Unix(int64(m)*60, 0), query, &url.URL{}, 0); err != nil {
			t.Fatal(err)
		}
		var firing []string
		for _, a := range rule.ActiveAlerts() {
			if a.State == rules.StateFiring {
				firing = append(firing, a.Annotations.Get("summary"))
			}
		}
		if len(firing) > 0 {
			slices.Sort(firing)
			return firing
		}
	}
	return nil
}
