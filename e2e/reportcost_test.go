//go:build e2e && cost

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	collogsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestCostOfConnectionReports prints what it costs that Envoys report their connections
// to Usher, as the second table in docs/access-logs.md. Each request has a connection of
// its own, and so is the dearest one. A report costs less than two rounds differ, so an
// Envoy gets many copies of it. They share its rate limit. The test asserts nothing.
func TestCostOfConnectionReports(t *testing.T) {
	const rounds, requests, copies = 7, 1000, 25
	fmt.Println("\n| Envoy | a connection with one request | the filters of the report add | an entry adds |\n|---|---:|---:|---:|")
	for _, envoy := range []string{lab.EnvoyNew, lab.EnvoyOld} {
		l := startFileLabOn(t, envoy, `usher { access_log { sinks = "none" } }`)
		l.Gateway.Kill()
		m := &reportMultiplier{upstream: discoveryv3.NewAggregatedDiscoveryServiceClient(lab.XDSPort{From: l.Network.Gateway}.Dial(t))}
		m.serve(t, l.Network.Gateway, "127.0.0.1:18900")
		l.Gateway = lab.StartBootstrapped(t, lab.BootstrapOptions{Host: l.Network.Gateway, Envoy: envoy, XDSAddr: "127.0.0.1:18900"})
		target := lab.Request{From: l.Client, To: l.Network.Gateway.Addr(8080), Path: "/"}
		lab.WaitStatus(t, target, http.StatusOK)
		costs := map[reportCopies][]float64{}
		none, limited, all := reportCopies{}, reportCopies{count: copies}, reportCopies{count: copies, all: true}
		for range rounds {
			for _, c := range []reportCopies{none, limited, all} {
				m.set(t, l.Gateway, c)
				lab.WaitStatus(t, target, http.StatusOK)
				begin := cpuOf(t, l.Gateway)
				for range requests {
					_, _ = target.Do(t.Context())
				}
				costs[c] = append(costs[c], (cpuOf(t, l.Gateway)-begin).Seconds()*1e6/requests)
			}
		}
		base := median(costs[none])
		filters := (median(costs[limited]) - base) / copies
		entry := (median(costs[all]) - base) / copies / float64(m.logs.Load())
		fmt.Printf("| %s | %.0f µs | %.1f µs (%.1f %%) | %.1f µs (%.1f %%) |\n", envoy, base, filters, 100*filters/base, entry, 100*entry/base)
	}
}

// reportCopies is how often an Envoy gets the log with the reports.
type reportCopies struct {
	count int
	all   bool // without the filter: each copy reports each connection
}

// reportMultiplier passes on what Usher sends, with several copies of the log with the reports, and takes the reports.
type reportMultiplier struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	collogsv1.UnimplementedLogsServiceServer
	upstream discoveryv3.AggregatedDiscoveryServiceClient
	copies   atomic.Pointer[reportCopies]
	logs     atomic.Int64 // that a listener has for reports
	work     sync.WaitGroup

	mu  sync.Mutex
	end context.CancelFunc // of the stream
}

func (m *reportMultiplier) serve(t *testing.T, h *lab.Host, address string) {
	t.Helper()
	m.copies.Store(&reportCopies{})
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, m)
	collogsv1.RegisterLogsServiceServer(server, m)
	listener := h.Listen(t, address)
	m.work.Go(func() { _ = server.Serve(listener) }) // it ends with Stop
	t.Cleanup(func() {
		server.Stop()
		m.work.Wait()
	})
}

// set waits until the Envoy has so many copies. It gets all resources again.
func (m *reportMultiplier) set(t *testing.T, e *lab.Envoy, c reportCopies) {
	t.Helper()
	if *m.copies.Load() == c {
		return
	}
	before := e.Stat(t, "listener_manager.listener_modified")
	m.copies.Store(&c)
	m.mu.Lock()
	m.end()
	m.mu.Unlock()
	testprocess.Eventually(t, "Envoy has the copies", testprocess.ChangeDeadline, func() error {
		if e.Stat(t, "listener_manager.listener_modified") == before || e.Stat(t, "listener_manager.total_listeners_warming") > 0 {
			return errors.New("not yet")
		}
		return nil
	})
}

// Export takes reports.
func (m *reportMultiplier) Export(context.Context, *collogsv1.ExportLogsServiceRequest) (*collogsv1.ExportLogsServiceResponse, error) {
	return &collogsv1.ExportLogsServiceResponse{}, nil
}

// DeltaAggregatedResources passes on the messages of a stream.
func (m *reportMultiplier) DeltaAggregatedResources(s discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancel(s.Context())
	defer cancel()
	m.mu.Lock()
	m.end = cancel
	m.mu.Unlock()
	upstream, err := m.upstream.DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	m.work.Go(func() { // it ends with this call
		defer cancel()
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			r.InitialResourceVersions = nil // so that Usher sends everything again
			if upstream.Send(r) != nil {
				return
			}
		}
	})
	for {
		r, err := upstream.Recv()
		if err != nil {
			return err
		}
		if err := m.multiply(r); err != nil {
			return err
		}
		if err := s.Send(r); err != nil {
			return err
		}
	}
}

// multiply puts the copies into a response.
func (m *reportMultiplier) multiply(r *discoveryv3.DeltaDiscoveryResponse) error {
	if r.GetTypeUrl() != resourcev3.ListenerType {
		return nil
	}
	c := *m.copies.Load()
	for _, resource := range r.GetResources() {
		var listener listenerv3.Listener
		if err := resource.GetResource().UnmarshalTo(&listener); err != nil {
			return err
		}
		var logs []*accesslogv3.AccessLog
		reports := 0
		for _, log := range listener.GetAccessLog() {
			if log.GetName() != "Usher Report" {
				logs = append(logs, log)
				continue
			}
			reports++
			for range c.count {
				log := proto.CloneOf(log)
				if c.all {
					log.Filter = nil
				}
				logs = append(logs, log)
			}
		}
		m.logs.Store(int64(reports))
		listener.AccessLog = logs
		if err := resource.GetResource().MarshalFrom(&listener); err != nil {
			return err
		}
	}
	return nil
}
