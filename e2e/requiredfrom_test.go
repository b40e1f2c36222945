//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
)

// TestRequiredFromSomeAndPlainFromOthers has the two listeners of
// docs/client-address.md: one for the load balancer, which has to send a header, and
// one for everybody else.
func TestRequiredFromSomeAndPlainFromOthers(t *testing.T) {
	t.Parallel()
	l := &forgeryLab{lab.StartTrustLab(t, []lab.TestListener{
		{Protocol: "http", Settings: lab.ListenerSettings{Mode: "strict", TrustedCIDRs: true}},
		{Protocol: "http", Settings: lab.ListenerSettings{Mode: "off", ClientAddress: `xff = "append"`}},
		{Protocol: "http", Settings: lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true}},
	})}
	balancer, others, permissive := l.Listeners[0], l.Listeners[1], l.Listeners[2]
	for _, g := range l.Gateways {
		t.Run("envoy "+g.Version, func(t *testing.T) {
			t.Parallel()
			for _, c := range []struct {
				from   lab.Downstream
				to     lab.TestListener
				header string
				want   lab.Observation
			}{
				{l.Trusted, balancer, "v2, IPv4", lab.Observation{Response: "200", Log: "client", Service: "forged,client"}},
				{l.Trusted, balancer, "v2, LOCAL", lab.Observation{Response: "200", Log: "direct", Service: "forged,direct"}},
				{l.Trusted, balancer, "nothing", lab.Observation{Response: "closed", Log: "direct", Service: "-"}},
				{l.Untrusted, balancer, "v2, IPv4", lab.Observation{Response: "closed", Log: "direct", Service: "-"}},
				{l.Untrusted, balancer, "nothing", lab.Observation{Response: "closed", Log: "direct", Service: "-"}},
				{l.Untrusted, others, "nothing", lab.Observation{Response: "200", Log: "direct", Service: "forged,direct"}},
				{l.Untrusted, others, "v2, IPv4", lab.Observation{Response: "400", Log: "direct", Service: "-"}},
			} {
				p := l.NewProbe(lab.Probe{Gateway: g, Listener: c.to, From: c.from, Address: g.Addresses[0], Preface: lab.PrefaceNamed(c.header)})
				if seen, _ := l.Observe(t, []lab.Probe{p}, lab.Always); seen[0] != c.want {
					t.Errorf("%v: (%v), want (%v)", p, seen[0], c.want)
				}
			}
			l.wantLocalToLookLikeNoHeader(t, g, permissive)
		})
	}
}

// wantLocalToLookLikeNoHeader shows why one listener cannot do it: nothing that a log,
// and so a filter, can read tells a connection with the header of a health check from
// one without a header.
func (l *forgeryLab) wantLocalToLookLikeNoHeader(t *testing.T, g lab.TrustGateway, m lab.TestListener) {
	t.Helper()
	var entries []map[string]string
	for _, header := range []string{"v2, LOCAL", "nothing"} {
		p := l.NewProbe(lab.Probe{Gateway: g, Listener: m, From: l.Trusted, Address: g.Addresses[0], Preface: lab.PrefaceNamed(header)})
		_, lines := l.Observe(t, []lab.Probe{p}, lab.Always)
		entry := map[string]string{}
		for name, value := range lines.EntriesFor(p)[0] {
			entry[name] = fmt.Sprint(value)
		}
		for _, other := range []string{
			"path", "downstream_remote_address", "downstream_direct_remote_address", "start_time", "duration", "request_id",
			"upstream_local_address", "upstream_service_time", "x_forwarded_for", "bytes_received",
		} {
			delete(entry, other)
		}
		entries = append(entries, entry)
	}
	if !maps.Equal(entries[0], entries[1]) {
		t.Errorf("a health check's header shows: %v, and without one %v", entries[0], entries[1])
	}
}
