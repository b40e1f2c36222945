package xds_test

import (
	"testing"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/usherproxy/usher/xds"
)

// A token bucket has no name in itself, and arrives under the one that it was
// asked for.
func TestResourceWithoutANameInItself(t *testing.T) {
	tbs := xds.TokenBucket.URL()
	bucket := func(n uint32) *typev3.TokenBucket {
		return &typev3.TokenBucket{MaxTokens: n, FillInterval: durationpb.New(time.Second)}
	}
	with := func(r *rig, n uint32) *xds.Set {
		one, err := xds.NewNamedResource(xds.TokenBucket, "ten", bucket(n))
		if err != nil {
			r.t.Fatal(err)
		}
		all := small().collections(r.t)
		all[xds.TokenBucket] = xds.NewCollection(map[string]*xds.Resource{"ten": one}, nil)
		return xds.NewSet(all)
	}
	forBoth(t, func(r *rig) {
		e := r.warm(small())
		r.supplier.publish(with(r, 10))
		e.ExpectNone()
		e.Subscribe(tbs, "ten")
		for _, n := range []uint32{10, 20} {
			r.supplier.publish(with(r, n))
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
