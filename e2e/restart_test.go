//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"
)

// TestUsherIsKilledUnderLoad kills Usher and starts it again, three times, while
// requests come in. None fails. The Envoy that comes back has everything already
// and is sent nothing, and it follows the next change.
func TestUsherIsKilledUnderLoad(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, false)
	l.HAProxy.setHeader(t, v2Header)
	l.setMode(t, "permissive")
	options := usherOptions{Host: l.Gateway, Consul: l.Consul}
	usher := startUsher(t, options)
	gateway := startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: usher.GRPCAddr})
	l.wantClientsAddress(t, gateway)
	if usher.sum(t, resourceBytes) == 0 {
		t.Fatal("a new Envoy was sent no resource")
	}
	load := startLoad(t, l.call("/"))
	for _, mode := range []string{"strict", "permissive", "strict"} {
		usher.kill()
		load.waitMore(t)
		usher = startUsher(t, options)
		usher.waitStream(t)
		load.waitMore(t)
		if sent := usher.sum(t, resourceBytes); sent != 0 {
			t.Errorf("an Envoy that was up to date was sent %v bytes of resources", sent)
		}
		l.setMode(t, mode)
		l.waitMode(t, l.Gateway, mode)
	}
	load.wantNoFailures(t)
}

// resourceBytes counts what Envoys were sent.
const resourceBytes = "usher_xds_resource_bytes_total"

// waitStream waits until an Envoy is connected and has its first answers.
func (u *usher) waitStream(t *testing.T) {
	t.Helper()
	eventually(t, "an Envoy comes back", startDeadline, func() error {
		if n := u.sum(t, "usher_xds_acks_total"); n < 2 {
			return fmt.Errorf("%v answers acknowledged, want those of clusters and listeners", n)
		}
		return nil
	})
}

// sum adds up the series of a metric.
func (u *usher) sum(t *testing.T, metric string) float64 {
	t.Helper()
	var total float64
	for _, series := range regexp.MustCompile(`(?m)^`+metric+`(?:\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(u.metrics(t), -1) {
		value, err := strconv.ParseFloat(series[1], 64)
		if err != nil {
			t.Fatalf("%s: %v", metric, err)
		}
		total += value
	}
	return total
}
