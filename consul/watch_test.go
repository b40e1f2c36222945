package consul

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

func instanceOf(gateway string) reply {
	return reply{body: fmt.Sprintf(`[{
		"Node": {"Node": "n1", "Datacenter": "dc1"}, "Service": {"Kind": "ingress-gateway", "ID": %q}
	}]`, gateway)}
}

// chainTo is the chain of a service that leads to targets of the same name, or
// to the service itself.
func chainTo(service string, targets ...string) reply {
	if len(targets) == 0 {
		targets = []string{service}
	}
	var list []string
	for _, target := range targets {
		list = append(list, fmt.Sprintf(`%q: {"ID": %q, "Service": %q, "Namespace": "default", "Partition": "default", "Datacenter": "dc1"}`,
			target, target, target))
	}
	return reply{body: fmt.Sprintf(`{"Chain": {"ServiceName": %q, "Datacenter": "dc1", "StartNode": "start", "Nodes": {"start": {}}, "Targets": {%s}}}`,
		service, strings.Join(list, ", "))}
}

// sidecar is one instance of a service.
func sidecar(port int, status string) reply {
	return reply{body: fmt.Sprintf(`[{
		"Node": {"Node": "n1", "Address": "10.0.0.1", "Datacenter": "dc1"},
		"Service": {"Port": %d}, "Checks": [{"Status": %q}]
	}]`, port, status)}
}

// newLab is a Consul with a gateway, and services with one instance each.
func newFakeGatewayWithInstances(t *testing.T, services ...string) *fakeConsul {
	t.Helper()
	c := newFakeGateway(t, services...)
	for i, s := range services {
		c.set("/v1/discovery-chain/"+s, chainTo(s))
		c.set("/v1/health/connect/"+s, sidecar(20000+i, "passing"))
	}
	return c
}

