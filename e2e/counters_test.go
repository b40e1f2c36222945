//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// countersLab has listeners that count differently.
type countersLab struct {
	*lab.TrustLab
	permissive, strict, tcp lab.TestListener
}

// counted is a kind of connection, and the metric that counts it: the sample of
// the listener, with LISTENER for its address and port in letters.
type counted struct {
	listener lab.TestListener
	from     lab.Downstream
	preface  string
	metric   string
	label    string
}

// TestMigrationIsCounted makes connections of all types, and wants Envoy's
// Prometheus endpoint to count them, for each listener, under the names in the
// queries of docs/client-address.md.
func TestMigrationIsCounted(t *testing.T) {
	t.Parallel()
	l := &countersLab{TrustLab: lab.StartTrustLab(t, []lab.TestListener{
		{Protocol: "http", Settings: lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true}},
		{Protocol: "http", Settings: lab.ListenerSettings{Mode: "strict", Versions: "v2", TrustedCIDRs: true}},
		{Protocol: "tcp", Settings: lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true}},
	})}
	l.permissive, l.strict, l.tcp = l.Listeners[0], l.Listeners[1], l.Listeners[2]
	for _, g := range l.Gateways {
		t.Run("envoy "+g.Version, func(t *testing.T) {
			for _, c := range l.stories() {
				l.wantCounted(t, g, c)
			}
		})
	}
}

func (l *countersLab) stories() []counted {
	const (
		prefix    = `envoy_proxy_protocol_prefix="http_LISTENER"`
		tcpPrefix = `envoy_proxy_protocol_prefix="static-tcp_LISTENER"`
		version   = `,envoy_proxy_protocol_version="%d"`
	)
	v1, v2 := fmt.Sprintf(prefix+version, 1), fmt.Sprintf(prefix+version, 2)
	return []counted{
		{l.permissive, l.Trusted, "nothing", "envoy_proxy_proto_not_found_allowed", prefix},
		{l.permissive, l.Trusted, "v1, IPv4", "envoy_proxy_proto_found", v1},
		{l.permissive, l.Trusted, "v2, IPv6", "envoy_proxy_proto_found", v2},
		{l.permissive, l.Trusted, "v1, port that is none", "envoy_proxy_proto_error", v1},
		{l.strict, l.Trusted, "nothing", "envoy_proxy_proto_not_found_disallowed", prefix},
		{l.strict, l.Trusted, "v1, IPv4", "envoy_proxy_proto_disallowed", v1},
		{l.strict, l.Trusted, "v2, version 3", "envoy_proxy_proto_error", v2},
		{l.tcp, l.Trusted, "nothing", "envoy_proxy_proto_not_found_allowed", tcpPrefix},
		{l.permissive, l.Untrusted, "v2, IPv4", "envoy_http_downstream_cx_total", fmt.Sprintf(`envoy_http_conn_manager_prefix="ingress_upstream_%d_untrusted"`, l.permissive.Port)},
		{l.tcp, l.Untrusted, "v2, IPv4", "envoy_tcp_downstream_cx_total", fmt.Sprintf(`envoy_tcp_prefix="ingress_upstream_%d_untrusted"`, l.tcp.Port)},
		{l.strict, l.Untrusted, "v2, IPv4", "envoy_listener_no_filter_chain_match", fmt.Sprintf(`envoy_listener_address="ADDRESS_%d"`, l.strict.Port)},
	}
}

// wantCounted makes one connection, and waits for one more in its sample. No
// other sample of the metric changes.
func (l *countersLab) wantCounted(t *testing.T, g lab.TrustGateway, c counted) {
	t.Helper()
	if !strings.Contains(testprocess.ReadFile(t, "../docs/client-address.md"), c.metric) {
		t.Errorf("docs/client-address.md does not have %s", c.metric)
	}
	address := strings.ReplaceAll(g.Addresses[0].String(), ".", "_")
	label := strings.NewReplacer("LISTENER", fmt.Sprintf("%s_%d", address, c.listener.Port), "ADDRESS", g.Addresses[0].String()).Replace(c.label)
	p := l.NewProbe(lab.Probe{Gateway: g, Listener: c.listener, From: c.from, Address: g.Addresses[0], Preface: lab.PrefaceNamed(c.preface)})
	before := prometheusStats(t, g.Envoy, c.metric)
	p.Send(t, l.TrustLab)
	testprocess.Eventually(t, fmt.Sprintf("%v: one more of %s{…%s…}", p, c.metric, label), testprocess.ChangeDeadline, func() error {
		after := prometheusStats(t, g.Envoy, c.metric)
		for labels := range after {
			if want := before[labels] + strings.Count(labels, label); after[labels] != want {
				return fmt.Errorf("%s is %d, want %d", labels, after[labels], want)
			}
		}
		return nil
	})
}

var sample = regexp.MustCompile(`(?m)^([a-z_]+)(?:\{(.*)\})? ([0-9]+)$`)

// prometheusStats are the samples of a metric by their labels.
func prometheusStats(t *testing.T, e *lab.Envoy, metric string) map[string]int {
	t.Helper()
	body, err := e.Admin("/stats/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	samples := map[string]int{}
	for _, found := range sample.FindAllStringSubmatch(body, -1) {
		if found[1] == metric {
			n, err := strconv.Atoi(found[3])
			if err != nil {
				t.Fatal(err)
			}
			samples[found[2]] = n
		}
	}
	return samples
}
