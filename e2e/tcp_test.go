//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
)

// TestTCPListener is the lab's story for a service that does not speak HTTP.
// With PROXY protocol off the header is data for the service, as with Consul's
// own gateway. With it on, the gateway removes the header, and the log has the
// client's address. Of two headers the second is data.
func TestTCPListener(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	lab.StartTCPEcho(t, l.Service, lab.TCPPort)
	lab.RegisterService(t, lab.ServiceOptions{
		Name: "static-tcp", Port: lab.TCPPort, Consul: l.Consul, Host: l.Service, Envoy: lab.EnvoyNew, SidecarPort: 21001,
	})
	l.Consul.WriteEntry(t, fmt.Sprintf(`
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [{ Port = %d, Protocol = "tcp", Services = [{ Name = "static-tcp" }] }]
`, lab.TCPPort))
	balancer := lab.StartHAProxy(t, lab.HAProxyOptions{
		Host: l.Balancer, Targets: []*lab.Host{l.Gateway}, Ports: []int{lab.TCPPort}, Header: lab.SendV2,
	})
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	gateway.WaitListener(t, lab.TCPPort)

	v1, v2 := lab.ProxyHeaderFor("203.0.113.1"), lab.ProxyHeaderFor("203.0.113.2")
	v1.Version = 1
	plain := lab.TCPExchange{From: l.Balancer, To: l.Gateway.Addr(lab.TCPPort)}
	withV1, withV2, withBoth := plain, plain, plain
	withV1.Headers = []io.WriterTo{v1}
	withV2.Headers = []io.WriterTo{v2}
	withBoth.Headers = []io.WriterTo{v2, v1}

	l.SetMode(t, "off")
	withV2.WaitData(t, bytesOf(t, v2))
	plain.WaitData(t, "")

	l.SetMode(t, "strict")
	plain.WaitClosed(t)
	withV2.WaitData(t, "")
	withV1.WaitData(t, "")
	withBoth.WaitData(t, bytesOf(t, v1))
	for _, header := range []lab.ProxyHeader{lab.SendV1, lab.SendV2} {
		balancer.SetHeader(t, header)
		wantTCPClientLogged(t, l, gateway)
	}

	l.SetMode(t, "permissive")
	plain.WaitData(t, "")
	withV2.WaitData(t, "")
	wantTCPClientLogged(t, l, gateway)
}

// wantTCPClientLogged makes the client's connection through the balancer. The
// log has the client's end of it, and the balancer's beside.
func wantTCPClientLogged(t *testing.T, l *lab.Lab, gateway *lab.Envoy) {
	t.Helper()
	data, client, err := lab.TCPExchange{From: l.Client, To: l.Balancer.Addr(lab.TCPPort)}.Do(t.Context())
	if err != nil || data != "" {
		t.Fatalf("the service got %q before the word (%v), want nothing", data, err)
	}
	entry := gateway.Log.Wait(t, map[string]string{"downstream_remote_address": client})
	if got := entry.IP(t, "downstream_direct_remote_address"); got != lab.BalancerIP {
		t.Errorf("access log has %s for the balancer, want %s", got, lab.BalancerIP)
	}
}

// bytesOf is a header as it goes over the wire.
func bytesOf(t *testing.T, h *proxyproto.Header) string {
	t.Helper()
	var b strings.Builder
	if _, err := h.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
