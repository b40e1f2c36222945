package consul

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// goodAnswers has an answer of Consul for every query type, with each list and map that a
// decoder reads.
var goodAnswers = map[*queryType]string{
	agentType: `{"Config": {"BindAddr": "10.0.0.1"}, "DebugConfig": {"DNSDomain": "consul."}, "xDS": {"Ports": {"Plaintext": 8502}}}`,
	rootsType: `{"ActiveRootID": "a", "TrustDomain": "td.consul", "Roots": [{"RootCert": "pem"}]}`,
	leafType:  `{"CertPEM": "certificate", "PrivateKeyPEM": "key", "ValidBefore": "2030-01-02T03:04:05Z"}`,
	entriesType: `[{"Name": "gateway", "TLS": {"CipherSuites": ["c"]}, "Listeners": [{"Port": 8080, "Protocol": "http",
		"Services": [{"Name": "web", "Hosts": ["h"], "RequestHeaders": {"Add": {"x": "y"}, "Remove": ["z"]}}]}]}]`,
	meshType:          `[{"Kind": "mesh", "TLS": {"Outgoing": {"CipherSuites": ["c"]}}}]`,
	proxyDefaultsType: `[{"Name": "global", "Config": {"usher": {"proxy_protocol": {"mode": "strict", "trusted_cidrs": ["10.0.0.0/8"]}}}}]`,
	servicesType:      `[{"Service": {"Name": "web"}, "Port": 8080, "Protocol": "http", "Hosts": ["h"]}]`,
	instancesType: `[{"Node": {"Node": "n1", "Datacenter": "dc1", "TaggedAddresses": {"wan": "192.0.2.1"}}, "Service": {"Kind": "ingress-gateway", "ID": "gateway",
		"TaggedAddresses": {"wan": {"Address": "192.0.2.1", "Port": 1}}, "Proxy": {"Config": {"usher": {}}}}, "Checks": [{"Status": "passing"}]}]`,
	healthType: `[{"Node": {"Node": "n1", "Address": "10.0.0.1"}, "Service": {"Port": 1, "TaggedAddresses": {"wan": {"Address": "192.0.2.1"}},
		"Connect": {"PeerMeta": {"SNI": ["sni"], "SpiffeID": ["id"]}}}, "Checks": [{"Status": "warning"}]}]`,
	meshGatewayType:      `[{"Node": {"Node": "n1", "Address": "10.0.0.1"}, "Service": {"Port": 1}, "Checks": []}]`,
	meshGatewayNamesType: `{"mesh-gateway": ["tag"]}`,
	peeringType:          `{"Name": "east", "PeerServerName": "server.dc2.peering.td", "PeerCAPems": ["pem"]}`,
	podType:              `[{"ServiceID": "edge-1", "ServiceMeta": {"k8s-namespace": "consul", "pod-uid": "uid-1"}}]`,
	proxyType:            `{"Node": {"Node": "n1"}, "Services": [{"ID": "edge-1", "Service": "edge", "Kind": "ingress-gateway"}]}`,
	chainType: `{"Chain": {"Datacenter": "dc1", "StartNode": "router", "Nodes": {
		"router": {"Type": "router", "Routes": [{"Definition": {"Match": {"HTTP": {"Header": [{"Name": "h"}], "Methods": ["GET"]}}}, "NextNode": "splitter"}]},
		"splitter": {"Type": "splitter", "Splits": [{"Weight": 100, "NextNode": "resolver"}]},
		"resolver": {"Type": "resolver", "Resolver": {"Target": "web", "Failover": {"Targets": ["other"]}}}},
		"Targets": {"web": {"ID": "web", "Service": "web", "Datacenter": "dc1"}, "other": {"ID": "other", "Service": "web", "Datacenter": "dc1"}}}}`,
}

