//go:build e2e

package e2e

import "testing"

// TestApacheBehindTheBalancer proves the balancer right: an Apache that
// understands PROXY protocol and stands directly behind it logs the client.
func TestApacheBehindTheBalancer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	apache := startApache(t, l.Service, 8080, proxyProtocol)
	startBalancer(t, balancerOptions{
		Host: l.Balancer, Targets: []*host{l.Service}, Ports: []int{8080}, Header: v2Header,
	})
	path := newPath()
	call{From: l.Client, To: l.Balancer.addr(8080), Path: path}.must(t).wantHello(t)
	if got := apache.client(t, path); got != clientIP {
		t.Errorf("Apache's log has %s for the client, want %s", got, clientIP)
	}
}
