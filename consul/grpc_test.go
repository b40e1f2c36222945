package consul

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/gateway"
)

func TestGRPCPortIsFound(t *testing.T) {
	c := newFakeConsul(t)
	host := strings.TrimPrefix(c.url, "http://")
	host = host[:strings.LastIndex(host, ":")]
	for _, test := range []struct{ name, grpcAddr, agent, want string }{
		{"of the settings", "consul.example.com:1234", "", "dns:///consul.example.com:1234"},
		{"of the agent", "", `{"Config": {}, "xDS": {"Ports": {"Plaintext": 4321}}}`, "dns:///" + host + ":4321"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.set("/v1/agent/self", reply{body: test.agent})
			conn, err := newTestClient(t, Config{HTTPAddr: c.url, GRPCAddr: test.grpcAddr}).DialGRPC(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if conn.Target() != test.want {
				t.Errorf("the target is %s, want %s", conn.Target(), test.want)
			}
		})
	}
	t.Run("default, if the agent refuses to say", func(t *testing.T) {
		c.set("/v1/agent/self", reply{status: 403, body: "Permission denied"})
		conn, err := c.client(t, slog.DiscardHandler).DialGRPC(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if want := "dns:///" + host + ":8502"; conn.Target() != want {
			t.Errorf("the target is %s, want %s", conn.Target(), want)
		}
	})
}

// kindPath is the question for the kind of the service "edge", as a fakeConsul knows it.
const kindPath = `/v1/catalog/service/edge?filter=ServiceKind == "ingress-gateway"`

// TestKindOfAService has the answers of Consul's catalog. Only an empty list of which Consul's ACLs hide nothing means that
// a service is no gateway.
func TestKindOfAService(t *testing.T) {
	for _, test := range []struct {
		name   string
		reply  reply
		want   bool
		failed string
	}{
		{name: "a gateway", reply: reply{body: `[{"ServiceKind": "ingress-gateway"}]`}, want: true},
		{name: "another service", reply: reply{body: `[]`}},
		{name: "hidden", reply: reply{body: `[]`, hidden: true}, failed: "give Usher's token service:read and node:read"},
		{name: "one instance hidden", reply: reply{body: `[{"ServiceKind": "ingress-gateway"}]`, hidden: true}, want: true},
		{name: "no leader", reply: reply{body: `[]`, leaderless: true}, failed: "has no leader"},
		{name: "refused", reply: reply{status: 403, body: "Permission denied"}, failed: "give Usher's token service:read on the service and node:read"},
		{name: "failed", reply: reply{status: 500, body: "No cluster leader"}, failed: "consul answered 500: No cluster leader"},
		{name: "null", reply: reply{body: `null`}, failed: "unexpected answer"},
		{name: "not Consul's", reply: reply{body: `<html>`}, failed: "unexpected answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newFakeConsul(t)
			c.set(kindPath, test.reply)
			is, err := c.client(t, slog.DiscardHandler).IsIngressGateway(t.Context(), gateway.ID{Name: "edge"})
			if test.failed == "" && err != nil || is != test.want {
				t.Errorf("got %v, %v, want %v", is, err, test.want)
			}
			if test.failed != "" && (err == nil || !strings.Contains(err.Error(), test.failed)) {
				t.Errorf("got the error %v, want %q", err, test.failed)
			}
		})
	}
}

// proxyPath is the question for the proxy "edge-1" on the node "n1", as a fakeConsul knows it.
const proxyPath = "/v1/catalog/node-services/n1?filter=ID == `edge-1`"

func TestProxyOn(t *testing.T) {
	row := func(id, kind string) string {
		return `{"Node": {"Node": "n1"}, "Services": [{"ID": "` + id + `", "Service": "edge", "Kind": "` + kind + `"}]}`
	}
	for _, test := range []struct {
		name      string
		reply     reply
		found, is bool
		failed    string
	}{
		{name: "a gateway", reply: reply{body: row("edge-1", "ingress-gateway")}, found: true, is: true},
		{name: "a sidecar", reply: reply{body: row("edge-1", "connect-proxy")}, found: true},
		{name: "another one's row", reply: reply{body: row("edge-2", "connect-proxy")}},
		{name: "another node's row", reply: reply{body: strings.ReplaceAll(row("edge-1", "connect-proxy"), `"n1"`, `"n2"`)}},
		{name: "no such proxy", reply: reply{body: `{"Node": {"Node": "n1"}, "Services": []}`}},
		{name: "no such node", reply: reply{body: `{"Node": null, "Services": []}`}},
		{name: "hidden", reply: reply{body: `{"Node": {"Node": "n1"}, "Services": []}`, hidden: true}, failed: "give Usher's token service:read and node:read"},
		{name: "others hidden", reply: reply{body: row("edge-1", "connect-proxy"), hidden: true}, found: true},
		{name: "no leader", reply: reply{body: row("edge-1", "connect-proxy"), leaderless: true}, failed: "has no leader"},
		{name: "failed", reply: reply{status: 500, body: "No cluster leader"}, failed: "consul answered 500: No cluster leader"},
		{name: "null", reply: reply{body: `null`}, failed: "unexpected answer"},
		{name: "null row", reply: reply{body: `{"Services": [null]}`}, failed: "unexpected answer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newFakeConsul(t)
			c.set(proxyPath, test.reply)
			p, found, err := c.client(t, slog.DiscardHandler).ProxyOn(t.Context(), "n1", gateway.ID{Name: "x"}, "edge-1")
			if test.failed == "" && err != nil || found != test.found || found && p.IsIngressGateway() != test.is {
				t.Errorf("got %v, %v, %v", p, found, err)
			}
			if test.failed != "" && (err == nil || !strings.Contains(err.Error(), test.failed)) {
				t.Errorf("got the error %v, want %q", err, test.failed)
			}
		})
	}
}

// The leader answers, because another server may not have a gateway yet that was registered a moment ago.
func TestTheLeaderIsAskedForTheKind(t *testing.T) {
	var asked *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r
		_, _ = w.Write([]byte("[]"))
	}))
	defer server.Close()
	client := newTestClient(t, Config{HTTPAddr: server.URL, Getenv: vars{"CONSUL_HTTP_TOKEN": "secret"}.get})
	if _, err := client.IsIngressGateway(t.Context(), gateway.ID{Name: "a/b", Partition: "p"}); err != nil {
		t.Fatal(err)
	}
	q := asked.URL.Query()
	if asked.URL.EscapedPath() != "/v1/catalog/service/a%2Fb" || q.Has("stale") || !q.Has("consistent") || q.Get("filter") != `ServiceKind == "ingress-gateway"` ||
		q.Get("partition") != "p" || q.Get("ns") != "default" || asked.Header.Get("X-Consul-Token") != "secret" {
		t.Errorf("asked %s with the token %q", asked.URL, asked.Header.Get("X-Consul-Token"))
	}
}
