package dataplane

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"

	logsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/xds"
)

// reports takes what has the proof "right".
type reports struct {
	received []int
	answer   error
}

func (r *reports) Authenticate(md metadata.MD) (func([]byte) error, string, error) {
	if len(md.Get("proof")) == 0 || md.Get("proof")[0] != "right" {
		return nil, "", status.Error(codes.Unauthenticated, "another proof")
	}
	return func(message []byte) error {
		r.received = append(r.received, len(message))
		return r.answer
	}, "right", nil
}

// sendReport sends a report as it arrives from an Envoy behind consul-dataplane.
func sendReport(t *testing.T, conn *grpc.ClientConn, proof string) error {
	t.Helper()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-envoy-original-path", xds.ReportMethod, "proof", proof)
	return conn.Invoke(ctx, adsMethod, &logsv1.ExportLogsServiceRequest{}, &logsv1.ExportLogsServiceResponse{})
}

func TestReportsDoNotGoToConsul(t *testing.T) {
	t.Parallel()
	atConsul := func(any, grpc.ServerStream) error { return status.Error(codes.Internal, "this is Consul") }
	taken := &reports{}
	conn := newHarness(t, atConsul, xds.Options{Reports: taken}).dial()
	if err := sendReport(t, conn, "right"); err != nil || len(taken.received) != 1 {
		t.Errorf("the right proof: %v, %d received", err, len(taken.received))
	}
	if code := status.Code(sendReport(t, conn, "wrong")); code != codes.Unauthenticated || len(taken.received) != 1 {
		t.Errorf("a wrong proof: %v, %d received", code, len(taken.received))
	}
	if code := status.Code(sendReport(t, newHarness(t, atConsul, xds.Options{}).dial(), "right")); code != codes.Unimplemented {
		t.Errorf("without reports: %v", code)
	}
}

// TestReportsAreAnsweredAtTheirEnd: consul-dataplane sets its metric envoy_connected to 0 at the end of
// Envoy's messages, and to 1 when it passes an answer on.
func TestReportsAreAnsweredAtTheirEnd(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		proof   string
		reports xds.Reports // nil: none are taken
		want    codes.Code
	}{
		"taken":         {"right", &reports{}, codes.OK},
		"a wrong proof": {"wrong", &reports{}, codes.Unauthenticated},
		"its content":   {"right", &reports{answer: status.Error(codes.InvalidArgument, "no report")}, codes.InvalidArgument},
		"none is taken": {"right", nil, codes.Unimplemented},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHarness(t, nil, xds.Options{Reports: c.reports})
				ctx := metadata.AppendToOutgoingContext(t.Context(), "x-envoy-original-path", xds.ReportMethod, "proof", c.proof)
				stream := h.open(ctx, h.dial(), adsMethod)
				if err := stream.SendMsg(frame("a report")); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				wantProven := 1
				if c.want == codes.Unauthenticated || c.want == codes.Unimplemented {
					wantProven = 0
				}
				if n := h.proven(); n != wantProven {
					t.Errorf("%d connections are proven, want %d", n, wantProven)
				}
				answered := make(chan error, 1)
				go func() { answered <- stream.RecvMsg(new(frame)) }()
				synctest.Wait()
				if len(answered) > 0 {
					t.Errorf("there is an answer before the end: %v", <-answered)
				}
				if err := stream.CloseSend(); err != nil {
					t.Fatal(err)
				}
				if err := <-answered; err != nil {
					t.Errorf("there is no answer: %v", err)
				}
				if err := stream.RecvMsg(new(frame)); c.want == codes.OK && !errors.Is(err, io.EOF) || c.want != codes.OK && status.Code(err) != c.want {
					t.Errorf("the status is %v", err)
				}
			})
		})
	}
}

// TestAReportHasOneMessage: others are no reports of an Envoy.
func TestAReportHasOneMessage(t *testing.T) {
	t.Parallel()
	for _, messages := range []int{0, 2} {
		taken := &reports{}
		h := newHarness(t, nil, xds.Options{Reports: taken})
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-envoy-original-path", xds.ReportMethod, "proof", "right")
		stream := h.open(ctx, h.dial(), adsMethod)
		for range messages {
			if err := stream.SendMsg(frame("a report")); err != nil {
				t.Fatal(err)
			}
		}
		_ = stream.CloseSend()
		if err := stream.RecvMsg(new(frame)); status.Code(err) != codes.InvalidArgument || len(taken.received) > 0 {
			t.Errorf("%d messages: %v, %d taken", messages, err, len(taken.received))
		}
	}
}
