package xds_test

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// stalledClient is a delta stream whose client does not read before readToEnd. It receives its window of 64 KiB.
type stalledClient struct {
	r      *harness
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

func newStalledClient(r *harness) *stalledClient {
	r.t.Helper()
	const window = 64 << 10
	conn := r.dialClient(grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window))
	ctx, cancel := context.WithCancel(context.Background())
	r.t.Cleanup(cancel)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return &stalledClient{r, stream}
}

func (s *stalledClient) send(m *discoveryv3.DeltaDiscoveryRequest) {
	s.r.t.Helper()
	m.Node = &corev3.Node{Id: "stalled", Cluster: "gateway"}
	if err := s.stream.Send(m); err != nil {
		s.r.t.Fatal(err)
	}
	synctest.Wait()
}

// readToEnd returns what the client receives and how the stream ends.
func (s *stalledClient) readToEnd() (all []byte, end error) {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return all, err
		}
		encoded, err := proto.Marshal(m)
		if err != nil {
			s.r.t.Fatal(err)
		}
		all = append(all, encoded...)
	}
}

// large is a listener that does not fit into the window.
func large() proto.Message {
	l := listener("http", 1).(*listenerv3.Listener)
	l.StatPrefix = strings.Repeat("x", 1<<20)
	return l
}

func TestAnEnvoyThatDoesNotReadIsCutOff(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		r.source.publish(small().with(large()).set(t))
		s := newStalledClient(r)
		s.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: lds})
		s.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: cds})
		time.Sleep(2 * time.Minute) // of the bubble's time
		r.wantLimited("send_time", 1)
		if got := r.count("usher_xds_streams", "delta"); got != 0 {
			t.Errorf("%v streams are left", got)
		}
		if !strings.Contains(r.log.String(), "envoy has not read a response") {
			t.Errorf("the log has no reason:\n%s", r.log)
		}
	})
}

// One large response that is not read blocks no one; the missing answer shows it.
func TestAnEnvoyThatDoesNotAnswerIsCutOff(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		time.Sleep(10 * time.Minute)
		e.ExpectNone()
		r.source.publish(small().with(endpoints("web", 2)).set(t))
		e.Expect(eds, "web")
		time.Sleep(5 * time.Minute)
		r.source.publish(small().with(endpoints("web", 2), routes("web", 2)).set(t))
		synctest.Wait()
		time.Sleep(30 * time.Second)
		r.wantLimited("answer_time", 1)
		if got := r.count("usher_xds_streams", string(r.protocol)); got != 0 {
			t.Errorf("%v streams are left", got)
		}
	})
}

// A token is revoked while its stream is not read, and a key is issued after that. The stream ends in time, without the
// key.
func TestNoKeyReachesARevokedTokenThatDidNotRead(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		key := bytes.Repeat([]byte{0x5e}, 40)
		r.source.publish(small().with(large(), secret("leaf", 1)).set(t))
		s := newStalledClient(r)
		s.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: sds, ResourceNamesSubscribe: []string{"leaf"}})
		for n := range 100 { // answers to responses that it has not read
			s.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: sds, ResponseNonce: string(rune('0' + n%10))})
		}
		s.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: lds})
		r.authorizer.setAnswer(status.Error(codes.PermissionDenied, "revoked"))
		time.Sleep(10 * time.Second)
		leaf := secretOf("leaf", key)
		r.source.publish(small().with(large(), leaf).set(t))
		time.Sleep(20 * time.Second)
		if got := r.count("usher_xds_streams", "delta"); got != 0 {
			t.Errorf("%v streams are left after 30 s", got)
		}
		all, _ := s.readToEnd()
		if bytes.Contains(all, key) {
			t.Error("the new key reached a token that was revoked before it was made")
		}
		if len(all) >= 1<<20 {
			t.Errorf("%d bytes that were not read in time reached a revoked token", len(all))
		}
	})
}

// After the latest answer of the Authorizer has expired, nothing new is sent.
func TestNothingIsSentAfterTheAuthorizationHasExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowAuthorizer{wait: make(chan error)}
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Authorizer: slow})
		e := r.warm(small())
		slow.set(true)
		time.Sleep(30 * time.Second)
		r.source.publish(small().with(endpoints("web", 2)).set(t))
		e.ExpectNone()
		slow.wait <- nil
		e.ExpectAck(eds, "web")
		time.Sleep(30 * time.Second)
		r.source.publish(small().with(endpoints("web", 3)).set(t))
		e.ExpectNone()
		slow.wait <- status.Error(codes.PermissionDenied, "revoked")
		e.ExpectEnd(codes.PermissionDenied)
	})
}

// When the answer expires, the connection of an Envoy with unread responses is closed.
func TestUnreadResponsesAreCutOffWhenTheAuthorizationExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowAuthorizer{wait: make(chan error)}
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Authorizer: slow})
		e := r.warm(small())
		time.Sleep(15 * time.Second)
		slow.set(true)
		r.source.publish(small().with(endpoints("web", 2)).set(t))
		e.Expect(eds, "web") // and no answer
		time.Sleep(15 * time.Second)
		e.ExpectEnd(codes.Unavailable)
	})
}

// slowAuthorizer is an Authorizer that can be made to wait.
type slowAuthorizer struct {
	wait chan error
	mu   sync.Mutex
	slow bool
}

func (d *slowAuthorizer) set(slow bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = slow
}

func (d *slowAuthorizer) Authorize(ctx context.Context, _ xds.Caller, _ xds.Node) (time.Time, error) {
	d.mu.Lock()
	slow := d.slow
	d.mu.Unlock()
	if !slow {
		return time.Time{}, nil
	}
	select {
	case err := <-d.wait:
		return time.Time{}, err
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	}
}

// Only the nonce of a response acknowledges it.
func TestAGuessedNonceAcknowledgesNothing(t *testing.T) {
	forBoth(t, func(r *harness) {
		r.source.publish(small().set(t))
		first := r.connect()
		first.Subscribe(cds)
		seen := first.ExpectAck(cds, "web").Nonce
		e := r.connect()
		e.Subscribe(cds)
		response := e.Expect(cds, "web")
		for _, guess := range []string{"1", seen, "1-AAAAAAAAAAAAA"} {
			e.Ack(fakeenvoy.Response{Type: cds, Nonce: guess})
		}
		e.ExpectNone()
		if got := r.count("usher_xds_acks_total", "cluster"); got != 1 {
			t.Errorf("%v responses count as acknowledged, want 1", got)
		}
		e.Ack(response)
		e.ExpectNone()
		if got := r.count("usher_xds_acks_total", "cluster"); got != 2 {
			t.Errorf("%v responses count as acknowledged, want 2", got)
		}
	})
}

// An Envoy that rejects and subscribes again at once is answered ever more slowly.
func TestRejectingAgainAndAgainIsSlow(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		e := r.warm(small())
		begin := time.Now()
		r.source.publish(small().with(endpoints("web", 2)).set(t))
		for range 8 {
			e.Nack(e.Expect(eds, "web"), "no")
			e.Subscribe(eds, "web")
			if time.Since(begin) > time.Minute {
				break
			}
			time.Sleep(9 * time.Second) // Next waits for ten
		}
		if took := time.Since(begin); took < 30*time.Second {
			t.Errorf("eight refusals took %v", took)
		}
		if lines := strings.Count(r.log.String(), "envoy rejected an update"); lines > 8 {
			t.Errorf("%d lines", lines)
		}
	})
}
