package controlplane

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/xds"
)

func TestGatewaysAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		var last *testEnvoy
		for i := range DefaultMaxGateways {
			last = r.connect(xds.Node{ID: "edge", Cluster: fmt.Sprint("gateway-", i)})
		}
		refused := r.connect(xds.Node{ID: "edge", Cluster: "one-more"})
		if err := <-refused.ended; status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "--max-gateways") {
			t.Errorf("one gateway more ended with %v", err)
		}
		again := r.connect(xds.Node{ID: "edge", Cluster: "gateway-0"})
		if len(again.ended) > 0 {
			t.Errorf("a second Envoy of a gateway ended with %v", <-again.ended)
		}
		last.leave()
		time.Sleep(time.Minute) // until the gateway is no longer watched
		synctest.Wait()
		if later := r.connect(xds.Node{ID: "edge", Cluster: "one-more"}); len(later.ended) > 0 {
			t.Errorf("in the place of another it ended with %v", <-later.ended)
		}
	})
}

func TestRejectedUpdateIsAProblemUntilItIsOver(t *testing.T) {
	inBubble(t, func(t *testing.T, r *testPlane) {
		refuse := func(id string) func() {
			return r.problems.Rejected(xds.Node{ID: id, Cluster: "edge"}, xds.Listener,
				xds.Rejection{Version: "0123456789abcdef", Resources: []string{"http:0.0.0.0:8080"}, Message: "no such directory", Repeated: id == "two, again"})
		}
		want := func(problems, rejected int) {
			t.Helper()
			if got := r.problemCount("edge"); got != float64(problems) {
				t.Errorf("%v problems, want %d", got, problems)
			}
			series := testutil.CollectAndCount(r.problems.rejected)
			if rejected == 0 && series != 0 {
				t.Errorf("%d series of rejections are left", series)
			}
			if rejected > 0 && testutil.ToFloat64(r.problems.rejected.WithLabelValues("edge", "listener")) != float64(rejected) {
				t.Errorf("not %d Envoys refuse", rejected)
			}
		}
		first, second := refuse("one"), refuse("two")
		want(2, 2)
		r.problems.setGateway(gateway.ID{Name: "edge"}, nil) // the worker's problems are separate
		want(2, 2)
		first()
		want(1, 1)
		again := refuse("two, again")
		second()
		want(1, 1)
		again()
		want(0, 0)
		if n := testutil.ToFloat64(r.problems.nacks.WithLabelValues("edge", "listener")); n != 2 {
			t.Errorf("usher_xds_nacks_total is %v, want 2", n)
		}
	})
}
