//go:build e2e

package lab

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// ProxyHeaderFor is the PROXY v2 header that a balancer writes for a client.
func ProxyHeaderFor(client string) *proxyproto.Header {
	address := func(ip string, port uint16) net.Addr {
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), port))
	}
	return proxyproto.HeaderProxyFromAddrs(2, address(client, 40000), address(BalancerIP, 8080))
}

// WaitMode waits until a gateway handles connections with and without a PROXY header
// as in the mode. The connections come from the balancer's host.
func (l *Network) WaitMode(t *testing.T, gateway *Host, mode string) {
	t.Helper()
	const consecutive = 10
	plain := Request{From: l.Balancer, To: gateway.Addr(8080), Path: PollPath}
	withHeader := plain
	withHeader.Proxy = ProxyHeaderFor(ClientIP)
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
	testprocess.Eventually(t, fmt.Sprintf("%s is in mode %s", gateway.Name, mode), testprocess.ChangeDeadline, func() error {
		for range consecutive {
			if got := plain.StatusCode(t); got != plainStatus {
				return fmt.Errorf("status %d without a header, want %d", got, plainStatus)
			}
			if got := withHeader.StatusCode(t); got != headerStatus {
				return fmt.Errorf("status %d with a header, want %d", got, headerStatus)
			}
		}
		return nil
	})
}

// StatusCode makes the request. It returns 0 if the connection was closed without a
// response.
func (c Request) StatusCode(t *testing.T) int {
	t.Helper()
	got, err := c.Do(t.Context())
	if err != nil {
		return 0
	}
	return got.Status
}
