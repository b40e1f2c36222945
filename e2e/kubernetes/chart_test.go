//go:build kubernetes

package kubernetes

import (
	"net/http"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
)

// TestStockChart is the lab without Usher. Without PROXY protocol the request is
// answered, and the log has the load balancer's address. With the annotation on
// the gateway's Service the balancer sends headers, and every request is
// answered 400. Taken back, all is as before.
func TestStockChart(t *testing.T) {
	for _, chart := range []string{chartNow, chartNext, chartOld} {
		t.Run(chart, func(t *testing.T) {
			begin := time.Now()
			r := installConsul(t, chart, cluster.Options{Consul: lab.ConsulNew, Envoy: lab.EnvoyNew})
			r.wantBalancerAddress(t)
			sinceStart(t, "from nothing to the first lab", begin)
			gateway := r.gateway(t).Name()

			r.upgrade(t, ppv2Values)
			r.balancer.WaitHeader(t, lab.SendV2)
			lab.WaitStatus(t, r.request("/"), http.StatusBadRequest)
			sinceStart(t, "from nothing to the second lab", begin)

			r.upgrade(t)
			r.balancer.WaitHeader(t, lab.SendNone)
			r.wantBalancerAddress(t)
			if now := r.gateway(t).Name(); now != gateway {
				t.Errorf("the annotation of the Service replaced the gateway's pod %s by %s", gateway, now)
			}
		})
	}
}
