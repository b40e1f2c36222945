package xds_test

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// A set is delivered when the Envoy has accepted all of it, once for each stream.
func TestASetIsDeliveredWhenTheEnvoyHasAllOfIt(t *testing.T) {
	for _, p := range fakeenvoy.Protocols {
		synctest.Test(t, func(t *testing.T) {
			reported := &fakeObserver{now: map[string]string{}}
			r := newHarnessWith(t, p, xds.Options{Observer: reported})
			var sets []*xds.Set
			publish := func(w resources) {
				sets = append(sets, w.set(t))
				r.source.publish(sets[len(sets)-1])
			}
			want := func(what string, all ...delivered) {
				t.Helper()
				synctest.Wait()
				if !slices.Equal(reported.delivered, all) {
					t.Errorf("%s, %s: delivered are %v, want %v", p, what, reported.delivered, all)
				}
			}
			e := r.warm(small())
			first := reported.delivered
			if len(first) != 1 || first[0].stream != 1 {
				t.Fatalf("%s: delivered to a new Envoy are %v, want one set to stream 1", p, first)
			}
			publish(small().with(routes("web", 2)))
			response := e.Expect(rds, "web")
			want("without an answer", first...)
			e.Ack(response)
			now := append(slices.Clone(first), delivered{1, sets[0]})
			want("accepted", now...)

			publish(small().with(routes("web", 3)))
			e.Nack(e.Expect(rds, "web"), "no")
			want("refused", now...)

			// Two updates at once: the second one waits for the answer to the first.
			publish(small().with(routes("web", 4)))
			response = e.Expect(rds, "web")
			publish(small().with(routes("web", 5)))
			want("two on the way", now...)
			e.Ack(response)
			e.ExpectAck(rds, "web")
			now = append(now, delivered{1, sets[3]})
			want("both accepted", now...)

			second := r.connect()
			second.Subscribe(cds)
			second.ExpectAck(cds, "web")
			want("another Envoy", append(now, delivered{2, sets[3]})...)
		})
	}
}
