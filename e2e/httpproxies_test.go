//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
)

// The HTTP proxies of TestProxiesThatSpeakHTTP, and the balancer that sends PROXY headers.
const (
	albIP   = "198.18.0.12" // HAProxy
	nginxIP = "198.18.0.13"
	cdnIP   = "198.18.0.14" // nginx
	nlbIP   = "198.18.0.15" // HAProxy
)

// Two listeners, without and with PROXY protocol, and one that trusts the CDN's header.
const httpProxiesConfig = `usher {
  listeners {
    "8080" { client_address { trusted_cidrs = ["198.18.0.12/30"] } }
    "8081" {
      proxy_protocol { mode = "strict" trusted_cidrs = ["198.18.0.15"] }
      client_address { trusted_cidrs = ["198.18.0.14"] }
    }
    "8082" {
      proxy_protocol { mode = "strict" trusted_cidrs = ["198.18.0.15"] }
      client_address { trusted_cidrs = ["198.18.0.14"] header = "true-client-ip" fail_closed = "yes" }
    }
  }
}
`

// TestProxiesThatSpeakHTTP has HAProxy and nginx in front of the gateway, which add
// to X-Forwarded-For, one and two of them in a row. The log has the client, whatever
// it says of itself, and the service gets the whole way.
func TestProxiesThatSpeakHTTP(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	entry := &api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: "ingress-gateway"}
	for port := 8080; port <= 8082; port++ {
		entry.Listeners = append(entry.Listeners, api.IngressListener{
			Port: port, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}},
		})
	}
	if _, _, err := l.Consul.Client.ConfigEntries().Set(entry, nil); err != nil {
		t.Fatal(err)
	}
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: httpProxiesConfig})
	gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	alb, nlb := l.AddHost(t, "alb", albIP), l.AddHost(t, "nlb", nlbIP)
	lab.StartHAProxy(t, lab.HAProxyOptions{Host: alb, Targets: []*lab.Host{l.Gateway}, Ports: []int{8080}, Header: lab.SendNone, ForwardFor: true})
	lab.StartHAProxy(t, lab.HAProxyOptions{Host: nlb, Targets: []*lab.Host{l.Gateway}, Ports: []int{8081, 8082}, Header: lab.SendV2})
	nginx, cdn := l.AddHost(t, "nginx", nginxIP), l.AddHost(t, "cdn", cdnIP)
	lab.StartNginxHTTP(t, nginx, nginxProxy(nginx.Addr(8080), l.Gateway.Addr(8080)))
	lab.StartNginxHTTP(t, cdn, nginxProxy(cdn.Addr(8080), alb.Addr(8080))+nginxProxy(cdn.Addr(8081), nlb.Addr(8081))+nginxProxy(cdn.Addr(8082), nlb.Addr(8082)))

	for _, way := range []struct {
		name    string
		from    *lab.Host
		to      string
		proxies []string // as the service gets them, behind the client
	}{
		{"HAProxy", l.Client, alb.Addr(8080), []string{albIP}},
		{"nginx", l.Client, nginx.Addr(8080), []string{nginxIP}},
		{"a CDN in front of HAProxy", l.Client, cdn.Addr(8080), []string{cdnIP, albIP}},
		{"a CDN in front of a network load balancer", l.Client, cdn.Addr(8081), []string{cdnIP}},
		{"a CDN with a header in front of a network load balancer", l.Client, cdn.Addr(8082), []string{cdnIP}},
		{"past all of them", l.Service, l.Gateway.Addr(8080), nil},
		{"past the CDN", l.Service, nlb.Addr(8081), nil},
		{"past the CDN with a header", l.Service, nlb.Addr(8082), nil},
	} {
		t.Run(way.name, func(t *testing.T) {
			c := lab.Request{From: way.from, To: way.to}
			lab.WaitStatus(t, c, http.StatusOK)
			c.Path, c.Header = lab.NewPath(), http.Header{"X-Forwarded-For": {lab.ForgedIP}, "True-Client-Ip": {lab.ForgedIP}}
			c.MustDo(t).WantHello(t)
			client := way.from.IP.String()
			if got := gateway.Log.WaitRequest(t, c.Path).IP(t, "downstream_remote_address"); got != client {
				t.Errorf("the log has the client %s, want %s", got, client)
			}
			want := strings.Join(append([]string{lab.ForgedIP, client}, way.proxies...), ",")
			if got := strings.ReplaceAll(l.ForwardedFor(t, c.Path), " ", ""); got != want {
				t.Errorf("the service gets X-Forwarded-For %q, want %q", got, want)
			}
		})
	}
}

// nginxProxy is a server of nginx that passes requests on, and names the client in two headers.
func nginxProxy(listen, to string) string {
	return fmt.Sprintf(`  server {
    listen %s;
    location / {
      proxy_pass http://%s;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header True-Client-IP $remote_addr;
    }
  }
`, listen, to)
}