// emptyAnswers maps answers to the only query types for which Consul sends them.
var emptyAnswers = map[string][]*queryType{
	"":                         nil,
	"null":                     nil,
	"[null]":                   nil,
	"[[]]":                     nil,
	"[1]":                      nil,
	"[{}]":                     {meshType}, // an entry without anything set
	`{"a": `:                   nil,
	`"text"`:                   nil,
	"17":                       nil,
	"<html></html>":            nil,
	"[]":                       {entriesType, meshType, proxyDefaultsType, servicesType, instancesType, healthType, meshGatewayType, podType},
	"{}":                       {meshGatewayNamesType},
	`{"Chain": null}`:          {meshGatewayNamesType},
	`{"Roots": [null]}`:        {meshGatewayNamesType},
	`{"PeerCAPems": [null]}`:   {meshGatewayNamesType},
	`{"Config": null}`:         {meshGatewayNamesType},
	`[{"Node": null}]`:         {meshType},
	`[{"Name": null}]`:         {meshType},
	`[{"Service": null}]`:      {meshType},
	`[{"Listeners": [null]}]`:  {meshType},
	strings.Repeat("[", 20000): nil,
}

// An answer that Consul never sends is an error and not a panic, before and after a
// good answer.
func TestNoAnswerIsTakenForConsuls(t *testing.T) {
	for k, good := range goodAnswers {
		prev, err := k.decode(nil, response{body: []byte(good)})
		if err != nil {
			t.Fatalf("%s: %v", k.name, err)
		}
		for body, answers := range emptyAnswers {
			taken := false
			for _, a := range answers {
				taken = taken || a == k
			}
			for _, before := range []any{nil, prev} {
				if _, err := k.decode(before, response{body: []byte(body)}); (err == nil) != taken {
					t.Errorf("%s: %.30q: %v; want an error: %v", k.name, body, err, !taken)
				}
			}
		}
	}
}

// A damaged answer is an error or a value. Either may be the result, but neither
// makes the code that uses it panic.
func TestDamagedAnswersAreNoPanic(t *testing.T) {
	for k, good := range goodAnswers {
		prev, err := k.decode(nil, response{body: []byte(good)})
		if err != nil {
			t.Fatalf("%s: %v", k.name, err)
		}
		for i := range len(good) {
			_, _ = k.decode(prev, response{body: []byte(good[:i])})
		}
		s := newManualWatch(t, 2)
		var tree any
		if err := json.Unmarshal([]byte(good), &tree); err != nil {
			t.Fatal(err)
		}
		for _, damage := range []any{nil, []any{}, map[string]any{}, "text", 17.0, []any{nil}, map[string]any{"x": nil}} {
			for damaged := range damagedCopies(tree, damage) {
				body, err := json.Marshal(damaged)
				if err != nil {
					t.Fatal(err)
				}
				value, err := k.decode(prev, response{body: body})
				if err != nil {
					continue
				}
				s.updateType(k, value)
				s.step(time.Now())
				for _, last := range s.snapshots {
					for _, p := range last.Problems {
						if strings.Contains(p.What, "bug in Usher") {
							t.Fatalf("%s: %s: %s", k.name, body, p)
						}
					}
				}
			}
		}
	}
}

// updateType gives all queries of a type the same answer.
func (s *manualWatch) updateType(k *queryType, value any) {
	for q := range s.subscription.watches {
		if q.queryType == k {
			s.update(q, queryResult{value: value})
		}
	}
}

// damagedCopies yields copies of the tree, each with one place replaced.
func damagedCopies(tree, by any) iter.Seq[any] {
	return func(yield func(any) bool) {
		if !yield(by) {
			return
		}
		switch v := tree.(type) {
		case map[string]any:
			for key, inner := range v {
				for d := range damagedCopies(inner, by) {
					v[key] = d
					if !yield(v) {
						return
					}
				}
				v[key] = inner
			}
		case []any:
			for i, inner := range v {
				for d := range damagedCopies(inner, by) {
					v[i] = d
					if !yield(v) {
						return
					}
				}
				v[i] = inner
			}
		}
	}
}

// A panic of a decoder is a failed attempt. The last valid value stays, and the next
// answer is used.
func TestAPanicInADecoderIsAFailedAttempt(t *testing.T) {
	c := newFakeConsul(t)
	c.set("/v1/odd/", reply{body: "good"})
	odd := &queryType{name: "odd", path: "/v1/odd/", decode: func(_ any, r response) (any, error) {
		if string(r.body) == "bad" {
			panic("odd")
		}
		return string(r.body), nil
	}}
	w := c.watcher(t)
	l := w.manager.subscribe()
	defer l.close()
	q := query{queryType: odd}
	subscribeAlso(l, q)
	until(t, func() bool { return resultOf(l, q).value == "good" })
	c.set("/v1/odd/", reply{body: "bad"})
	until(t, func() bool { return resultOf(l, q).err != nil })
	if f := resultOf(l, q); f.value != "good" || !strings.Contains(f.err.Error(), "panic in consul answer at decode_test.go:") {
		t.Errorf("value %v, error %v; want the last valid value and where the panic was", f.value, f.err)
	}
	c.set("/v1/odd/", reply{body: "better"})
	until(t, func() bool { f := resultOf(l, q); return f.err == nil && f.value == "better" })
}

