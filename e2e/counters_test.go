//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// countersLab has listeners that count differently.
type countersLab struct {
	*peersLab
	permissive, strict, tcp testListener
}

// counted is a kind of connection, and the metric that counts it: the sample of
// the listener, with LISTENER for its address and port in letters.
type counted struct {
	listener testListener
	from     peer
	preface  string
	metric   string
	label    string
}

// TestMigrationIsCounted makes connections of all kinds, and wants Envoy's
// Prometheus endpoint to count them, for each listener, under the names of the
// queries in docs/client-address.md.
func TestMigrationIsCounted(t *testing.T) {
	t.Parallel()
	l := &countersLab{peersLab: startPeersLab(t, []testListener{
		{protocol: "http", policy: policy{mode: "permissive", cidrs: true}},
		{protocol: "http", policy: policy{mode: "strict", versions: "v2", cidrs: true}},
		{protocol: "tcp", policy: policy{mode: "permissive", cidrs: true}},
	})}
	l.permissive, l.strict, l.tcp = l.listeners[0], l.listeners[1], l.listeners[2]
	for _, g := range l.gateways {
		t.Run("envoy "+g.version, func(t *testing.T) {
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
		{l.permissive, l.trusted, "nothing", "envoy_proxy_proto_not_found_allowed", prefix},
		{l.permissive, l.trusted, "v1, IPv4", "envoy_proxy_proto_found", v1},
		{l.permissive, l.trusted, "v2, IPv6", "envoy_proxy_proto_found", v2},
		{l.permissive, l.trusted, "v1, port that is none", "envoy_proxy_proto_error", v1},
		{l.strict, l.trusted, "nothing", "envoy_proxy_proto_not_found_disallowed", prefix},
		{l.strict, l.trusted, "v1, IPv4", "envoy_proxy_proto_disallowed", v1},
		{l.strict, l.trusted, "v2, version 3", "envoy_proxy_proto_error", v2},
		{l.tcp, l.trusted, "nothing", "envoy_proxy_proto_not_found_allowed", tcpPrefix},
		{l.permissive, l.stranger, "v2, IPv4", "envoy_http_downstream_cx_total", fmt.Sprintf(`envoy_http_conn_manager_prefix="ingress_upstream_%d_untrusted"`, l.permissive.port)},
		{l.tcp, l.stranger, "v2, IPv4", "envoy_tcp_downstream_cx_total", fmt.Sprintf(`envoy_tcp_prefix="ingress_upstream_%d_untrusted"`, l.tcp.port)},
		{l.strict, l.stranger, "v2, IPv4", "envoy_listener_no_filter_chain_match", fmt.Sprintf(`envoy_listener_address="ADDRESS_%d"`, l.strict.port)},
	}
}

// wantCounted makes one connection, and waits for one more in its sample. No
// other sample of the metric changes.
func (l *countersLab) wantCounted(t *testing.T, g peersGateway, c counted) {
	t.Helper()
	if !strings.Contains(readFile(t, "../docs/client-address.md"), c.metric) {
		t.Errorf("docs/client-address.md does not have %s", c.metric)
	}
	address := strings.ReplaceAll(g.addresses[0].String(), ".", "_")
	label := strings.NewReplacer("LISTENER", fmt.Sprintf("%s_%d", address, c.listener.port), "ADDRESS", g.addresses[0].String()).Replace(c.label)
	p := l.newProbe(probe{gateway: g, listener: c.listener, from: c.from, address: g.addresses[0], preface: prefaceOf(c.preface)})
	before := g.prometheus(t, c.metric)
	p.send(t, l.peersLab)
	eventually(t, fmt.Sprintf("%v: one more of %s{…%s…}", p, c.metric, label), changeDeadline, func() error {
		after := g.prometheus(t, c.metric)
		for labels := range after {
			if want := before[labels] + strings.Count(labels, label); after[labels] != want {
				return fmt.Errorf("%s is %d, want %d", labels, after[labels], want)
			}
		}
		return nil
	})
}

var sample = regexp.MustCompile(`(?m)^([a-z_]+)(?:\{(.*)\})? ([0-9]+)$`)

// prometheus are the samples of a metric by their labels.
func (e *envoy) prometheus(t *testing.T, metric string) map[string]int {
	t.Helper()
	body, err := e.admin("/stats/prometheus")
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
