//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/pires/go-proxyproto"
)

// proxied is a PROXY v2 header of a client's, as a balancer writes it.
func proxied(client string) *proxyproto.Header {
	address := func(ip string, port uint16) net.Addr {
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), port))
	}
	return proxyproto.HeaderProxyFromAddrs(2, address(client, 40000), address(balancerIP, 8080))
}

// waitMode waits until a gateway treats connections with and without a PROXY
// header as the mode has it. The connections come from the balancer's host.
func (l *lab) waitMode(t *testing.T, gateway *host, mode string) {
	t.Helper()
	const row = 10
	plain := call{From: l.Balancer, To: gateway.addr(8080), Path: waitPrefix}
	withHeader := plain
	withHeader.Proxy = proxied(clientIP)
	plainStatus, headerStatus := http.StatusOK, http.StatusOK
	switch mode {
	case "off":
		headerStatus = http.StatusBadRequest
	case "strict":
		plainStatus = 0
	case "permissive":
	default:
		t.Fatalf("there is no mode %q", mode)
	}
	eventually(t, fmt.Sprintf("%s is in mode %s", gateway.Name, mode), changeDeadline, func() error {
		for range row {
			if got := plain.status(t); got != plainStatus {
				return fmt.Errorf("status %d without a header, want %d", got, plainStatus)
			}
			if got := withHeader.status(t); got != headerStatus {
				return fmt.Errorf("status %d with a header, want %d", got, headerStatus)
			}
		}
		return nil
	})
}

// status is the status of the call's answer, 0 where the connection was closed
// without one.
func (c call) status(t *testing.T) int {
	t.Helper()
	got, err := c.do(t.Context())
	if err != nil {
		return 0
	}
	return got.Status
}
