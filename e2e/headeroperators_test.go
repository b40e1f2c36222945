//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The addresses in the PROXY headers of these tests. No host has them.
const (
	claimedClient = "192.0.2.7"
	claimedTarget = "198.51.100.1"
)

// claimOfPort is a PROXY header of a client that has connected to a port of claimedTarget.
func claimOfPort(port uint16) *proxyproto.Header {
	address := func(ip string, port uint16) net.Addr {
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), port))
	}
	return proxyproto.HeaderProxyFromAddrs(2, address(claimedClient, 40000), address(claimedTarget, port))
}

// operatorHeaders are headers of users with operators, in the four places where Consul takes some: the gateway's entry,
// for requests and for responses, a service-router and a service-splitter.
const operatorHeaders = `
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [{
  Port     = 8080
  Protocol = "http"
  Services = [{
    Name           = "static-server"
    RequestHeaders = {
      Set = {
        "x-forwarded-port" = "%%DOWNSTREAM_LOCAL_PORT%%"
        "x-dst"            = "%%DOWNSTREAM_LOCAL_ADDRESS%%"
        "x-client"         = "%%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%%"
        "x-both"           = "%%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%% over %%PROTOCOL%%"
        "x-expression"     = "%%CEL(destination.port)%%"
        %s
      }
    }
    ResponseHeaders = { Set = { "x-dst" = "%%DOWNSTREAM_LOCAL_ADDRESS%%", "x-expression" = "%%CEL(destination.port)%%" } }
  }]
}]
`

const routedHeaders = `
Kind = "service-router"
Name = "static-server"
Routes = [{
  Match { HTTP { PathPrefix = "/" } }
  Destination {
    RequestHeaders { Set { "x-router" = "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%" } }
    ResponseHeaders { Add { "x-router" = "%DOWNSTREAM_LOCAL_PORT%" } }
  }
}]
`

const splitHeaders = `
Kind = "service-splitter"
Name = "static-server"
Splits = [{
  Weight = 100
  RequestHeaders { Set { "x-split" = "%DOWNSTREAM_LOCAL_PORT%" } }
  ResponseHeaders { Set { "x-split" = "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%" } }
}]
`

// seenHeaders are what the service and the client get of headers with operators; "" for none.
type seenHeaders struct{ request, response map[string]string }

// TestHeadersWithOperatorsShowNoForgedClaim has a peer outside of trusted_cidrs claim a client and a destination. Headers
// with operators show its own address, and the listener's, in every place. From a trusted address they show the claim.
func TestHeadersWithOperatorsShowNoForgedClaim(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := lab.Start(t, lab.ConsulNew, envoy, false)
		nested := ""
		if envoy == lab.EnvoyNew {
			nested = `"x-nested" = "%COALESCE({\"operators\": [{\"command\": \"REQ\", \"param\": \"x-none\"}, \"DOWNSTREAM_LOCAL_PORT\"]})%"`
		}
		l.Consul.WriteEntry(t, fmt.Sprintf(operatorHeaders, nested))
		l.Consul.WriteEntry(t, routedHeaders)
		l.Consul.WriteEntry(t, splitHeaders)
		usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: trustingOnly(lab.BalancerIP)})
		gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})

		claimed := headersOf(claimedClient, claimedTarget, "443", envoy)
		untrusted := lab.Request{From: l.Client, To: l.Gateway.Addr(8080)}
		trusted := lab.Request{From: l.Balancer, To: l.Gateway.Addr(8080)}
		forged := untrusted
		forged.Proxy = claimOfPort(443)
		believed := trusted
		believed.Proxy = claimOfPort(443)
		own := headersOf(lab.ClientIP, lab.GatewayIP, "8080", envoy)
		own.request["x-expression"], own.response["x-expression"] = "", "" // an expression can only read the claim
		lab.WaitStatus(t, untrusted, http.StatusOK)
		for _, story := range []struct {
			name    string
			request lab.Request
			want    seenHeaders
		}{
			{"a peer outside of trusted_cidrs that claims another address and port", forged, own},
			{"a peer outside of trusted_cidrs", untrusted, own},
			{"the balancer with a header", believed, claimed},
			{"the balancer without a header", trusted, headersOf(lab.BalancerIP, lab.GatewayIP, "8080", envoy)},
		} {
			path, err := headersSeen(t, l, story.request, story.want)
			if err != nil {
				t.Errorf("%s: %v", story.name, err)
			}
			if got, want := gateway.Log.WaitRequest(t, path).Text("downstream_local_address"), story.want.request["x-dst"]; got != want {
				t.Errorf("%s: the access log has the local address %s, want %s", story.name, got, want)
			}
		}

		// With everyone trusted, all get what Consul's own routes say.
		usher.WriteConfig(t, `usher { proxy_protocol { mode = "permissive" } }`)
		testprocess.Eventually(t, "everyone is believed", testprocess.ChangeDeadline, func() error {
			_, err := headersSeen(t, l, forged, claimed)
			return err
		})
		usher.WriteConfig(t, trustingOnly(lab.BalancerIP))
		testprocess.Eventually(t, "only the balancer is believed again", testprocess.ChangeDeadline, func() error {
			_, err := headersSeen(t, l, forged, own)
			return err
		})
	})
}

// trustingOnly are permissive settings that trust one address.
func trustingOnly(ip string) string {
	return fmt.Sprintf("usher { proxy_protocol { mode = \"permissive\" trusted_cidrs = [%q] } }", ip)
}

// headersOf are the headers of a connection from a client to a target.
func headersOf(client, target, port, envoy string) seenHeaders {
	h := seenHeaders{
		request: map[string]string{
			"x-forwarded-port": port, "x-dst": target + ":" + port, "x-client": client, "x-both": client + " over HTTP/1.1",
			"x-expression": port, "x-router": target, "x-split": port,
		},
		response: map[string]string{"x-dst": target + ":" + port, "x-expression": port, "x-router": port, "x-split": client},
	}
	if envoy == lab.EnvoyNew {
		h.request["x-nested"] = port
	}
	return h
}

// headersSeen makes requests with a forged value in each header, and returns the path of the last one. The error says which
// header is another one than wanted, at the service or in the answer.
func headersSeen(t *testing.T, l *lab.Lab, request lab.Request, want seenHeaders) (string, error) {
	t.Helper()
	const consecutive = 10 // an Envoy takes a new listener thread by thread
	request.Header = http.Header{}
	for name := range want.request {
		request.Header.Set(name, "forged")
	}
	for range consecutive {
		request.Path = lab.NewPath()
		answer := request.MustDo(t)
		answer.WantHello(t)
		seen := l.Echo.Received(t, request.Path).Header
		if err := wantHeaders("the service gets", seen, want.request); err != nil {
			return request.Path, err
		}
		if err := wantHeaders("the client gets", answer.Header, want.response); err != nil {
			return request.Path, err
		}
	}
	return request.Path, nil
}

func wantHeaders(who string, seen http.Header, want map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got := strings.Join(seen.Values(name), ","); got != want[name] {
			return fmt.Errorf("%s %s %q, want %q", who, name, got, want[name])
		}
	}
	return nil
}