func TestASnapshotHasAllThatConsulSays(t *testing.T) {
	c := newFakeConsul(t)
	c.set("/v1/connect/ca/roots", reply{body: `{"TrustDomain": "td.consul", "Roots": [{"RootCert": "one"}, {"RootCert": "two"}]}`})
	c.set("/v1/agent/connect/ca/leaf/gateway", reply{body: `{"CertPEM": "cert", "PrivateKeyPEM": "key", "ValidAfter": "2020-01-01T03:04:05Z", "ValidBefore": "2120-01-02T03:04:05Z"}`})
	c.set("/v1/config/proxy-defaults", reply{body: `[{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http", "usher": {"proxy_protocol": {"mode": "permissive"}}}}]`})
	c.set("/v1/config/mesh", reply{body: `[{"Kind": "mesh", "ValidateClusters": true, "TLS": {"Outgoing": {"TLSMinVersion": "TLSv1_3"}}}]`})
	c.set("/v1/config/ingress-gateway", reply{body: `[
		{"Kind": "ingress-gateway", "Name": "other", "Listeners": null},
		{"Kind": "ingress-gateway", "Name": "gateway", "TLS": {"Enabled": true}, "Defaults": {"MaxConnections": 3, "PassiveHealthCheck": {"Interval": 10000000000}},
		 "Listeners": [{"Port": 8080, "Protocol": "http", "Services": [{"Name": "web", "Hosts": ["a.example"], "RequestHeaders": {"Add": {"x": "y"}}}]}]}
	]`})
	c.set(servicesPath, reply{body: `[{"Gateway": {"Name": "gateway"}, "Service": {"Name": "web", "Namespace": "default", "Partition": "default"}, "Port": 8080, "Protocol": "http", "Hosts": ["a.example"]}]`})
	c.set("/v1/health/service/gateway", reply{body: `[
		{"Node": {"Node": "n2", "Address": "10.0.0.2", "Datacenter": "dc1"}, "Service": {"Kind": "ingress-gateway", "ID": "gateway", "Port": 8443,
			"Proxy": {"Config": {"usher": {"proxy_protocol": {"mode": "strict"}}}}}, "Checks": [{"Status": "critical"}]},
		{"Node": {"Node": "n1", "Address": "10.0.0.1", "Datacenter": "dc1"}, "Service": {"Kind": "ingress-gateway", "ID": "gateway", "Address": "10.1.0.1", "Port": 8443,
			"TaggedAddresses": {"wan": {"Address": "192.0.2.1", "Port": 443}},
			"Proxy": {"Config": {"usher": {"proxy_protocol": {"mode": "permissive"}}, "envoy_gateway_no_default_bind": true},
			"AccessLogs": {"Enabled": true, "Type": "file", "Path": "/log"}}}},
		{"Node": {"Node": "n1"}, "Service": {"ID": "no gateway"}}
	]`})
	c.set("/v1/discovery-chain/web", reply{body: `{"Chain": {"ServiceName": "web", "Namespace": "default", "Partition": "default", "Datacenter": "dc1",
		"Protocol": "http", "StartNode": "resolver:web", "Nodes": {"resolver:web": {"Type": "resolver", "Name": "web", "Resolver": {"ConnectTimeout": "5s", "Target": "web"}}},
		"Targets": {"web": {"ID": "web", "Service": "web", "Datacenter": "dc1", "Subset": {"OnlyPassing": true}, "ConnectTimeout": "5s", "Name": "web.internal"}}}}`})
	c.set("/v1/health/connect/web", reply{body: `[
		{"Node": {"Address": "10.0.0.2", "Datacenter": "dc1", "TaggedAddresses": {"wan": "192.0.2.2"}}, "Service": {"Port": 2, "Weights": {"Passing": 1, "Warning": 2}},
			"Checks": [{"Status": "passing"}, {"Status": "critical"}, {"Status": "warning"}]},
		{"Node": {"Address": "10.0.0.1", "Datacenter": "dc1"}, "Service": {"Address": "10.0.0.9", "Port": 1}, "Checks": [{"Status": "warning"}]},
		{"Node": {"Address": "10.0.0.1", "Datacenter": "dc1"}, "Service": {"Port": 1, "Connect": {"PeerMeta": {"SNI": ["sni"], "SpiffeID": ["id"], "Protocol": "tcp"}}}}
	]`})

	connections, second := uint32(3), gateway.Duration(time.Second)
	want := &gateway.Snapshot{
		ID: gateway.ID{Name: "gateway"}, Datacenter: "dc1",
		Entry: &gateway.Entry{
			Name: "gateway", TLS: gateway.TLS{Enabled: true},
			Defaults: &gateway.Limits{MaxConnections: &connections, PassiveHealthCheck: &gateway.PassiveHealthCheck{Interval: 10 * second}},
			Listeners: []gateway.Listener{{Port: 8080, Protocol: "http", Services: []gateway.ListenerService{{
				Name: "web", Hosts: []string{"a.example"}, RequestHeaders: &gateway.HeaderModifiers{Add: map[string]string{"x": "y"}},
			}}}},
		},
		Services: []gateway.Service{{Service: gateway.ServiceName{Name: "web"}, Port: 8080, Protocol: "http", Hosts: []string{"a.example"}}},
		Chains: map[gateway.ServiceName]*gateway.Chain{{Name: "web"}: {
			ServiceName: "web", Namespace: "default", Partition: "default", Datacenter: "dc1", Protocol: "http", StartNode: "resolver:web",
			Nodes: map[string]*gateway.ChainNode{"resolver:web": {Type: "resolver", Name: "web", Resolver: &gateway.Resolver{ConnectTimeout: 5 * second, Target: "web"}}},
			Targets: map[string]*gateway.Target{"web": {
				ID: "web", Service: "web", Datacenter: "dc1", Subset: gateway.Subset{OnlyPassing: true}, ConnectTimeout: 5 * second, Name: "web.internal",
			}},
		}},
		Endpoints: ordered.From(map[string]*gateway.Endpoints{"web": {Endpoints: []gateway.Endpoint{
			{NodeDatacenter: "dc1", NodeAddress: "10.0.0.1", Port: 1, Peer: &gateway.PeerMeta{SNI: []string{"sni"}, SpiffeID: []string{"id"}, Protocol: "tcp"}},
			{
				NodeDatacenter: "dc1", NodeAddress: "10.0.0.2", NodeWANAddress: "192.0.2.2", Port: 2,
				Status: gateway.Critical, Weights: gateway.Weights{Passing: 1, Warning: 2},
			},
			{NodeDatacenter: "dc1", NodeAddress: "10.0.0.1", Address: "10.0.0.9", Port: 1, Status: gateway.Warning},
		}}}),
		Mesh:          &gateway.Mesh{ValidateClusters: true, TLS: &gateway.MeshTLS{Outgoing: &gateway.TLSParameters{TLSMinVersion: "TLSv1_3"}}},
		Roots:         &gateway.Roots{TrustDomain: "td.consul", PEMs: []string{"one", "two"}},
		Leaf:          &gateway.Leaf{CertPEM: "cert", KeyPEM: "key", ValidAfter: time.Date(2020, 1, 1, 3, 4, 5, 0, time.UTC), ValidBefore: time.Date(2120, 1, 2, 3, 4, 5, 0, time.UTC)},
		ProxyDefaults: settingsWithMode(`proxy-defaults "global"`, settings.Permissive),
		Instances: []*gateway.Instance{
			{
				Node: "n1", ServiceID: "gateway", NodeAddress: "10.0.0.1", Address: "10.1.0.1", Port: 8443,
				TaggedAddresses: map[string]gateway.Address{"wan": {Address: "192.0.2.1", Port: 443}},
				Config:          gateway.ProxyConfig{NoDefaultBind: true},
				AccessLogs:      gateway.AccessLogs{Enabled: true, Type: "file", Path: "/log"},
				Registration:    settingsWithMode(`service "gateway" on node "n1"`, ""),
			},
			{Node: "n2", ServiceID: "gateway", NodeAddress: "10.0.0.2", Port: 8443, Registration: settingsWithMode(`service "gateway" on node "n2"`, settings.Strict)},
		},
	}
	got := start(t, c.watcher(t), "gateway").next(t, anyOne)
	if diff := cmp.Diff(want, got, snapshots); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// settingsWithMode returns a valid layer of settings that is at a place.
func settingsWithMode(where string, mode settings.Mode) settings.Layer {
	var raw any
	if mode != "" {
		raw = map[string]any{"proxy_protocol": map[string]any{"mode": string(mode)}}
	}
	l, _ := settings.Layer{}.Update(where, raw)
	return l
}

func TestWhatDidNotChangeKeepsItsPointer(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web", "api")
	w := start(t, c.watcher(t), "gateway")
	before := w.next(t, anyOne)

	c.set("/v1/health/connect/api", sidecar(9, "critical"))
	after := w.next(t, anyOne)
	api, web := gateway.ServiceName{Name: "api"}, gateway.ServiceName{Name: "web"}
	if after.Endpoints.Get("api") == before.Endpoints.Get("api") || after.Endpoints.Get("api").Endpoints[0].Status != gateway.Critical {
		t.Errorf("the endpoints of api are %+v", after.Endpoints.Get("api"))
	}
	for name, same := range map[string]bool{
		"entry": after.Entry == before.Entry, "roots": after.Roots == before.Roots, "leaf": after.Leaf == before.Leaf,
		"instance": after.Instances[0] == before.Instances[0],
		"chains":   after.Chains[api] == before.Chains[api] && after.Chains[web] == before.Chains[web],
		"web":      after.Endpoints.Get("web") == before.Endpoints.Get("web"),
	} {
		if !same {
			t.Errorf("%s has another pointer", name)
		}
	}

	// Another gateway's entry changes: everything is asked again, nothing is new.
	c.set("/v1/config/ingress-gateway", reply{body: strings.Replace(entryOf("web", "api").body, "[{", `[{"Name": "other"}, {`, 1)})
	c.waitHandled(t, "/v1/config/ingress-gateway")
	c.set("/v1/health/connect/web", sidecar(8, "passing"))
	if last := w.next(t, anyOne); last.Endpoints.Get("web").Endpoints[0].Port != 8 || last.Entry != before.Entry {
		t.Errorf("another gateway's entry made a snapshot: %+v", last)
	}
}

func TestAServiceIsHandedOnWhenItsPartsAgree(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	w := start(t, c.watcher(t), "gateway")
	wantServices(t, w.next(t, anyOne), "web")

	// The row is there before the entry, then the chain is missing, then the
	// health of its target.
	c.set("/v1/discovery-chain/api", reply{silent: true})
	c.set("/v1/health/connect/api", reply{silent: true})
	c.set(servicesPath, servicesAnswer("web", "api"))
	c.waitHandled(t, servicesPath)
	c.set("/v1/config/ingress-gateway", entryOf("web", "api"))
	c.waitHandled(t, "/v1/config/ingress-gateway")
	c.set("/v1/discovery-chain/api", chainTo("api"))
	c.waitHandled(t, "/v1/discovery-chain/api")
	c.set("/v1/health/connect/api", sidecar(1, "passing"))
	s := w.next(t, anyOne)
	wantServices(t, s, "api", "web")
	if len(s.Chains) != 2 || len(s.Endpoints.Get("api").Endpoints) != 1 {
		t.Errorf("handed on half: chains %v, endpoints %v", s.Chains, s.Endpoints)
	}

	// Away again, the entry first.
	c.set("/v1/config/ingress-gateway", entryOf("web"))
	c.waitHandled(t, "/v1/config/ingress-gateway")
	c.set(servicesPath, servicesAnswer("web"))
	s = w.next(t, anyOne)
	wantServices(t, s, "web")
	if len(s.Chains) != 1 || s.Endpoints.Len() != 1 || len(s.Entry.Listeners[0].Services) != 1 {
		t.Errorf("something is left of it: chains %v, endpoints %v, entry %+v", s.Chains, s.Endpoints, s.Entry)
	}
}

func TestADeletedEntryIsAGatewayWithoutListeners(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	w := start(t, c.watcher(t), "gateway")
	w.next(t, anyOne)
	c.set("/v1/config/ingress-gateway", reply{body: "[]"})
	c.set(servicesPath, reply{body: "[]"})
	s := w.next(t, func(s *gateway.Snapshot) bool { return s.Entry == nil })
	if len(s.Services)+len(s.Chains)+s.Endpoints.Len() != 0 || s.Leaf != nil {
		t.Errorf("something is left: %+v", s)
	}
}

// A newer Consul has more fields, and writes those that no user has set as zero values.
func TestAFieldOfANewerConsulIsANotice(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	c.set("/v1/config/ingress-gateway", reply{body: `[
		{"Kind": "ingress-gateway", "Name": "other", "Newer": true},
		{"Kind": "ingress-gateway", "Name": "gateway", "Meta": {"a": "b"}, "Newer": null, "TLS": {"Enabled": false, "CipherSuites": null, "ECDHCurves": []},
		 "Defaults": {"MaxConnections": 3, "PassiveHealthCheck": {"Interval": 1, "Newest": {"On": false}}},
		 "Listeners": [{"Port": 8080, "Protocol": "http", "Normalize": {"Path": true}, "Services": [
			{"Name": "web", "Retries": 3, "RequestHeaders": {"Add": {"x-newer": "1"}}}]}],
		 "CreateIndex": 1, "ModifyIndex": 2}
	]`})
	c.set("/v1/config/mesh", reply{body: `[{"Kind": "mesh", "HTTP": {"Newer": 1}, "TLS": {"Outgoing": {"Newer": "x"}, "Incoming": {"Newer": 1}}}]`})
	c.set("/v1/config/proxy-defaults", reply{body: `[{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}, "Newer": 1}]`})
	newer := chainTo("web", "web")
	newer.body = strings.Replace(newer.body, `"Nodes"`, `"ServiceMeta": {"a": "b"}, "Newer": [1], "Nodes"`, 1)
	c.set("/v1/discovery-chain/web", newer)
	s := start(t, c.watcher(t), "gateway").next(t, func(s *gateway.Snapshot) bool { return len(s.Problems) == 4 })
	const notice = ": this Usher does not know %s, so it has no effect; see if a newer Usher does"
	for where, fields := range map[string]string{
		"config entry ingress-gateway/gateway": "Listeners.Normalize, Listeners.Services.Retries",
		"config entry mesh/mesh":               "TLS.Outgoing.Newer",
		"config entry proxy-defaults/global":   "Newer",
		"discovery chain of web":               "Chain.Newer",
	} {
		want := where + fmt.Sprintf(notice, fields)
		if !slices.ContainsFunc(s.Problems, func(p problem.Problem) bool { return p.String() == want && p.Severity == problem.Notice }) {
			t.Errorf("there is no notice %q in %v", want, s.Problems)
		}
	}
}

func TestANewFieldInEachChainIsOneNotice(t *testing.T) {
	for names, want := range map[string]string{
		"web api":                 "discovery chains of api and web: this Usher does not know Chain.Newer, ",
		"web api db":              "discovery chains of api, db and web: this Usher does not know Chain.Newer, ",
		"web api db shop users":   "discovery chains of api, db and 3 others: this Usher does not know Chain.Newer, ",
		"web=Newest api db=Newer": "discovery chains of api, db and web: this Usher does not know Chain.Newer, Chain.Newest, ",
	} {
		var services []string
		field := map[string]string{}
		for name := range strings.FieldsSeq(names) {
			service, newer, isNamed := strings.Cut(name, "=")
			if !isNamed {
				newer = "Newer"
			}
			services, field[service] = append(services, service), newer
		}
		c := newFakeGatewayWithInstances(t, services...)
		for service, name := range field {
			newer := chainTo(service)
			newer.body = strings.Replace(newer.body, `"Nodes"`, fmt.Sprintf(`%q: 1, "Nodes"`, name), 1)
			c.set("/v1/discovery-chain/"+service, newer)
		}
		s := start(t, c.watcher(t), "gateway").next(t, func(s *gateway.Snapshot) bool { return len(s.Problems) > 0 })
		if len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0].String(), want) || s.Problems[0].Severity != problem.Notice {
			t.Errorf("%s: the problems are %v, want one notice %q", names, s.Problems, want)
		}
	}
}

