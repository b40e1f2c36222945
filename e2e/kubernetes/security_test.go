//go:build kubernetes

package kubernetes

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
)

// Values of a release that is not as the lab's.
const (
	withoutTLS  = "testdata/without-tls.yaml"
	withoutACLs = "testdata/without-acls.yaml"
	withMetrics = "testdata/metrics.yaml"
)

// TestGatewayOfALessSecureConsul moves gateways to Usher, and back, where Consul
// has no TLS, no ACLs or neither. Together with the other stories, each pair of
// chart (1.9.11, 2.0.3), Envoy, TLS, ACLs and metrics has a story.
func TestGatewayOfALessSecureConsul(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]struct {
		chart, envoy string
		values       []string
	}{
		"without TLS":          {chartNow, lab.EnvoyOld, []string{withoutTLS, withMetrics}},
		"without ACLs":         {chartNow, lab.EnvoyOld, []string{withoutACLs, withMetrics}},
		"without TLS and ACLs": {chartNext, lab.EnvoyNew, []string{withoutTLS, withoutACLs}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := installConsul(t, with.chart, cluster.Options{Consul: lab.ConsulNew, Envoy: with.envoy}, with.values...)
			r.wantBalancerAddress(t)
			r.testStrict(t, r.installUsher(t))
			r.testBack(t)
		})
	}
}

// metrics are those of the gateway's Prometheus listener after an answer and a
// refusal; none if metrics are off. Names of the pod and of certificates, and the
// pod's address, are made equal.
func (r *consulRelease) metrics(t *testing.T, gateway *cluster.Pod) map[string]string {
	t.Helper()
	scrape := lab.Request{From: r.Control, To: gateway.Host.Addr(20200), Path: "/metrics"}
	if !slices.Contains(r.own, withMetrics) {
		if got, err := scrape.Do(t.Context()); err == nil {
			t.Errorf("the gateway has no metrics, and answers %d on the port for them", got.Status)
		}
		return nil
	}
	lab.WaitStatus(t, r.request("/"), http.StatusOK)
	unknown := r.request("/")
	unknown.Host = "other.example.com"
	lab.WaitStatus(t, unknown, http.StatusNotFound)
	scrape.MustDo(t) // the first answer has no metrics of scraping
	got := scrape.MustDo(t)
	if got.Status != http.StatusOK {
		t.Fatalf("the Prometheus listener answers %d", got.Status)
	}
	text := strings.NewReplacer(gateway.Name(), "POD", gateway.Host.IP.String(), "ADDRESS").Replace(got.Body)
	text = unnamedRoots.ReplaceAllString(text, "usher/roots")
	return lab.MetricsOf(unnamedLeaf.ReplaceAllString(text, "usher/leaf"))
}

// How Envoy names certificates in its metrics that Consul sends without a name.
var (
	unnamedRoots = regexp.MustCompile(`unnamed_ca_cert_[0-9a-f]+`)
	unnamedLeaf  = regexp.MustCompile(`unnamed_cert_[0-9a-f]+`)
)

// wantMetrics wants the metrics that the gateway had on Consul's own bootstrap and
// xDS, none if it is nil.
func (r *consulRelease) wantMetrics(t *testing.T, gateway *cluster.Pod, consuls map[string]string) {
	t.Helper()
	if own := r.metrics(t, gateway); consuls != nil {
		lab.WantSameMetrics(t, consuls, own, mayDiffer)
	}
}

// mayDiffer reports whether a metric may differ between Consul's own and Usher.
func mayDiffer(metric, value string) bool {
	if lab.IsDeferred(metric, value) || lab.IsOfDrain(metric) {
		return true
	}
	for _, text := range []string{
		// The stream to the control plane, and what listeners report.
		`envoy_cluster_name="consul-dataplane"`, `envoy_cluster_name="local_agent"`, "envoy_dns_cares_", `envoy_google_grpc_client_prefix="usher"`,
		// What Usher adds: the filter of listeners, certificates in resources of their
		// own, and the limit of log entries.
		"_proxy_proto_", "envoy_sds_usher_", `envoy_xds_resource_name="usher/`, "_log_process_ratelimit_", "_local_ratelimit_discovery_",
		"_open_telemetry_access_log_",
		// Answers while the test waited.
		`envoy_response_code="503"`, `envoy_response_code_class="5"`,
	} {
		if strings.Contains(metric, text) {
			return true
		}
	}
	return false
}
