//go:build e2e && cost

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestCostOfAccessLogs prints what each sink costs, as the table in
// docs/access-logs.md ("make logcost"). It asserts nothing.
func TestCostOfAccessLogs(t *testing.T) {
	const rounds, span = 3, 2 * time.Second
	dir := testprocess.NewDir(t)
	sinks := []struct{ name, settings string }{
		{"none", `sinks = "none"`},
		{"`stdout`, `consul`", `sinks = [{ type = "stdout" }]`},
		{"`file`, `consul`", fmt.Sprintf(`sinks = [{ type = "file", path = "%s/log" }]`, dir)},
		{"`file`, `ecs`", fmt.Sprintf(`sinks = [{ type = "file", path = "%s/log", format = "ecs" }]`, dir)},
		{"`file`, `combined`", fmt.Sprintf(`sinks = [{ type = "file", path = "%s/log", format = "combined" }]`, dir)},
		{"`otlp`, `consul`", fmt.Sprintf(`sinks = [{ type = "otlp", address = "%s:4317" }]`, lab.ControlIP)},
		{"`grpc`", fmt.Sprintf(`sinks = [{ type = "grpc", address = "%s:4317" }]`, lab.ControlIP)},
		{"`otlp`, no collector", fmt.Sprintf(`sinks = [{ type = "otlp", address = "%s:4318" }]`, lab.ControlIP)},
	}
	config := func(settings string) string { return "usher { access_log { " + settings + " } }" }
	l := startFileLab(t, config(sinks[0].settings))
	lab.StartCollector(t, l.Control, l.Control.Addr(4317))
	target := lab.Request{From: l.Client, To: l.Network.Gateway.Addr(8080), Path: "/"}
	lab.WaitStatus(t, target, http.StatusOK)
	rates, costs := map[string][]float64{}, map[string][]float64{}
	for range rounds {
		for _, s := range sinks {
			before := l.Gateway.Stat(t, "listener_manager.lds.update_success")
			l.Usher.WriteConfig(t, config(s.settings))
			testprocess.Eventually(t, "Envoy has the sink "+s.name, testprocess.ChangeDeadline, func() error {
				if s.name != "none" && l.Gateway.Stat(t, "listener_manager.lds.update_success") == before {
					return fmt.Errorf("not yet")
				}
				return nil
			})
			lab.WaitStatus(t, target, http.StatusOK)
			begin := cpuOf(t, l.Gateway)
			n := asMany(target, span)
			rates[s.name] = append(rates[s.name], float64(n)/span.Seconds())
			costs[s.name] = append(costs[s.name], (cpuOf(t, l.Gateway)-begin).Seconds()*1e6/float64(n))
		}
	}
	none := [2]float64{median(rates["none"]), median(costs["none"])}
	fmt.Println("| sink and format | requests a second | Envoy's CPU a request |\n|---|---:|---:|")
	for _, s := range sinks {
		rate, cost := median(rates[s.name]), median(costs[s.name])
		fmt.Printf("| %s | %.0f (%.2f) | %.0f µs (%.2f) |\n", s.name, rate, rate/none[0], cost, cost/none[1])
	}
}

// asMany makes requests on eight kept connections for a while, and counts them.
func asMany(target lab.Request, span time.Duration) int64 {
	var n atomic.Int64
	var work sync.WaitGroup
	end := time.Now().Add(span)
	for range 8 {
		work.Go(func() {
			conn, err := target.Connect(context.Background())
			if err != nil {
				return
			}
			defer conn.Close()
			for time.Now().Before(end) && conn.RoundTripOK(target, "keep-alive") == nil {
				n.Add(1)
			}
		})
	}
	work.Wait()
	return n.Load()
}

// cpuOf is the time that the process has used, of user and system.
func cpuOf(t *testing.T, e *lab.Envoy) time.Duration {
	t.Helper()
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^e.Pid()<<3|2), &used); err != nil { // clock_getcpuclockid(3) makes the id so
		t.Fatal(err)
	}
	return time.Duration(used.Nano())
}

func median(of []float64) float64 {
	return slices.Sorted(slices.Values(of))[len(of)/2]
}
