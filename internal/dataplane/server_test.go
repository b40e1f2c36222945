package dataplane

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/proto-public/pbdataplane"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// echo answers each message with the same, and ends with OK.
func echo(_ any, stream grpc.ServerStream) error {
	for {
		var f frame
		if err := stream.RecvMsg(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := stream.SendMsg(f); err != nil {
			return err
		}
	}
}

// inBubble runs a scenario with a fake Consul in a synctest bubble: a goroutine that outlives it fails the test.
func inBubble(t *testing.T, consul grpc.StreamHandler, scenario func(t *testing.T, h *harness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { scenario(t, newHarness(t, consul, xds.Options{})) })
}

func TestMessagesArePassedOnAsTheyAre(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, h *harness) {
		stream := h.open(t.Context(), h.dial(), "/example.Service/Method")
		for _, message := range []frame{{}, []byte("not a protobuf message \xff"), bytes.Repeat([]byte("x"), 5<<20), {}} {
			if err := stream.SendMsg(message); err != nil {
				t.Fatal(err)
			}
			var got frame
			if err := stream.RecvMsg(&got); err != nil || !bytes.Equal(got, message) {
				t.Fatalf("got %d bytes, %v, want the %d sent", len(got), err, len(message))
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(new(frame)); !errors.Is(err, io.EOF) {
			t.Errorf("the end: %v", err)
		}
		if n := h.metric("usher_dataplane_calls_total", "ok"); n != 1 {
			t.Errorf("%v calls counted as ok, want 1", n)
		}
	})
}

func TestMetadataStatusAndDeadlineArePassedOn(t *testing.T) {
	refused := status.New(codes.FailedPrecondition, "no")
	refused, err := refused.WithDetails(&errdetails.ErrorInfo{Reason: "because"})
	if err != nil {
		t.Fatal(err)
	}
	consul := func(_ any, stream grpc.ServerStream) error {
		ctx := stream.Context()
		got, _ := metadata.FromIncomingContext(ctx)
		if want := []string{"a", "b"}; !cmp.Equal(got.Get("x-more"), want) || !cmp.Equal(got.Get("x-bytes-bin"), []string{"\x00\xff"}) {
			t.Errorf("consul got the metadata %v", got)
		}
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > time.Minute {
			t.Errorf("consul got the deadline %v, %v", end, ok)
		}
		if err := stream.SendHeader(metadata.Pairs("x-header", "early")); err != nil {
			return err
		}
		stream.SetTrailer(metadata.Pairs("x-trailer", "late"))
		if err := stream.RecvMsg(new(frame)); err != nil {
			return err
		}
		return refused.Err()
	}
	inBubble(t, consul, func(t *testing.T, h *harness) {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(),
			"x-more", "a", "x-more", "b", "x-bytes-bin", "\x00\xff", "x-consul-token", "secret"), time.Minute)
		defer cancel()
		stream := h.open(ctx, h.dial(), "/example.Service/Method")
		if err := stream.SendMsg(frame("x")); err != nil {
			t.Fatal(err)
		}
		err := stream.RecvMsg(new(frame))
		if diff := cmp.Diff(refused.Proto(), status.Convert(err).Proto(), protocmp.Transform()); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		header, _ := stream.Header()
		if !cmp.Equal(header.Get("x-header"), []string{"early"}) || !cmp.Equal(stream.Trailer().Get("x-trailer"), []string{"late"}) {
			t.Errorf("header %v, trailer %v", header, stream.Trailer())
		}
		if n := h.metric("usher_dataplane_calls_total", "error"); n != 1 {
			t.Errorf("%v calls counted as error, want 1", n)
		}
	})
}

// The headers arrive before the first message does.
func TestHeadersArePassedOnAtOnce(t *testing.T) {
	release := make(chan struct{})
	consul := func(_ any, stream grpc.ServerStream) error {
		if err := stream.SendHeader(metadata.Pairs("x-header", "early")); err != nil {
			return err
		}
		<-release
		return nil
	}
	inBubble(t, consul, func(t *testing.T, h *harness) {
		stream := h.open(t.Context(), h.dial(), "/example.Service/Method")
		if err := stream.SendMsg(frame{}); err != nil {
			t.Fatal(err)
		}
		if header, err := stream.Header(); err != nil || !cmp.Equal(header.Get("x-header"), []string{"early"}) {
			t.Errorf("header %v, %v", header, err)
		}
		release <- struct{}{}
	})
}