func TestATargetThatIsRefusedHoldsNothingUp(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	c.set("/v1/discovery-chain/web", chainTo("web", "web", "secret"))
	c.set("/v1/health/connect/secret", reply{status: http.StatusForbidden, body: "Permission denied"})
	w := start(t, c.watcherWithShortTimeouts(t), "gateway")
	s := w.next(t, func(s *gateway.Snapshot) bool { return len(s.Problems) > 0 })
	if s.Endpoints.Get("web") == nil || s.Endpoints.Get("secret") != nil {
		t.Errorf("endpoints %v, want those of web alone", s.Endpoints)
	}
	if p := s.Problems[0].String(); p != `instances of "secret": consul answered 403: Permission denied; give Usher's token service:read on the service and node:read` {
		t.Errorf("problem %q", p)
	}
	c.set("/v1/health/connect/secret", sidecar(1, "passing"))
	s = w.next(t, func(s *gateway.Snapshot) bool { return s.Endpoints.Get("secret") != nil })
	if len(s.Problems) > 0 {
		t.Errorf("the problem stays: %v", s.Problems)
	}
}

// TestATargetThatFailsAsAllOthersIsWaitedForLonger has queries of a new target that fail for some seconds. Those of the
// others may be answered again already.
func TestATargetThatFailsAsAllOthersIsWaitedForLonger(t *testing.T) {
	for what, test := range map[string]struct {
		err   error
		waits bool
	}{
		"no answer yet":          {nil, false},
		"permission denied":      {errorOf(http.StatusForbidden, "Permission denied"), false},
		"a failure":              {errorOf(http.StatusInternalServerError, "No path to datacenter"), false},
		"an unknown token":       {errorOf(http.StatusForbidden, "ACL not found"), true},
		"an agent in a rush":     {errorOf(http.StatusTooManyRequests, "slower"), true},
		"no agent, or no leader": {&callError{outcome: outcomeUnreachable, err: errNoLeader}, true},
	} {
		b := &snapshotBuild{snapshot: &gateway.Snapshot{}, prev: state{since: map[string]time.Time{}}, next: state{since: map[string]time.Time{}}}
		b.options, b.now = WatcherOptions{HealthTimeout: 2 * time.Second, AnswerTimeout: 10 * time.Second}, time.Now()
		b.waitOrGoOn(webHealth, queryResult{err: test.err}, "instances of", "web")
		if !b.waits {
			t.Errorf("%s: the snapshot does not wait", what)
		}
		for after, waits := range map[time.Duration]bool{3 * time.Second: test.waits, 11 * time.Second: false} {
			later := &snapshotBuild{snapshot: &gateway.Snapshot{}, prev: b.next, next: state{since: map[string]time.Time{}}}
			later.options, later.now = b.options, b.now.Add(after)
			if later.waitOrGoOn(webHealth, queryResult{err: test.err}, "instances of", "web"); later.waits != waits {
				t.Errorf("%s: after %v the snapshot waits: %v, want %v", what, after, later.waits, waits)
			}
		}
	}
}

