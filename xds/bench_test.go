package xds

import (
	"fmt"
	"runtime"
	"testing"
)

// One endpoint of a gateway with 1,000 services changes, for 100 Envoys. This is the cost of the stream states, without
// encoding.
func BenchmarkOneEndpointChanges(b *testing.B) {
	for _, sotw := range []bool{false, true} {
		b.Run(fmt.Sprintf("sotw=%t", sotw), func(b *testing.B) {
			const envoys = 100
			all, names := benchmarkSet(b)
			clients := make([]*fakeClient, envoys)
			for i := range clients {
				clients[i] = upToDate(b, sotw, all, names)
			}
			editions := []*Resource{sample(b, Endpoint, "service-7", 2), sample(b, Endpoint, "service-7", 3)}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				all[Endpoint] = all[Endpoint].Next([]*Resource{editions[i%2]}, nil, nil)
				set := NewSet(all)
				for _, m := range clients {
					m.update(set)
					m.exchangeAll()
				}
			}
		})
	}
}

// The memory for an Envoy that is up to date, of a gateway with 1,000 services.
func BenchmarkMemoryOfAnEnvoy(b *testing.B) {
	for _, sotw := range []bool{false, true} {
		b.Run(fmt.Sprintf("sotw=%t", sotw), func(b *testing.B) {
			const envoys = 100
			set, names := benchmarkSet(b)
			states := make([]*streamState, envoys)
			for b.Loop() {
				clear(states)
				before := heap()
				for i := range states {
					states[i] = upToDate(b, sotw, set, names).state
				}
				b.ReportMetric(max(0, heap()-before)/envoys, "B/Envoy")
			}
		})
	}
}

// heap is how many bytes are in use.
func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// benchmarkSet has 1,000 clusters and their endpoints.
func benchmarkSet(b *testing.B) (all [NumTypes]*Collection, names []string) {
	b.Helper()
	clusters, endpoints := map[string]*Resource{}, map[string]*Resource{}
	for i := range 1000 {
		name := fmt.Sprintf("service-%d", i)
		names = append(names, name)
		clusters[name], endpoints[name] = sample(b, Cluster, name, 1), sample(b, Endpoint, name, 1)
	}
	return [NumTypes]*Collection{Cluster: NewCollection(clusters, nil), Endpoint: NewCollection(endpoints, nil)}, names
}

// upToDate is an Envoy that has all of a set.
func upToDate(b *testing.B, sotw bool, all [NumTypes]*Collection, names []string) *fakeClient {
	b.Helper()
	m := newFakeClient(b, sotw)
	m.update(NewSet(all))
	m.subscribe(Cluster)
	m.exchangeAll()
	m.subscribe(Endpoint, names...)
	m.exchangeAll()
	return m
}