func TestACallerThatGoesEndsTheCallAtConsul(t *testing.T) {
	ended := make(chan error, 1)
	consul := func(_ any, stream grpc.ServerStream) error {
		<-stream.Context().Done()
		ended <- stream.Context().Err()
		return nil
	}
	inBubble(t, consul, func(t *testing.T, h *harness) {
		ctx, leave := context.WithCancel(t.Context())
		stream := h.open(ctx, h.dial(), "/example.Service/Method")
		if err := stream.SendMsg(frame{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		leave()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("at Consul the call ended with %v", err)
		}
		synctest.Wait()
		if n := h.metric("usher_dataplane_calls_total", "canceled"); n != 1 {
			t.Errorf("%v calls counted as canceled, want 1", n)
		}
	})
}

func TestATooLargeMessageIsRefused(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, h *harness) {
		stream := h.open(t.Context(), h.dial(), "/example.Service/Method")
		_ = stream.SendMsg(frame(make([]byte, maxMessage+1))) // the end has the reason
		if err := stream.RecvMsg(new(frame)); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("the call ended with %v", err)
		}
	})
}

func TestACallWithoutAMessageEnds(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, h *harness) {
		begin := time.Now()
		stream := h.open(t.Context(), h.dial(), "/example.Service/Method")
		err := stream.RecvMsg(new(frame))
		if status.Code(err) != codes.DeadlineExceeded || time.Since(begin) != firstMessageTime {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

// A consul-dataplane of a later release may learn about features that this process does not know.
func TestOnlyWatchServersIsHidden(t *testing.T) {
	feature := func(name pbdataplane.DataplaneFeatures, supported bool) *pbdataplane.DataplaneFeatureSupport {
		return &pbdataplane.DataplaneFeatureSupport{FeatureName: name, Supported: supported}
	}
	answer := &pbdataplane.GetSupportedDataplaneFeaturesResponse{SupportedDataplaneFeatures: []*pbdataplane.DataplaneFeatureSupport{
		feature(pbdataplane.DataplaneFeatures_DATAPLANE_FEATURES_WATCH_SERVERS, true),
		feature(pbdataplane.DataplaneFeatures_DATAPLANE_FEATURES_ENVOY_BOOTSTRAP_CONFIGURATION, true),
		feature(99, true),
	}}
	unknown := protowire.AppendString(protowire.AppendTag(nil, 77, protowire.BytesType), "later")
	answer.ProtoReflect().SetUnknown(unknown)
	encoded, err := proto.Marshal(answer)
	if err != nil {
		t.Fatal(err)
	}
	got, err := withoutWatchServers(encoded)
	if err != nil {
		t.Fatal(err)
	}
	var now pbdataplane.GetSupportedDataplaneFeaturesResponse
	if err := proto.Unmarshal(got, &now); err != nil {
		t.Fatal(err)
	}
	answer.SupportedDataplaneFeatures[0].Supported = false
	if diff := cmp.Diff(answer, &now, protocmp.Transform()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := withoutWatchServers([]byte{0xff}); status.Code(err) != codes.Internal {
		t.Errorf("an answer that is none: %v, want Internal", err)
	}
}

// connect opens a discovery stream of a service.
func (h *harness) connect(conn *grpc.ClientConn, service string) *fakeenvoy.Envoy {
	h.Helper()
	return fakeenvoy.Connect(h.T, conn, fakeenvoy.Delta, fakeenvoy.Options{
		Node: &corev3.Node{Id: service + "-1", Cluster: service}, Token: "secret",
	})
}

func TestStreamsOfGatewaysAndOfOthersAreSeparated(t *testing.T) {
	consul := func(_ any, stream grpc.ServerStream) error {
		var f frame
		if err := stream.RecvMsg(&f); err != nil {
			return err
		}
		var request discoveryv3.DeltaDiscoveryRequest
		if err := proto.Unmarshal(f, &request); err != nil {
			return err
		}
		return status.Error(codes.Aborted, "consul got "+request.GetNode().GetCluster())
	}
	synctest.Test(t, func(t *testing.T) {
		refusal := &fakeAuthorizer{err: status.Error(codes.PermissionDenied, "usher refuses")}
		h := newHarness(t, consul, xds.Options{Authorizer: refusal})
		conn := h.dial()
		for _, c := range []struct {
			service, text string
			code          codes.Code
		}{
			{"web", "consul got web", codes.Aborted},
			{"edge", "usher refuses", codes.PermissionDenied},
			{"bad\x00name", "characters that cannot be printed", codes.InvalidArgument},
		} {
			e := h.connect(conn, c.service)
			e.Subscribe(xds.Cluster.URL())
			if err := e.ExpectEnd(c.code); !strings.Contains(err.Error(), c.text) {
				t.Errorf("%q got %v, want %q", c.service, err, c.text)
			}
		}
		h.catalog.set(errNoConsul)
		e := h.connect(conn, "new")
		e.Subscribe(xds.Cluster.URL())
		e.ExpectEnd(codes.Unavailable)
		for _, destination := range []string{"usher", "consul", "unknown"} {
			if n := h.metric("usher_dataplane_ads_streams_total", destination); n != 1 {
				t.Errorf("%v streams counted for %s, want 1", n, destination)
			}
		}
	})
}

// silentConsul answers nothing until the caller is gone.
func silentConsul(_ any, stream grpc.ServerStream) error {
	<-stream.Context().Done()
	return nil
}

// watchedStream opens the discovery stream of another proxy, which goes to Consul, a while before it returns.
func (h *harness) watchedStream(conn *grpc.ClientConn) *fakeenvoy.Envoy {
	h.Helper()
	e := h.connect(conn, "web")
	e.Subscribe(xds.Cluster.URL())
	time.Sleep(10*recheckTime + rand.N(recheckTime))
	synctest.Wait()
	return e
}

// Consul would serve it without what Usher adds.
func TestAStreamToConsulEndsWhenItsProxyBecomesAGateway(t *testing.T) {
	inBubble(t, silentConsul, func(t *testing.T, h *harness) {
		conn := h.dial()
		e := h.watchedStream(conn)
		h.catalog.set(nil, "web")
		time.Sleep(recheckTime)
		if err := e.ExpectEnd(codes.Unavailable); !strings.Contains(err.Error(), "is an ingress gateway now") {
			t.Errorf("the stream ended with %v", err)
		}
		again := h.connect(conn, "web")
		again.Subscribe(xds.Cluster.URL())
		synctest.Wait()
		for destination, want := range map[string]float64{"usher": 1, "consul": 0} {
			if n := h.metric("usher_dataplane_ads_streams", destination); n != want {
				t.Errorf("%v streams go to %s, want %v", n, destination, want)
			}
		}
	})
}

func TestAStreamToConsulEndsWhenItsProxyIsAnotherGateway(t *testing.T) {
	inBubble(t, silentConsul, func(t *testing.T, h *harness) {
		e := h.watchedStream(h.dial())
		h.catalog.set(status.Error(codes.InvalidArgument, "it is registered as an ingress gateway, and not as one of web"))
		time.Sleep(recheckTime)
		if err := e.ExpectEnd(codes.InvalidArgument); !strings.Contains(err.Error(), "not as one of web") {
			t.Errorf("the stream ended with %v", err)
		}
	})
}

// A stream to Consul stays while its proxy is known as another one, while there is no answer, and while the catalog does not
// have it. Usher asks once a minute.
func TestAStreamToConsulStays(t *testing.T) {
	inBubble(t, silentConsul, func(t *testing.T, h *harness) {
		e := h.watchedStream(h.dial())
		for _, becomes := range []func(){
			func() {},
			func() { h.catalog.set(errNoConsul) },
			func() { h.catalog.set(nil); h.catalog.setAbsent(true) },
		} {
			becomes()
			before := h.catalog.asked.Load()
			time.Sleep(60 * recheckTime)
			synctest.Wait()
			if n := h.catalog.asked.Load() - before; n != 60 {
				t.Errorf("%d questions in an hour, want 60", n)
			}
			if n := h.metric("usher_dataplane_ads_streams", "consul"); n != 1 {
				t.Fatalf("%v streams go to Consul, want 1", n)
			}
		}
		e.Disconnect()
		synctest.Wait()
		before := h.catalog.asked.Load()
		time.Sleep(10 * recheckTime)
		if n := h.catalog.asked.Load() - before; n != 0 {
			t.Errorf("%d questions after the stream's end, want none", n)
		}
	})
}

// Streams that begin together do not ask together later.
func TestQuestionsAboutOpenStreamsSpread(t *testing.T) {
	inBubble(t, silentConsul, func(t *testing.T, h *harness) {
		conn := h.dial()
		const streams = 100
		for i := range streams {
			h.connect(conn, "web"+strconv.Itoa(i)).Subscribe(xds.Cluster.URL())
		}
		synctest.Wait()
		most := int32(0)
		for range recheckTime / time.Second {
			before := h.catalog.asked.Load()
			time.Sleep(time.Second)
			synctest.Wait()
			most = max(most, h.catalog.asked.Load()-before)
		}
		if n := h.catalog.asked.Load(); n != 2*streams || most > streams/5 {
			t.Errorf("%d questions for %d streams in the first minute, and up to %d in a second", n, streams, most)
		}
	})
}

// oneCluster returns a set with a cluster.
func oneCluster(t *testing.T) *xds.Set {
	t.Helper()
	r, err := xds.NewResource(xds.Cluster, "web", &clusterv3.Cluster{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	var all [xds.NumTypes]*xds.Collection
	for i := range all {
		all[i] = xds.NewCollection(nil, nil)
	}
	all[xds.Cluster] = xds.NewCollection(map[string]*xds.Resource{r.Name(): r}, nil)
	return xds.NewSet(all)
}

// A gateway whose token is denied must not get what it has not read yet, although consul-dataplane and gRPC hold it ready:
// its connection is closed. A gateway that has read everything gets the reason.
func TestADeniedGatewayDoesNotGetWhatItHasNotRead(t *testing.T) {
	for _, read := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			authorizer := &fakeAuthorizer{}
			h := newHarness(t, echo, xds.Options{Authorizer: authorizer, Source: fakeSource{oneCluster(t)}, Reauthorize: 10 * time.Second})
			conn := h.dial()
			e := h.connect(conn, "edge")
			e.Subscribe(xds.Cluster.URL())
			response := e.Next()
			if read {
				e.Ack(response)
			}
			synctest.Wait()
			authorizer.set(status.Error(codes.PermissionDenied, "usher refuses"))
			err := e.End()
			synctest.Wait()
			closed := conn.GetState() != connectivity.Ready
			if denied := status.Code(err) == codes.PermissionDenied; denied != read || closed == read {
				t.Errorf("read everything: %v: the stream ended with %v, and its connection is closed: %v", read, err, closed)
			}
		})
	}
}

func TestADrainEndsDiscoveryStreamsAndWaitsForOtherCalls(t *testing.T) {
	consul := func(srv any, stream grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(stream); method != adsMethod {
			return echo(srv, stream)
		}
		<-stream.Context().Done()
		return nil
	}
	inBubble(t, consul, func(t *testing.T, h *harness) {
		stream := h.open(t.Context(), h.dial(), "/example.Service/Method")
		if err := stream.SendMsg(frame("x")); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(new(frame)); err != nil {
			t.Fatal(err)
		}
		web := h.connect(h.dial(), "web")
		web.Subscribe(xds.Cluster.URL())
		synctest.Wait()
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			h.server.Drain(context.Background(), time.Second)
		}()
		if err := web.End(); !strings.Contains(err.Error(), "usher is shutting down") {
			t.Errorf("the discovery stream ended with %v", err)
		}
		synctest.Wait()
		select {
		case <-drained:
			t.Error("the drain did not wait for an open call")
		default:
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(new(frame)); !errors.Is(err, io.EOF) {
			t.Errorf("the open call ended with %v", err)
		}
		<-drained
	})
}

// Calls share the questions about kinds and about Consul's address. These end with the server, and no later, although no
// call waits for them any more.
func TestStopEndsWhatCallsShare(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, h *harness) {
		asked, ended := make(chan struct{}), make(chan error, 2)
		waitForEnd := func(ctx context.Context) error {
			asked <- struct{}{}
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return ctx.Err()
		}
		h.server.kinds.ask = func(ctx context.Context, _ xds.Node) (Kind, error) { return NotRegistered, waitForEnd(ctx) }
		h.server.consul.dial = func(ctx context.Context, _ ...grpc.DialOption) (*grpc.ClientConn, error) { return nil, waitForEnd(ctx) }
		ctx, leave := context.WithCancel(t.Context())
		for _, method := range []string{adsMethod, "/example.Service/Method"} {
			if err := h.open(ctx, h.dial(), method).SendMsg(frame{}); err != nil {
				t.Fatal(err)
			}
			<-asked
		}
		leave()
		synctest.Wait()
		begin := time.Now()
		h.server.Stop()
		if took := time.Since(begin); took > 0 || len(ended) != 2 {
			t.Fatalf("after %v, %d questions of two have ended", took, len(ended))
		}
		for range 2 {
			if err := <-ended; !errors.Is(err, errShuttingDown) {
				t.Errorf("a question ended with %v", err)
			}
		}
	})
}

