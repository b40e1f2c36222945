package xds_test

import (
	"testing"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/usherproxy/usher/xds"
)

var tbs = xds.TokenBucket.URL()

func bucket(n uint32) *typev3.TokenBucket {
	return &typev3.TokenBucket{MaxTokens: n, FillInterval: durationpb.New(time.Second)}
}

// withBucket returns a set with a bucket named "ten".
func withBucket(t *testing.T, w resources, n uint32) *xds.Set {
	t.Helper()
	one, err := xds.NewResource(xds.TokenBucket, "ten", bucket(n))
	if err != nil {
		t.Fatal(err)
	}
	all := w.collections(t)
	all[xds.TokenBucket] = xds.NewCollection(map[string]*xds.Resource{"ten": one}, nil)
	return xds.NewSet(all)
}

// A token bucket has no name field. It is sent under the name of the subscription.
func TestResourceWithoutANameField(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(withBucket(r.t, small(), 10))
		e.ExpectNone()
		e.Subscribe(tbs, "ten")
		for _, n := range []uint32{10, 20} {
			r.source.publish(withBucket(r.t, small(), n))
			var got typev3.TokenBucket
			if err := proto.Unmarshal(e.ExpectAck(tbs, "ten").Bodies[0], &got); err != nil {
				r.t.Fatal(err)
			}
			if !proto.Equal(&got, bucket(n)) {
				r.t.Errorf("received %v, want %v", &got, bucket(n))
			}
		}
		e.ExpectNone()
	})
}

// Envoy waits for the bucket before it acknowledges the listener that names it.
func TestBucketIsSentWhileItsListenerIsOnItsWay(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		r.source.publish(withBucket(r.t, small().with(listener("http", 2, "web")), 10))
		first := e.Expect(lds, "http")
		e.ExpectAck(rds, "web")
		e.Subscribe(tbs, "ten")
		e.ExpectAck(tbs, "ten")
		e.Ack(first)
	})
}
