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

// benchWorker gives a worker with one Envoy, and where its newest set is.
func benchWorker() (w *gatewayWorker, newest func() *xds.Set) {
	log, metrics := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	w = newGatewayWorker(New(Options{Logger: log, Metrics: NewMetrics(metrics), Problems: NewProblems(log, metrics)}), gateway.ID{Name: "edge"})
	var last *xds.Set
	w.streams = []*stream{{node: edge, put: func(s *xds.Set) { last = s }}}
	return w, func() *xds.Set { return last }
}

func (w *gatewayWorker) take(s *gateway.Snapshot) {
	w.snapshot = s
	w.rebuild()
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
				w, newest := benchWorker()
				w.take(s)
				if newest() == nil {
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
	w, newest := benchWorker()
	w.take(s)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		next, before := *w.snapshot, newest()
		change(&next, i)
		w.take(&next)
		if newest() == before {
			b.Fatal("the change was not published")
		}
	}
}
