package xds_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	logsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// fakeReports takes the reports with the proof "right", and keeps their sizes.
type fakeReports struct {
	received chan int
	answer   error
	panics   bool
	decide   chan struct{} // closed when Authenticate may return; nil: at once
}

func (f *fakeReports) Authenticate(md metadata.MD) (func([]byte) error, string, error) {
	if f.decide != nil {
		<-f.decide
	}
	if len(md.Get("proof")) == 0 || md.Get("proof")[0] != "right" {
		return nil, "", status.Error(codes.Unauthenticated, "another proof")
	}
	return func(message []byte) error {
		f.received <- len(message)
		if f.panics {
			panic("a bug")
		}
		return f.answer
	}, "right", nil
}

// TestReportsComeWithAProof sends reports beside a stream, and counts what is
// received of them.
func TestReportsComeWithAProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reports := &fakeReports{received: make(chan int, 1)}
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Reports: reports})
		send := func(proof string) error {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "proof", proof)
			_, err := logsv1.NewLogsServiceClient(r.dialClient()).Export(ctx, &logsv1.ExportLogsServiceRequest{})
			return err
		}
		if err := send("right"); err != nil || len(reports.received) != 1 {
			t.Errorf("the right proof: %v", err)
		}
		<-reports.received
		if err := send("wrong"); status.Code(err) != codes.Unauthenticated || len(reports.received) != 0 {
			t.Errorf("a wrong proof: %v", err)
		}
		if log := r.log.String(); !strings.Contains(log, `"a report: another proof"`) {
			t.Errorf("the log: %s", log)
		}
		reports.answer = status.Error(codes.InvalidArgument, "no report")
		if err := send("right"); status.Code(err) != codes.InvalidArgument {
			t.Errorf("an answer: %v", err)
		}
		<-reports.received
		reports.panics = true
		if err := send("right"); status.Code(err) != codes.Internal {
			t.Errorf("a panic: %v", err)
		}
		if n := r.server.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
		if nodes := r.server.Nodes(); len(nodes) != 0 {
			t.Errorf("a report is no Envoy's stream: %v", nodes)
		}
	})
}

// TestRefusedReportsDoNotKeepAnEnvoyOut: an Envoy with another Usher's listeners
// reports to this one, and opens its stream all the same.
func TestRefusedReportsDoNotKeepAnEnvoyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Reports: &fakeReports{}})
		client := logsv1.NewLogsServiceClient(r.dialClient())
		for range 500 {
			if _, err := client.Export(t.Context(), &logsv1.ExportLogsServiceRequest{}); status.Code(err) != codes.Unauthenticated {
				t.Fatal(err)
			}
		}
		e := r.connectWith(fakeenvoy.Options{Token: "never seen before"})
		e.Subscribe(cds)
		synctest.Wait()
		if len(r.source.watchedNodes()) != 1 {
			t.Errorf("the stream is not served: %s", r.log.String())
		}
	})
}

// TestBytesOfRefusedReportsAreGivenBack refuses reports when all of their bytes have arrived: by
// their proof, by a limit, and by what is in them.
func TestBytesOfRefusedReportsAreGivenBack(t *testing.T) {
	const size = 20_000
	for name, c := range map[string]struct {
		proof  string
		limits xds.Limits
		answer error
		want   codes.Code
	}{
		"a wrong proof": {proof: "wrong", want: codes.Unauthenticated},
		"a limit":       {proof: "right", limits: xds.Limits{Streams: 1}, want: codes.ResourceExhausted},
		"its content":   {proof: "right", answer: status.Error(codes.InvalidArgument, "no report"), want: codes.InvalidArgument},
		"none":          {proof: "right", want: codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reports := &fakeReports{received: make(chan int, 1), answer: c.answer, decide: make(chan struct{})}
				r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Reports: reports, Limits: c.limits})
				r.connect().Subscribe(cds) // reaches the limit
				synctest.Wait()
				before := r.count("usher_xds_request_bytes", "")
				sent := make(chan error, 1)
				go func() {
					ctx := metadata.AppendToOutgoingContext(t.Context(), "proof", c.proof)
					report := &wrapperspb.BytesValue{Value: make([]byte, size)}
					sent <- r.dialClient().Invoke(ctx, xds.ReportMethod, report, &logsv1.ExportLogsServiceResponse{})
				}()
				synctest.Wait()
				if held := r.count("usher_xds_request_bytes", "") - before; held < size {
					t.Errorf("%v bytes are held while the report is not decided on", held)
				}
				close(reports.decide)
				if err := <-sent; status.Code(err) != c.want {
					t.Errorf("the answer is %v", err)
				}
				synctest.Wait()
				if held := r.count("usher_xds_request_bytes", "") - before; held != 0 {
					t.Errorf("%v bytes are held of a report that has its answer", held)
				}
			})
		})
	}
}

// TestBytesOfAReportAreGivenBackBesideAStream sends a report over the connection of a stream that stays.
func TestBytesOfAReportAreGivenBackBesideAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Reports: &fakeReports{received: make(chan int, 1)}})
		conn := r.dialClient()
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "a", Cluster: "gateway"}, TypeUrl: cds}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		before := r.count("usher_xds_request_bytes", "")
		ctx := metadata.AppendToOutgoingContext(t.Context(), "proof", "right")
		report := &wrapperspb.BytesValue{Value: make([]byte, 20_000)}
		if err := conn.Invoke(ctx, xds.ReportMethod, report, &logsv1.ExportLogsServiceResponse{}); err != nil {
			t.Fatal(err)
		}
		if n := r.server.Streams(); n != 1 {
			t.Fatalf("%d streams are open", n)
		}
		// What its frames cost counts until the last stream ends.
		if held := r.count("usher_xds_request_bytes", "") - before; held >= 20_000 {
			t.Errorf("%v bytes are held of a report that has its answer", held)
		}
	})
}

// TestReportsWithAProofHaveNoRate: an Envoy reports once a second for each thread and listener.
func TestReportsWithAProofHaveNoRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reports := &fakeReports{received: make(chan int, 1000)}
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Reports: reports, Limits: xds.Limits{StreamRate: 1, StreamRatePerPeer: 1}})
		client := logsv1.NewLogsServiceClient(r.dialClient())
		for i := range cap(reports.received) {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "proof", "right")
			if _, err := client.Export(ctx, &logsv1.ExportLogsServiceRequest{}); err != nil {
				t.Fatalf("report %d: %v", i, err)
			}
		}
	})
}

// TestWithoutReportsThereIsNoServiceForThem: the method does not exist.
func TestWithoutReportsThereIsNoServiceForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHarness(t, fakeenvoy.Delta)
		err := r.dialClient().Invoke(context.Background(), xds.ReportMethod, &logsv1.ExportLogsServiceRequest{}, &logsv1.ExportLogsServiceResponse{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("got %v", err)
		}
	})
}