// errorOf is the error of a query that is answered with a status.
func errorOf(status int, text string) error {
	return statusError(&http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(text))}, "")
}

func TestATargetThatStaysSilentHoldsUpForAWhileOnly(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	c.set("/v1/discovery-chain/web", chainTo("web", "web", "silent"))
	c.set("/v1/health/connect/silent", reply{silent: true})
	w := NewWatcher(c.client(t, &logRecorder{}), WatcherOptions{HealthTimeout: 50 * time.Millisecond})
	begin := time.Now()
	s := start(t, w, "gateway").next(t, anyOne)
	if s.Endpoints.Get("web") == nil || s.Endpoints.Get("silent") != nil {
		t.Errorf("endpoints %v, want those of web alone", s.Endpoints)
	}
	if took := time.Since(begin); took < 50*time.Millisecond {
		t.Errorf("handed on after %v; the target could still have answered", took)
	}
}

func TestAChainThatFailsKeepsTheLastValidOne(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	w := start(t, c.watcherWithShortTimeouts(t), "gateway")
	before := w.next(t, anyOne)
	c.set("/v1/discovery-chain/web", reply{status: http.StatusInternalServerError, body: "circular reference"})
	s := w.next(t, func(s *gateway.Snapshot) bool { return len(s.Problems) > 0 })
	if web := (gateway.ServiceName{Name: "web"}); s.Chains[web] != before.Chains[web] || len(s.Services) != 1 {
		t.Errorf("services %v, chains %v; want those of before", s.Services, s.Chains)
	}
	if p := s.Problems[0].String(); p != `discovery chain of "web": consul answered 500: circular reference` {
		t.Errorf("problem %q", p)
	}
}

