package dataplane

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// heldBytes returns how many bytes of messages count.
func (h *harness) heldBytes() int { return int(h.metric("usher_dataplane_message_bytes", "")) }

// A call that ends must give back what it has sent and Consul has not read, while other calls of the connection go on.
func TestMessagesOfAnEndedCallDoNotCount(t *testing.T) {
	consul := func(_ any, stream grpc.ServerStream) error {
		<-stream.Context().Done()
		return nil
	}
	inBubble(t, consul, func(t *testing.T, h *harness) {
		conn := h.dial()
		h.open(t.Context(), conn, "/example.Service/Method")
		ctx, leave := context.WithCancel(t.Context())
		stream := h.open(ctx, conn, "/example.Service/Method")
		message := frame(make([]byte, windowSize-100))
		go func() {
			for stream.SendMsg(message) == nil {
			}
		}()
		synctest.Wait()
		if n := h.heldBytes(); n < len(message) {
			t.Errorf("%d bytes count while Consul reads nothing, want at least the %d of a message", n, len(message))
		}
		leave()
		synctest.Wait()
		// gRPC has thrown away what it had not given to Usher yet: at most a window.
		if n := h.heldBytes(); n > windowSize+2*frameCost {
			t.Errorf("%d bytes count of a call that has ended, want at most what gRPC has thrown away", n)
		}
	})
}

func TestAConnectionWithoutACallHasNoBytes(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	c, _ := add(t, a, "192.0.2.1")
	first, second := openCall(t, a, c), openCall(t, a, c)
	a.countArrived(c, 100, 2) // which nothing reads
	a.closeCall(first)
	if a.bytes != c.cost() || a.bytes == 0 {
		t.Errorf("%d bytes count while a call is open", a.bytes)
	}
	a.closeCall(second)
	if a.bytes != 0 || c.frames != 0 || c.peer.bytes != 0 {
		t.Errorf("%d bytes count, and %d of the peer, when no call is open", a.bytes, c.peer.bytes)
	}
}

func TestCallsOfAProvenConnectionAreNotUnproven(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	c, _ := add(t, a, "192.0.2.1")
	calls := []*admittedCall{openCall(t, a, c), openCall(t, a, c)}
	if n := a.unprovenCalls(); n != 2 {
		t.Errorf("%d calls are not proven, want 2", n)
	}
	a.markProven(c)
	calls = append(calls, openCall(t, a, c))
	if n := a.unprovenCalls(); n != 0 {
		t.Errorf("%d calls are not proven, want none", n)
	}
	for _, call := range calls {
		a.closeCall(call)
	}
	if n := a.unprovenCalls(); n != 0 || c.peer.calls != 0 {
		t.Errorf("%d calls are not proven, and %d are open at the end", n, c.peer.calls)
	}
}

// The oldest call of a peer may be one of a consul-dataplane with a token, beside callers without one at the same address.
func TestACallOfAProvenConnectionIsNeverReplaced(t *testing.T) {
	a := newAdmission(Limits{CallsPerPeer: maxUnprovenCallsPerPeer + 3}, NewMetrics(nil))
	honest, _ := add(t, a, "192.0.2.1")
	a.markProven(honest)
	openCall(t, a, honest) // it fails the test if it is ended
	other, _ := add(t, a, "192.0.2.1")
	ended := 0
	open := func() {
		t.Helper()
		if _, err := a.openCall(other, func(error) { ended++ }); err != nil {
			t.Fatal(err)
		}
	}
	for range maxUnprovenCallsPerPeer {
		open()
	}
	openCall(t, a, honest)
	if ended != 0 {
		t.Error("a call with a token ended another one below the limit of the peer")
	}
	open() // at the limit of calls without a token
	openCall(t, a, honest)
	openCall(t, a, honest) // at the limit of all calls
	if ended != 2 {
		t.Errorf("%d calls were ended, want 2", ended)
	}
}

// gRPC's client knows the limit once the connection is there.
func TestTooLargeHeadersAreRefused(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, h *harness) {
		conn := h.dial()
		open := func(size int) codes.Code {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "x-large", strings.Repeat("a", size))
			_, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/example.Service/Method", raw)
			synctest.Wait()
			return status.Code(err)
		}
		if code := open(maxHeaders / 2); code != codes.OK {
			t.Errorf("half of the limit: %v", code)
		}
		if code := open(2 * maxHeaders); code != codes.Internal {
			t.Errorf("twice the limit: %v, want Internal", code)
		}
	})
}

func TestACallMoreThanAConnectionMayHaveWaits(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, h *harness) {
		conn := h.dial()
		for range maxCallsPerConnection {
			if err := h.open(t.Context(), conn, "/example.Service/Method").SendMsg(frame{}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/example.Service/Method", raw)
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("one more call: %v, want it to wait for the end of another", err)
		}
	})
}

func TestConnectionsThatDoNothingAreClosed(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, h *harness) {
		begin := time.Now()
		silent, err := h.port.DialContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		_, _ = io.Copy(io.Discard, silent)
		if took := time.Since(begin); took != handshakeTime {
			t.Errorf("a connection without a handshake was closed after %v, want %v", took, handshakeTime)
		}

		conn := h.dial()
		stream := h.open(t.Context(), conn, "/example.Service/Method")
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		_ = stream.RecvMsg(new(frame)) // it has ended
		time.Sleep(idleTime - time.Second)
		synctest.Wait()
		if state := conn.GetState(); state != connectivity.Ready {
			t.Errorf("the connection is %v before the time is over", state)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if state := conn.GetState(); state == connectivity.Ready {
			t.Error("a connection without a call is open")
		}
	})
}
