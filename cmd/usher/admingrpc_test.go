package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// serveAdminPages serves the admin port with all its pages until the test ends, and connects to it. Its times are short, so
// that a stream that they end fails the test.
func serveAdminPages(t *testing.T, sources adminSources, o ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	a.server.ReadTimeout, a.server.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	a.addPages(sources)
	ended := make(chan error, 1)
	go func() { ended <- a.run() }()
	conn, err := grpc.NewClient(a.address(), append(o, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		a.stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func TestHealthFollowsReadiness(t *testing.T) {
	sources, source := newAdminSources()
	conn := serveAdminPages(t, sources)
	health := healthv1.NewHealthClient(conn)
	other, err := statusv3.NewClientStatusDiscoveryServiceClient(conn).StreamClientStatus(t.Context()) // it stays open meanwhile
	if err != nil {
		t.Fatal(err)
	}
	check := func(service string) healthv1.HealthCheckResponse_ServingStatus {
		t.Helper()
		answer, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Status
	}
	watch, err := health.Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func() healthv1.HealthCheckResponse_ServingStatus {
		t.Helper()
		answer, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return answer.Status
	}
	const up, down = healthv1.HealthCheckResponse_SERVING, healthv1.HealthCheckResponse_NOT_SERVING
	if check("") != up || check(adsName) != up || next() != up {
		t.Error("it is ready, and does not say so")
	}
	source.set(errors.New("consul does not answer"), "")
	if check("") != down || check(adsName) != down || next() != down {
		t.Error("it is not ready, and does not say so")
	}
	source.set(nil, "")
	if next() != up || check("") != up {
		t.Error("it is ready again, and does not say so")
	}
	sources.ready.draining.Store(true)
	if check("") != down || next() != down {
		t.Error("it drains, and says that it is ready")
	}
	if err := other.Send(&statusv3.ClientStatusRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := other.Recv(); err != nil {
		t.Errorf("a stream that was silent for seconds: %v", err)
	}
	_, err = health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: "other"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("an unknown service: %v", err)
	}
	unknown, err := health.Watch(t.Context(), &healthv1.HealthCheckRequest{Service: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := unknown.Recv(); err != nil || answer.Status != healthv1.HealthCheckResponse_SERVICE_UNKNOWN {
		t.Errorf("a watch of an unknown service: %v %v", answer, err)
	}
}

func recvError(stream statusv3.ClientStatusDiscoveryService_StreamClientStatusClient) error {
	_, err := stream.Recv()
	return err
}

func TestClientStatusIsForCallersOnLoopback(t *testing.T) {
	sources, _ := newAdminSources()
	fetch := func(o ...grpc.DialOption) error {
		_, err := statusv3.NewClientStatusDiscoveryServiceClient(serveAdminPages(t, sources, o...)).FetchClientStatus(t.Context(), &statusv3.ClientStatusRequest{})
		return err
	}
	if err := fetch(); err != nil {
		t.Errorf("on loopback: %v", err)
	}
	stream, err := statusv3.NewClientStatusDiscoveryServiceClient(serveAdminPages(t, sources)).StreamClientStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := stream.Send(&statusv3.ClientStatusRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Errorf("a stream on loopback: %v", err)
		}
	}
	if _ = stream.CloseSend(); !errors.Is(recvError(stream), io.EOF) {
		t.Error("a stream that is closed does not end well")
	}
	if err := fetch(grpc.WithAuthority("rebound.example.com")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("with another host: %v", err)
	}
	a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &fakeChecker{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	a.addPages(sources)
	for path, want := range map[string]int{
		"/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus":  http.StatusForbidden,
		"/envoy.service.status.v3.ClientStatusDiscoveryService/StreamClientStatus": http.StatusForbidden,
		"/grpc.health.v1.Health/Check":                                             http.StatusUnsupportedMediaType, // it gets there
	} {
		answer := httptest.NewRecorder()
		a.mux.ServeHTTP(answer, httptest.NewRequest(http.MethodPost, path, strings.NewReader(""))) // from 192.0.2.1
		if answer.Code != want {
			t.Errorf("%s: %d, want %d", path, answer.Code, want)
		}
	}
}

func TestHealthWatchesAreLimited(t *testing.T) {
	sources, _ := newAdminSources()
	addr := serveAdminPages(t, sources).Target()
	var first context.CancelFunc // ends the first call
	watch := func() (healthv1.HealthClient, error) {
		t.Helper()
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		if first == nil {
			first = cancel
		}
		health := healthv1.NewHealthClient(conn)
		stream, err := health.Watch(ctx, &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return health, err
	}
	for range maxHealthWatches {
		if _, err := watch(); err != nil {
			t.Fatal(err)
		}
	}
	health, err := watch()
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "20 open Watch calls") {
		t.Errorf("one more: %v", err)
	}
	if _, err := health.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("a probe meanwhile: %v", err)
	}
	first()
	for deadline := time.Now().Add(10 * time.Second); ; { // the server learns of the end a moment later
		if _, err := watch(); err == nil {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("a call that has ended still counts: %v", err)
		}
	}
}

// A server says in its first frame how many requests a connection may have.
func TestRequestsOfAConnectionAreLimited(t *testing.T) {
	conn := dialAdmin(t, startAdmin(t, io.Discard, &fakeChecker{}))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	frame, err := framer.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	settings, ok := frame.(*http2.SettingsFrame)
	if !ok {
		t.Fatalf("the first frame is %v", frame)
	}
	if n, ok := settings.Value(http2.SettingMaxConcurrentStreams); !ok || n != 10 {
		t.Errorf("a connection may have %d requests (said: %v), want 10", n, ok)
	}
}
