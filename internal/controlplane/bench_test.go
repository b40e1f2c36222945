package controlplane

import (
	"fmt"
	"log/slog"
	"maps"
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
			w, latest := benchWorker()
			publish(w, manyServices(n))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s, before := *w.snapshot, latest()
				s.Endpoints = s.Endpoints.With("web-0003", &gateway.Endpoints{Endpoints: []gateway.Endpoint{{NodeDatacenter: "dc1", Address: "10.0.0.2", Port: 10000 + i%50000}}})
				publish(w, &s)
				if latest() == before {
					b.Fatal("the change was not published")
				}
			}
		})
	}
}

// benchWorker returns a worker with one Envoy, and a function that returns the Envoy's
// latest set.
func benchWorker() (w *gatewayWorker, latest func() *xds.Set) {
	log, metrics := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	w = newGatewayWorker(New(Options{Logger: log, Metrics: NewMetrics(metrics), Problems: NewProblems(log, metrics)}), gateway.ID{Name: "edge"})
	var last *xds.Set
	w.streams = []*stream{{node: edge, put: func(s *xds.Set) { last = s }}}
	return w, func() *xds.Set { return last }
}

// publish gives the worker a snapshot and publishes its set.
func publish(w *gatewayWorker, s *gateway.Snapshot) {
	w.snapshot = s
	w.encoder.startGeneration(w.fullSnapshot(), w.inputs.reports)
	w.publish()
}

// BenchmarkFromScratch compiles, encodes and hashes a whole gateway for the
// first time.
func BenchmarkFromScratch(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			s := manyServices(n)
			b.ReportAllocs()
			for b.Loop() {
				w, latest := benchWorker()
				publish(w, s)
				if latest() == nil {
					b.Fatal("nothing was published")
				}
			}
		})
	}
}

// BenchmarkConfigurationChanges renews a gateway's set after the routes of one
// service, and the gateway's own config entry.
func BenchmarkConfigurationChanges(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("route/services=%d", n), func(b *testing.B) {
			benchmarkChange(b, manyServices(n), func(s *gateway.Snapshot, i int) {
				id := s.Services[7].Service
				s.Chains = maps.Clone(s.Chains)
				chain := *s.Chains[id]
				chain.StartNode = "router"
				chain.Nodes = maps.Clone(chain.Nodes)
				chain.Nodes["router"] = &gateway.ChainNode{Type: gateway.NodeRouter, Name: id.Name, Routes: []*gateway.ChainRoute{{
					Definition: &gateway.RouteDefinition{Match: &gateway.RouteMatch{HTTP: &gateway.HTTPMatch{PathPrefix: fmt.Sprintf("/%d", i)}}},
					NextNode:   "r",
				}}}
				s.Chains[id] = &chain
			})
		})
		b.Run(fmt.Sprintf("entry/services=%d", n), func(b *testing.B) {
			benchmarkChange(b, manyServices(n), func(s *gateway.Snapshot, i int) {
				entry := *s.Entry
				s.Entry = &entry
				s.Services = append([]gateway.Service{}, s.Services...)
				s.Services[7].Hosts = []string{fmt.Sprintf("host-%d.example.com", i)}
			})
		})
	}
}

func benchmarkChange(b *testing.B, s *gateway.Snapshot, change func(next *gateway.Snapshot, i int)) {
	b.Helper()
	w, latest := benchWorker()
	publish(w, s)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		next, before := *w.snapshot, latest()
		change(&next, i)
		publish(w, &next)
		if latest() == before {
			b.Fatal("the change was not published")
		}
	}
}
