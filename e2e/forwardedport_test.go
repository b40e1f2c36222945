//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// portRequest is a request to the gateway's port 8080, and the X-Forwarded-Port that the service gets.
type portRequest struct {
	name  string
	from  *lab.Host
	proxy *proxyproto.Header // nil: none
	sent  []string           // X-Forwarded-Port
	want  string
}

// TestForwardedPort has a balancer that ends TLS on port 443 and sends PROXY headers to port 8080, and clients that connect
// past it. Services get the port that the client has connected to, and never the one that a client claims.
func TestForwardedPort(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := lab.Start(t, lab.ConsulNew, envoy, false)
		usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: "usher {}"})
		gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		lab.WaitStatus(t, lab.Request{From: l.Client, To: l.Gateway.Addr(8080)}, http.StatusOK)
		v1, local := claimOfPort(443), &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
		v1.Version = 1
		const believed = `proxy_protocol { mode = "permissive" trusted_cidrs = ["` + lab.BalancerIP + `"] } `
		for _, step := range []struct {
			settings string
			requests []portRequest
		}{
			{`client_address { forwarded_port = "default" }`, []portRequest{
				{"nothing, as with Consul's own gateway", l.Client, nil, nil, ""},
				{"a port, as with Consul's own gateway", l.Client, nil, []string{"443"}, "443"},
			}},
			{believed + `client_address { forwarded_port = "connection" }`, []portRequest{
				{"the balancer's header", l.Balancer, claimOfPort(443), nil, "443"},
				{"the balancer's header of version 1", l.Balancer, v1, nil, "443"},
				{"the balancer's header for another port", l.Balancer, claimOfPort(80), nil, "80"},
				{"the balancer's header, and a client's claim", l.Balancer, claimOfPort(443), []string{"9999", "9998"}, "443"},
				{"the balancer's check", l.Balancer, local, nil, "8080"},
				{"the balancer without a header", l.Balancer, nil, []string{"9999"}, "8080"},
				{"a forged header", l.Client, claimOfPort(443), nil, "8080"},
				{"a forged header and claim", l.Client, claimOfPort(443), []string{"443"}, "8080"},
				{"a claim", l.Client, nil, []string{"443"}, "8080"},
			}},
			{believed + `client_address { forwarded_port = "trust" trusted_hops = 1 }`, []portRequest{
				{"a trusted hop behind the balancer", l.Balancer, claimOfPort(443), []string{"8443"}, "8443"},
				{"a trusted hop that says nothing", l.Balancer, claimOfPort(443), nil, "443"},
				{"a forged header and claim, with trusted hops", l.Client, claimOfPort(443), []string{"443"}, "8080"},
			}},
			{`client_address { forwarded_port = "trust" trusted_hops = 1 }`, []portRequest{
				{"a trusted hop at any address", l.Client, nil, []string{"443"}, "443"},
				{"a trusted hop", l.Balancer, nil, []string{"443"}, "443"},
				{"a trusted hop without PROXY protocol that says nothing", l.Balancer, nil, nil, "8080"},
			}},
			{`client_address { forwarded_port = "connection" trusted_hops = 1 }`, []portRequest{
				{"a trusted hop that does not count", l.Balancer, nil, []string{"443"}, "8080"},
			}},
		} {
			usher.WriteConfig(t, "usher { "+step.settings+" }")
			for _, r := range step.requests {
				r.wait(t, l)
			}
		}
		usher.WriteConfig(t, `usher { client_address { forwarded_port = "connection" } }`)
		testprocess.Eventually(t, "nothing else changes", testprocess.ChangeDeadline, func() error { return otherChanges(t, l, gateway) })
		portRequest{"a claim without PROXY protocol", l.Client, nil, []string{"443"}, "8080"}.wait(t, l)
		portRequest{"nothing without PROXY protocol", l.Client, nil, nil, "8080"}.wait(t, l)
	})
}

// wait makes the request until the service gets the port.
func (r portRequest) wait(t *testing.T, l *lab.Lab) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%s: the service gets X-Forwarded-Port %q", r.name, r.want), testprocess.ChangeDeadline, func() error {
		return r.portSeen(t, l)
	})
}

// portSeen makes requests. It is an error if the service gets another port.
func (r portRequest) portSeen(t *testing.T, l *lab.Lab) error {
	t.Helper()
	const consecutive = 10 // an Envoy takes a new listener thread by thread
	for range consecutive {
		request := lab.Request{From: r.from, To: l.Gateway.Addr(8080), Path: lab.NewPath(), Header: http.Header{"X-Forwarded-Port": r.sent}}
		if r.proxy != nil {
			request.Proxy = r.proxy
		}
		answer, err := request.Do(t.Context())
		if err != nil || answer.Status != http.StatusOK {
			return fmt.Errorf("the answer is %d (%w)", answer.Status, err)
		}
		if got := strings.Join(l.Echo.Received(t, request.Path).Header.Values("X-Forwarded-Port"), ","); got != r.want {
			return fmt.Errorf("it gets %q", got)
		}
	}
	return nil
}

// otherChanges is an error if other headers or the access log are not as without the setting: the client's headers are passed
// on, and the log has no field for the balancer.
func otherChanges(t *testing.T, l *lab.Lab, gateway *lab.Envoy) error {
	t.Helper()
	sent := http.Header{"X-Forwarded-For": {"6.6.6.6"}, "X-Forwarded-Proto": {"https"}}
	request := lab.Request{From: l.Client, To: l.Gateway.Addr(8080), Path: lab.NewPath(), Header: sent}
	request.MustDo(t).WantHello(t)
	for name := range sent {
		if got, want := l.Echo.Received(t, request.Path).Header.Get(name), sent.Get(name); got != want {
			return fmt.Errorf("the service gets %s %q, want %q", name, got, want)
		}
	}
	entry := gateway.Log.WaitRequest(t, request.Path)
	if got := entry.Text("downstream_local_address"); got != l.Gateway.Addr(8080) {
		return fmt.Errorf("the access log has the local address %s", got)
	}
	if got := entry.Text("downstream_direct_remote_address"); got != "" {
		return fmt.Errorf("the access log has a field for the balancer: %s", got)
	}
	return nil
}
