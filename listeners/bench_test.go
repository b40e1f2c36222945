package listeners

import (
	"fmt"
	"maps"
	"testing"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/testing/golden"
)

// BenchmarkCompile compiles the lab's gateway with many services instead of one.
func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			s := manyServices(b, n)
			b.ReportAllocs()
			for b.Loop() {
				compile(s, s.Instances[0], gateway.EnvoyVersion{})
			}
		})
	}
}

// BenchmarkCompileChange compiles a gateway again in which one thing changed.
func BenchmarkCompileChange(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		s := manyServices(b, n)
		id, row := "service-0007.default.default.dc1", s.Services[7].Service
		b.Run(fmt.Sprintf("endpoint/services=%d", n), func(b *testing.B) {
			benchmarkChange(b, s, func(next *gateway.Snapshot) {
				next.Endpoints = next.Endpoints.With(id, &gateway.Endpoints{Endpoints: s.Endpoints.Get(id).Endpoints})
			})
		})
		b.Run(fmt.Sprintf("chain/services=%d", n), func(b *testing.B) {
			benchmarkChange(b, s, func(next *gateway.Snapshot) {
				next.Chains = maps.Clone(next.Chains)
				chain := *next.Chains[row]
				next.Chains[row] = &chain
			})
		})
	}
}

func benchmarkChange(b *testing.B, s *gateway.Snapshot, change func(next *gateway.Snapshot)) {
	b.Helper()
	var c Compiler
	c.Compile(s, s.Instances[0], gateway.Envoy{})
	b.ReportAllocs()
	for b.Loop() {
		next := *s
		change(&next)
		c.Compile(&next, s.Instances[0], gateway.Envoy{})
		s = &next
	}
}

// manyServices returns the lab's snapshot with n services like the lab's one.
func manyServices(b testing.TB, n int) *gateway.Snapshot {
	b.Helper()
	s, _, err := parseFixture(golden.Input(b, testdata, "lab"))
	if err != nil {
		b.Fatal(err)
	}
	row := s.Services[0]
	chain, endpoints := s.Chains[row.Service], s.Endpoints.Get(row.Service.Name+".default.default.dc1")
	s.Services = nil
	s.Entry.Listeners[0].Services = []gateway.ListenerService{{Name: "*"}}
	for i := range n {
		name := fmt.Sprintf("service-%04d", i)
		id := name + ".default.default.dc1"
		row.Service.Name, row.FromWildcard = name, true
		s.Services = append(s.Services, row)
		own := *chain
		own.ServiceName = name
		own.StartNode = "resolver:" + id
		own.Nodes = map[string]*gateway.ChainNode{own.StartNode: {
			Type:     gateway.NodeResolver,
			Resolver: &gateway.Resolver{Default: true, Target: id},
		}}
		full := name + ".default.dc1.internal." + s.Roots.TrustDomain
		own.Targets = map[string]*gateway.Target{id: {ID: id, Service: name, Datacenter: "dc1", Name: full, SNI: full}}
		s.Chains[row.Service] = &own
		s.Endpoints = s.Endpoints.With(id, endpoints)
	}
	return s
}
