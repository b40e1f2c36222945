package controlplane

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/xds"
)

// manyServices is a gateway with n HTTP services of one instance each.
func manyServices(n int) *gateway.Snapshot {
	s := snapshot(&gateway.Instance{Node: "a", ServiceID: "edge"})
	web := s.Services[0].Service
	chain := s.Chains[web]
	s.Services, s.Entry.Listeners[0].Services = nil, nil
	for i := range n {
		name := fmt.Sprintf("web-%04d", i)
		target := *chain.Targets["t"]
		target.ID, target.Service, target.Name = name, name, name+".default.dc1.internal.x"
		c := *chain
		c.ServiceName = name
		c.Nodes = map[string]*gateway.ChainNode{"r": {Type: gateway.NodeResolver, Name: name, Resolver: &gateway.Resolver{Target: name}}}
		c.Targets = map[string]*gateway.Target{name: &target}
		id := gateway.ServiceName{Name: name}
		s.Services = append(s.Services, gateway.Service{Service: id, Port: 8080, Protocol: "http"})
		s.Entry.Listeners[0].Services = append(s.Entry.Listeners[0].Services, gateway.ListenerService{Name: name})
		s.Chains[id] = &c
		s.Endpoints = s.Endpoints.With(name, &gateway.Endpoints{Endpoints: []gateway.Endpoint{{NodeDatacenter: "dc1", Address: "10.0.0.1", Port: 20000 + i}}})
	}
	return s
}

// BenchmarkOneEndpointChanges compiles, encodes and compares a whole gateway
// after the instances of one of its services changed.
func BenchmarkOneEndpointChanges(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 5000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			reg := prometheus.NewRegistry()
			w := newGatewayWorker(New(Options{Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(reg), Problems: NewProblems(slog.New(slog.DiscardHandler), reg)}), gateway.ID{Name: "edge"})
			var last *xds.Set
			w.streams = []*stream{{node: edge, put: func(s *xds.Set) { last = s }}}
			w.snapshot = manyServices(n)
			w.rebuild()
			w.publish()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s := *w.snapshot
				s.Endpoints = s.Endpoints.With("web-0003", &gateway.Endpoints{Endpoints: []gateway.Endpoint{{NodeDatacenter: "dc1", Address: "10.0.0.2", Port: 10000 + i%50000}}})
				before := last
				w.snapshot = &s
				w.rebuild()
				w.publish()
				if last == before {
					b.Fatal("the change was not published")
				}
			}
		})
	}
}