// A snapshot waits for an unreadable chain for some time, however many attempts fail.
// After that its service has no chain, and the other services go on.
func TestAChainThatNeverWasGoodIsNotThere(t *testing.T) {
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newFakeGatewayWithInstances(t, "web", "api")
			c.set("/v1/discovery-chain/api", fault)
			const patience = 1500 * time.Millisecond // more than three attempts
			begin := time.Now()
			w := start(t, NewWatcher(c.client(t, slog.DiscardHandler), WatcherOptions{HealthTimeout: time.Millisecond, AnswerTimeout: patience}), "gateway")
			s := w.next(t, anyOne)
			if took := time.Since(begin); took < patience {
				t.Errorf("handed on after %v; Consul could still have answered", took)
			}
			wantServices(t, s, "api", "web")
			if s.Chains[gateway.ServiceName{Name: "api"}] != nil || s.Chains[gateway.ServiceName{Name: "web"}] == nil {
				t.Errorf("chains %v, want that of web alone", s.Chains)
			}
			if len(s.Problems) != 1 || s.Problems[0].Where != `discovery chain of "api"` || !strings.Contains(s.Problems[0].What, "held back") {
				t.Errorf("problems %v, want one that says what is held back", s.Problems)
			}
			c.set("/v1/discovery-chain/api", chainTo("api"))
			s = w.next(t, func(s *gateway.Snapshot) bool { return len(s.Chains) == 2 })
			if len(s.Problems) > 0 {
				t.Errorf("the problem stays: %v", s.Problems)
			}
		})
	}
}