func TestAnUnreachableConsulIsLoggedOnce(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, h *harness) {
		h.consul.Stop()
		conn := h.dial()
		for range 3 {
			stream := h.open(t.Context(), conn, "/example.Service/Method")
			if err := stream.SendMsg(frame{}); err != nil {
				t.Fatal(err)
			}
			err := stream.RecvMsg(new(frame))
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "usher cannot reach consul's gRPC port") {
				t.Errorf("the call ended with %v", err)
			}
		}
		if n := strings.Count(h.log.String(), "cannot pass calls"); n != 1 {
			t.Errorf("%d log lines, want 1:\n%s", n, h.log)
		}
		if n := h.metric("usher_dataplane_calls_total", "unreachable"); n != 3 {
			t.Errorf("%v calls counted as unreachable, want 3", n)
		}
	})
}

// flood answers a call with messages until the caller is gone.
func flood(_ any, stream grpc.ServerStream) error {
	for {
		if err := stream.SendMsg(frame(make([]byte, 1<<20))); err != nil {
			return err
		}
	}
}

// unreadCall opens a call that Consul answers with more than the caller reads.
func (h *harness) unreadCall() grpc.ClientStream {
	h.Helper()
	stream := h.open(h.Context(), h.dial(), "/example.Service/Method")
	if err := stream.SendMsg(frame{}); err != nil {
		h.Fatal(err)
	}
	return stream
}

