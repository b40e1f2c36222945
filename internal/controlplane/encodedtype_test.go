package controlplane

import (
	"math/rand/v2"
	"slices"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/xds"
)

// Whatever was made before, a name has the bytes of its message if that is
// valid, and else its last valid ones, for as long as it is wanted.
func TestEncodedTypeFollowsWhatIsDesired(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		now, good := &encodedType{collection: xds.NewCollection(nil, nil)}, map[string]string{}
		var clusters ordered.Map[*clusterv3.Cluster]
		for range 10 {
			clusters = randomClusters(rnd, clusters)
			w := desired{typ: xds.Cluster, messages: typedMessages[*clusterv3.Cluster]{clusters}, keepOrphans: rnd.IntN(4) == 0}
			for _, name := range clusterNames {
				if clusters.Get(name) == nil && rnd.IntN(4) == 0 {
					w.heldBack = append(w.heldBack, name)
				}
			}
			var heldBack []string
			good, heldBack = expect(t, good, w)
			now = now.update(w)
			got := map[string]string{}
			for name, r := range now.collection.All() {
				got[name] = r.Version()
			}
			if diff := cmp.Diff(good, got); diff != "" {
				t.Fatalf("seed %d: want -, got +:\n%s", seed, diff)
			}
			if diff := cmp.Diff(heldBack, now.collection.HeldBack()); diff != "" {
				t.Fatalf("seed %d: heldBack: want -, got +:\n%s", seed, diff)
			}
		}
	}
}

// expect computes from scratch what update has to return.
func expect(t *testing.T, before map[string]string, w desired) (good map[string]string, heldBack []string) {
	t.Helper()
	good = map[string]string{}
	for name, version := range before {
		if w.keepOrphans || slices.Contains(w.heldBack, name) {
			good[name] = version
		}
	}
	for _, name := range w.heldBack {
		if good[name] == "" {
			heldBack = append(heldBack, name)
		}
	}
	for name := range w.messages.ChangedSince(nil) {
		r, err := xds.NewResource(w.typ, name, w.messages.Get(name))
		switch {
		case err == nil:
			good[name] = r.Version()
		case before[name] != "":
			good[name] = before[name]
		default:
			heldBack = append(heldBack, name)
		}
	}
	slices.Sort(heldBack)
	return good, heldBack
}

var clusterNames = []string{"a", "b", "c", "d", "e"}

// randomClusters keeps some clusters and makes new ones of others; one without a
// timeout is valid, one with a timeout of 0 is not.
func randomClusters(rnd *rand.Rand, clusters ordered.Map[*clusterv3.Cluster]) ordered.Map[*clusterv3.Cluster] {
	for _, name := range clusterNames {
		switch rnd.IntN(4) {
		case 0:
			clusters = clusters.Without(name)
		case 1:
			clusters = clusters.With(name, &clusterv3.Cluster{Name: name, ConnectTimeout: &durationpb.Duration{Seconds: rnd.Int64N(3)}})
		}
	}
	return clusters
}