// faults are answers that say nothing about the query.
var faults = map[string]reply{
	"500":       {status: http.StatusInternalServerError, body: "circular reference"},
	"403":       {status: http.StatusForbidden, body: "Permission denied"},
	"404":       {status: http.StatusNotFound, body: "404 page not found"},
	"garbage":   {body: "<html></html>"},
	"truncated": {body: `{"Chain": {"Data`},
	"null":      {body: "null"},
	"[null]":    {body: "[null]"},
	"silence":   {silent: true},
}

func TestALeaderlessServerTakesNothingAway(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	w := start(t, c.watcher(t), "gateway")
	w.next(t, anyOne)
	for _, path := range []string{servicesPath, "/v1/config/ingress-gateway", "/v1/health/service/gateway", "/v1/health/connect/web"} {
		c.set(path, reply{body: "[]", leaderless: true})
	}
	c.waitHandled(t, servicesPath, "/v1/config/ingress-gateway", "/v1/health/service/gateway", "/v1/health/connect/web")
	c.set("/v1/connect/ca/roots", roots("next"))
	s := w.next(t, anyOne)
	if s.Roots.TrustDomain != "next.consul" || s.Entry == nil || len(s.Services) != 1 || len(s.Instances) != 1 || len(s.Endpoints.Get("web").Endpoints) != 1 {
		t.Errorf("snapshot %+v, want all of before and new roots", s)
	}
}