// openCalls returns how many calls count against the limits.
func (h *harness) openCalls() int {
	h.server.admission.mu.Lock()
	defer h.server.admission.mu.Unlock()
	return h.server.admission.calls.Len()
}

func TestACallerThatDoesNotReadIsEnded(t *testing.T) {
	inBubble(t, flood, func(t *testing.T, h *harness) {
		h.unreadCall()
		time.Sleep(sendTime - time.Second)
		synctest.Wait()
		if n := h.openCalls(); n != 1 {
			t.Errorf("%d calls are open, want 1", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := h.openCalls(); n != 0 {
			t.Errorf("%d calls are open, want none", n)
		}
		if n := h.metric("usher_dataplane_limited_total", "send_time"); n != 1 {
			t.Errorf("%v calls counted, want 1", n)
		}
	})
}

func (h *harness) consulConns() int {
	h.server.consul.mu.Lock()
	defer h.server.consul.mu.Unlock()
	return len(h.server.consul.conns)
}

// Consul opens 2,048 streams on a connection. More calls must not wait for each other.
func TestCallsUseAsManyConnectionsAsTheyNeed(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, h *harness) {
		conn := h.dial()
		for range maxCallsPerConnection {
			stream := h.open(t.Context(), conn, "/example.Service/Method")
			if err := stream.SendMsg(frame{}); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		// A call may find no connection, and begin an attempt when that of others has just ended.
		if _, err := h.server.consul.open(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := h.consulConns(); n != 1 {
			t.Errorf("%d connections to Consul for %d calls, want 1", n, maxCallsPerConnection)
		}
		h.server.consul.conns[0].calls.Store(callsPerConsulConn)
		stream := h.open(t.Context(), h.dial(), "/example.Service/Method")
		if err := errors.Join(stream.SendMsg(frame{}), stream.RecvMsg(new(frame))); err != nil {
			t.Fatal(err)
		}
		if n := h.consulConns(); n != 2 {
			t.Errorf("%d connections to Consul, want 2", n)
		}
	})
}
