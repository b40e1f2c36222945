package xds

import (
	"fmt"
	"testing"
)

// One endpoint of a gateway with 1,000 services changes, for 100 Envoys: the
// cost of the conversations, without encoding for the wire.
func BenchmarkOneEndpointChanges(b *testing.B) {
	for _, sotw := range []bool{false, true} {
		b.Run(fmt.Sprintf("sotw=%t", sotw), func(b *testing.B) {
			const services, envoys = 1000, 100
			clusters, endpoints := map[string]*Resource{}, map[string]*Resource{}
			var names []string
			for i := range services {
				name := fmt.Sprintf("service-%d", i)
				names = append(names, name)
				clusters[name], endpoints[name] = sample(b, Cluster, name, 1), sample(b, Endpoint, name, 1)
			}
			all := [NumTypes]*Collection{Cluster: NewCollection(clusters, nil), Endpoint: NewCollection(endpoints, nil)}
			models := make([]*model, envoys)
			for i := range models {
				models[i] = newModel(b, sotw)
				models[i].update(NewSet(all))
				models[i].subscribe(Cluster)
				models[i].settle()
				models[i].subscribe(Endpoint, names...)
				models[i].settle()
			}
			editions := []*Resource{sample(b, Endpoint, "service-7", 2), sample(b, Endpoint, "service-7", 3)}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				all[Endpoint] = all[Endpoint].Next([]*Resource{editions[i%2]}, nil, nil)
				set := NewSet(all)
				for _, m := range models {
					m.talk.update(set)
					m.talk.push()
					m.settle()
				}
			}
		})
	}
}