// After a panic while a snapshot is made, the last one stays, with a problem. The
// problem ends with the next good snapshot.
func TestAPanicInABuildKeepsTheLastSnapshot(t *testing.T) {
	s := newManualWatch(t, 2)
	before := s.state.last
	broken := chain(service(1).Name)
	broken.Targets["none"] = nil
	for range 2 {
		s.update(serviceQuery(chainType, service(1)), queryResult{value: broken})
		s.step(time.Now())
	}
	if n := len(s.snapshots); n != 2 {
		t.Fatalf("%d snapshots, want the first and one with the problem", n)
	}
	last := s.snapshots[1]
	if len(last.Problems) != 1 || !strings.Contains(last.Problems[0].What, "bug in Usher: panic in consul snapshot at ") {
		t.Errorf("problems %v", last.Problems)
	}
	if last.Entry != before.Entry || len(last.Chains) != len(before.Chains) || last.Endpoints != before.Endpoints {
		t.Error("it is not the last valid snapshot")
	}
	s.update(serviceQuery(chainType, service(1)), queryResult{value: chain(service(1).Name)})
	s.step(time.Now())
	if last := s.snapshots[len(s.snapshots)-1]; len(last.Problems) > 0 {
		t.Errorf("the problem stays: %v", last.Problems)
	}
}

// healthAnswer is the answer of Consul 1.22.0 for a service with n instances.
func healthAnswer(n int) response {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, `,{"Node":{"ID":"","Node":"node-%[1]d","Address":"10.0.0.%[1]d","Datacenter":"dc1","TaggedAddresses":null,"Meta":null,"CreateIndex":20,"ModifyIndex":20},
"Service":{"Kind":"connect-proxy","ID":"web-%[1]d-sidecar-proxy","Service":"web-sidecar-proxy","Tags":[],"Address":"10.1.0.%[1]d",
"TaggedAddresses":{"lan_ipv4":{"Address":"10.1.0.%[1]d","Port":21000},"wan_ipv4":{"Address":"10.1.0.%[1]d","Port":21000}},"Meta":null,"Port":21000,
"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Proxy":{"DestinationServiceName":"web","DestinationServiceID":"web-%[1]d","LocalServiceAddress":"127.0.0.1",
"LocalServicePort":8080,"Mode":"","MeshGateway":{},"Expose":{}},"Connect":{},"PeerName":"","CreateIndex":20,"ModifyIndex":20},
"Checks":[{"Node":"node-%[1]d","CheckID":"service:web-%[1]d-sidecar-proxy:1","Name":"Connect Sidecar Listening","Status":"passing","Notes":"",
"Output":"TCP connect 10.1.0.%[1]d:21000: Success","ServiceID":"web-%[1]d-sidecar-proxy","ServiceName":"web-sidecar-proxy","ServiceTags":[],"Type":"tcp","Interval":"10s",
"Timeout":"","ExposedPort":0,"Definition":{},"PeerName":"","CreateIndex":20,"ModifyIndex":20}]}`, i+1)
	}
	return response{body: append(append([]byte("["), bytes.TrimPrefix(b.Bytes(), []byte(","))...), ']'), index: 20}
}

// BenchmarkDecode measures an answer about a service with new content, and one with
// the same content as before.
func BenchmarkDecode(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		a := healthAnswer(n)
		b.Run(fmt.Sprintf("new/instances=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				e, err := healthType.decode(nil, a)
				if err != nil || len(e.(*gateway.Endpoints).Endpoints) != n {
					b.Fatal(err, e)
				}
			}
		})
		b.Run(fmt.Sprintf("same/instances=%d", n), func(b *testing.B) {
			l := &watchLoop{decode: healthType.decode, report: func(queryResult, bool) {}, filtered: &filteredQueries{}, pace: newPace()}
			l.handle(a, nil)
			b.ReportAllocs()
			for b.Loop() {
				l.handle(a, nil)
			}
		})
	}
}
