//go:build e2e

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// scrapeFile is what a scrape has, without its values. tools/monitoring compares alerts and dashboard with it, and
// docs_test.go the documentation.
const scrapeFile = "testdata/metrics.txt"

var updateMetrics = flag.Bool("update-metrics", false, "TestMetrics writes its file")

// everyMetric is a gateway whose listeners give each metric a series: 8080 follows its Service, 8081 is permissive, the port
// of 8082 is in use, and 9001 is held back.
const (
	everyMetricEntry = `
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [
  { Port = 8080, Protocol = "http", Services = [{ Name = "static-server", Hosts = ["*"] }] },
  { Port = 8081, Protocol = "http", Services = [{ Name = "static-server", Hosts = ["*"] }] },
  { Port = 8082, Protocol = "http", Services = [{ Name = "static-server", Hosts = ["*"] }] },
  { Port = 9001, Protocol = "http", Services = [{ Name = "static-server", Hosts = ["*"] }] },
]
`
	everyMetricFile = `
gateway "ingress-gateway" {
  usher {
    listeners {
      "8081" { proxy_protocol { mode = "permissive" } }
      "9001" { proxy_protocol { mode = "strict" tlvs = [{ type = 224, name = "path" }] } }
    }
  }
}
`
)

// TestMetrics scrapes an Usher that has something to say about everything, and compares names, types and labels with the
// file. promlint finds nothing in the scrape.
func TestMetrics(t *testing.T) {
	t.Parallel()
	l := lab.StartKubernetesLab(t)
	l.ApplyChart(t, "../internal/loadbalancer/testdata/consul-values.yaml", false)
	l.Consul.WriteEntry(t, everyMetricEntry)
	l.Gateway.Listen(t, "0.0.0.0:8082")
	file := lab.WriteFile(t, testprocess.NewDir(t), "usher.hcl", everyMetricFile)
	p := l.StartPod(t, l.Gateway, time.Hour, "--config", file, "--dataplane-addr", "127.0.0.1:18002", "--state-dir", filepath.Join(testprocess.NewDir(t), "state"))
	l.API.Annotate(t, awsHeaders, new("*"))
	secondary := lab.Request{From: l.Client, To: l.Gateway.Addr(8081), Path: "/"}
	lab.WaitStatus(t, secondary, http.StatusOK)
	for _, series := range []string{
		`usher_xds_rejected{gateway="ingress-gateway",type="listener"} 1`,
		`usher_held_back_listeners{gateway="ingress-gateway",port="9001"} 1`,
		`usher_listener_info{gateway="ingress-gateway",mode="permissive",port="8080",source="Kubernetes Service consul/consul-ingress-gateway"} 1`,
		`usher_listener_info{gateway="ingress-gateway",mode="permissive",port="8081",source="` + file + `:5"} 1`,
		`usher_kubernetes_grace_end_timestamp_seconds{kubernetes_namespace="consul",kubernetes_service="consul-ingress-gateway",port="8080"} `,
		`usher_listener_headers_only{gateway="ingress-gateway",port="8081"} 0`,
	} {
		testprocess.Eventually(t, series, testprocess.ChangeDeadline, func() error {
			_, _ = secondary.Do(t.Context()) // Envoy reports it
			if !strings.Contains(p.Usher.Metrics(t), "\n"+series) {
				return errors.Join(errors.New("it is not there"), p.Usher.Alive())
			}
			return nil
		})
	}
	scrapes := []string{p.Usher.Metrics(t), scrapeWithTLS(t, l)}
	for _, text := range scrapes {
		problems, err := promlint.New(strings.NewReader(text)).Lint()
		if err != nil || len(problems) > 0 {
			t.Errorf("promlint: %v, %v", problems, err)
		}
	}
	got := withoutValues(t, scrapes)
	if *updateMetrics {
		if err := os.WriteFile(scrapeFile, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(testprocess.ReadFile(t, scrapeFile), got); diff != "" {
		t.Errorf("after a change: go test -tags e2e -run TestMetrics$ ./e2e -update-metrics (-want +got):\n%s", diff)
	}
}

// scrapeWithTLS returns a scrape of an Usher with a certificate.
func scrapeWithTLS(t *testing.T, l *lab.KubernetesLab) string {
	t.Helper()
	dir := testprocess.NewDir(t)
	lab.WriteFile(t, dir, "gateway.hcl", "Kind = \"ingress-gateway\"\nName = \"ingress-gateway\"\n")
	certs := testprocess.NewDir(t)
	cert, key := lab.NewCertificateAuthority(t, "Usher's CA").Issue(t, certs, "usher")
	return lab.StartUsher(t, lab.UsherOptions{
		Host: l.Control, Args: []string{"--config-dir", dir, "--tls-cert", cert, "--tls-key", key},
	}).Metrics(t)
}

// scraped are the metrics in the file: those of Usher, and those of the process that do not depend on the release of Go.
var scraped = regexp.MustCompile(`^(usher|process)_|^go_goroutines$`)

// withoutValues returns the type of each metric in the scrapes, and one series with its labels.
func withoutValues(t *testing.T, scrapes []string) string {
	t.Helper()
	types, labels := map[string]string{}, map[string]map[string]bool{}
	for _, text := range scrapes {
		parser := expfmt.NewTextParser(model.UTF8Validation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		for name, f := range families {
			if !scraped.MatchString(name) {
				continue
			}
			types[name] = strings.ToLower(f.GetType().String())
			if labels[name] == nil {
				labels[name] = map[string]bool{}
			}
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					labels[name][l.GetName()] = true
				}
			}
		}
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(types)) {
		var series []string
		for _, l := range slices.Sorted(maps.Keys(labels[name])) {
			series = append(series, l+`=""`)
		}
		suffix := ""
		if types[name] == strings.ToLower(dto.MetricType_HISTOGRAM.String()) {
			suffix = "_count"
		}
		fmt.Fprintf(&b, "# TYPE %s %s\n%s%s{%s} 0\n", name, types[name], name, suffix, strings.Join(series, ","))
	}
	return b.String()
}