// A caller can make up the name of a gateway. Usher reads nothing else about a gateway
// that is not registered, and its snapshot has no instances.
func TestOfAGatewayThatIsNotRegisteredOnlyThatIsAsked(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	c.set("/v1/health/service/gateway", reply{body: "[]"})
	w := start(t, c.watcher(t), "gateway")
	if s := w.next(t, anyOne); len(s.Instances) != 0 || len(s.Services) != 0 {
		t.Errorf("snapshot %+v, want one without instances and services", s)
	}
	for _, path := range []string{servicesPath, "/v1/agent/connect/ca/leaf/gateway", "/v1/discovery-chain/web"} {
		if c.wasAsked(path) {
			t.Errorf("%s was asked", path)
		}
	}
	c.set("/v1/health/service/gateway", instanceOf("gateway"))
	s := w.next(t, func(s *gateway.Snapshot) bool { return len(s.Instances) > 0 })
	if s.Datacenter != "dc1" || len(s.Services) != 1 {
		t.Errorf("datacenter %q, services %v", s.Datacenter, s.Services)
	}
}

func TestInstancesThatGoAwayLeaveTheDatacenter(t *testing.T) {
	c := newFakeGatewayWithInstances(t)
	w := start(t, c.watcher(t), "gateway")
	w.next(t, anyOne)
	c.set("/v1/health/service/gateway", reply{body: "[]"})
	if s := w.next(t, anyOne); s.Datacenter != "dc1" || len(s.Instances) != 0 {
		t.Errorf("datacenter %q, instances %v", s.Datacenter, s.Instances)
	}
}

func TestBadProxyDefaultsCountWithTheirLastValidContent(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	mode := func(mode string) reply {
		return reply{body: fmt.Sprintf(`[{"Name": "global", "Config": {"usher": {"proxy_protocol": {"mode": %q}}}}]`, mode)}
	}
	c.set("/v1/config/proxy-defaults", mode("strict"))
	w := c.watcher(t)
	run(t, w.Run)
	first := start(t, w, "gateway")
	first.next(t, func(s *gateway.Snapshot) bool {
		return reflect.DeepEqual(s.ProxyDefaults, settingsWithMode(`proxy-defaults "global"`, settings.Strict))
	})

	c.set("/v1/config/proxy-defaults", mode("stict"))
	s := first.next(t, func(s *gateway.Snapshot) bool { return len(s.Problems) > 0 })
	if !reflect.DeepEqual(s.ProxyDefaults, settingsWithMode(`proxy-defaults "global"`, settings.Strict)) || !strings.HasPrefix(s.Problems[0].String(), `proxy-defaults "global": usher.proxy_protocol.mode: "stict"`) {
		t.Errorf("settings %+v, problems %v", s.ProxyDefaults, s.Problems)
	}

	// The last Envoy goes away and comes back.
	first.stop()
	if s := start(t, w, "gateway").next(t, anyOne); !reflect.DeepEqual(s.ProxyDefaults, settingsWithMode(`proxy-defaults "global"`, settings.Strict)) {
		t.Errorf("settings %+v, want the last valid ones", s.ProxyDefaults)
	}
}

