package main

import (
	"context"
	"net/http"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/csds"
	"github.com/usherproxy/usher/internal/inflight"
)

// addGRPC adds the gRPC services of the admin port: health for everybody, and the state of clients, with their resources, by
// the rule of handleDebug. Call it before run.
func (a *admin) addGRPC(s adminSources) {
	a.grpc = grpc.NewServer(grpc.MaxRecvMsgSize(64<<10), grpc.WaitForHandlers(true))
	healthv1.RegisterHealthServer(a.grpc, healthService{ready: s.ready.Ready, watches: make(inflight.Limit, maxHealthWatches)})
	statusv3.RegisterClientStatusDiscoveryServiceServer(a.grpc, csds.Server{Clients: s.servers.xds.Clients})
	a.mux.Handle("POST /"+healthv1.Health_ServiceDesc.ServiceName+"/", untimed(a.grpc))
	a.handleDebug("POST /"+statusv3.ClientStatusDiscoveryService_ServiceDesc.ServiceName+"/", untimed(a.grpc))
}

// untimed serves requests that may last: the server's times are for single answers.
func untimed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_ = c.SetReadDeadline(time.Time{}) // no error: HTTP/2 has deadlines
		_ = c.SetWriteDeadline(time.Time{})
		next.ServeHTTP(w, r)
	})
}

// healthService implements gRPC health, which follows /readyz. The services that it knows are the whole server ("") and the
// aggregated discovery service.
// https://github.com/grpc/grpc/blob/master/doc/health-checking.md
type healthService struct {
	healthv1.UnimplementedHealthServer

	ready   func() error
	watches inflight.Limit
}

// maxHealthWatches is how many Watch calls may be open at the same time: they have no end. Probes use Check.
const maxHealthWatches = 20

// healthInterval is how often Watch looks.
const healthInterval = time.Second

// Check implements the unary call.
func (h healthService) Check(_ context.Context, r *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	answer := h.answer(r.GetService())
	if answer.Status == healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
		return nil, status.Errorf(codes.NotFound, "no service %q; the services are %q and the empty name", r.GetService(), adsName)
	}
	return answer, nil
}

// Watch sends the health now, and again when it has changed.
func (h healthService) Watch(r *healthv1.HealthCheckRequest, stream grpc.ServerStreamingServer[healthv1.HealthCheckResponse]) error {
	release, ok := h.watches.TryAcquire()
	if !ok {
		return status.Errorf(codes.ResourceExhausted, "this Usher has %d open Watch calls, and serves no more; close one of them, or use Check", maxHealthWatches)
	}
	defer release()
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for last := healthv1.HealthCheckResponse_UNKNOWN; ; {
		if now := h.answer(r.GetService()); now.Status != last {
			last = now.Status
			if err := stream.Send(now); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-ticker.C:
		}
	}
}

// adsName is the name of the service that Envoys use.
var adsName = discoveryv3.AggregatedDiscoveryService_ServiceDesc.ServiceName

func (h healthService) answer(service string) *healthv1.HealthCheckResponse {
	is := healthv1.HealthCheckResponse_SERVING
	switch {
	case service != "" && service != adsName:
		is = healthv1.HealthCheckResponse_SERVICE_UNKNOWN
	case h.ready() != nil:
		is = healthv1.HealthCheckResponse_NOT_SERVING
	}
	return &healthv1.HealthCheckResponse{Status: is}
}