func TestMeshGatewaysOnTheWayToAnotherDatacenter(t *testing.T) {
	const list = `?filter=ServiceKind == "mesh-gateway"`
	c := newFakeGatewayWithInstances(t, "web")
	target := func(id, dc, mode string) string {
		return fmt.Sprintf(`%q: {"ID": %q, "Service": "web", "Datacenter": %q, "MeshGateway": {"Mode": %q}}`, id, id, dc, mode)
	}
	c.set("/v1/discovery-chain/web", reply{body: `{"Chain": {"Datacenter": "dc1", "StartNode": "s", "Nodes": {"s": {}}, "Targets": {` +
		strings.Join([]string{
			target("here", "dc1", "local"), target("remote", "dc2", "remote"), target("local", "dc3", "local"), target("direct", "dc4", ""),
		}, ", ") + `}}}`})
	for _, dc := range []string{"dc2", "dc3", "dc4"} {
		c.set("/v1/health/connect/web?dc="+dc, reply{body: "[]"})
	}
	c.set("/v1/catalog/services"+list, reply{body: `{"mesh-gateway": []}`})
	c.set("/v1/catalog/services?dc=dc2&"+list[1:], reply{body: `{"east": [], "west": []}`})
	c.set("/v1/health/service/mesh-gateway", sidecar(1, "passing"))
	c.set("/v1/health/service/east?dc=dc2", sidecar(3, "passing"))
	c.set("/v1/health/service/west?dc=dc2", sidecar(2, "warning"))
	w := start(t, c.watcher(t), "gateway")
	before := w.next(t, anyOne)
	ports := map[string][]int{}
	for dc, e := range before.MeshGateways {
		for _, e := range e.Endpoints {
			ports[dc] = append(ports[dc], e.Port)
		}
	}
	wantEqual(t, map[string][]int{"dc1": {1}, "dc2": {2, 3}}, ports)

	c.set("/v1/health/service/mesh-gateway", sidecar(7, "passing"))
	after := w.next(t, anyOne)
	if after.MeshGateways["dc1"].Endpoints[0].Port != 7 || after.MeshGateways["dc2"] != before.MeshGateways["dc2"] {
		t.Errorf("mesh gateways %v after %v", after.MeshGateways, before.MeshGateways)
	}
}

func TestAGatewayNeedsAName(t *testing.T) {
	if err := newFakeConsul(t).watcher(t).Watch(t.Context(), gateway.ID{}, nil); err == nil {
		t.Error("no error")
	}
}

func TestNamesAreThoseOfTheEntries(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	names := make(chan []string, 10)
	run(t, func(ctx context.Context) error { return c.watcher(t).WatchNames(ctx, func(n []string) { names <- n }) })
	want := func(when string, want ...string) {
		t.Helper()
		if got := <-names; !cmp.Equal(got, want) {
			t.Errorf("%s: got %#v, want %#v", when, got, want)
		}
	}
	want("at first", "gateway")
	c.set("/v1/config/ingress-gateway", reply{body: `[{"Name": "z"}, {"Name": "a"}]`})
	want("two", "a", "z")
	c.set("/v1/config/ingress-gateway", reply{body: "[]"})
	want("none", []string{}...)
	c.set("/v1/config/ingress-gateway", reply{body: `[{"Name": "a"}]`, hidden: true})
	want("some are hidden")
}
