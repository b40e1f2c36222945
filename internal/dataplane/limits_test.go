package dataplane

import (
	"cmp"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// pipeFrom is a connection from an address.
type pipeFrom struct {
	net.Conn
	from net.Addr
}

func (p pipeFrom) RemoteAddr() net.Addr { return p.from }

// connectFrom returns a connection from an address, and its other end.
func connectFrom(t *testing.T, a *admission, ip string) (c *connection, client net.Conn) {
	t.Helper()
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close(); server.Close() })
	return &connection{Conn: pipeFrom{server, &net.TCPAddr{IP: net.ParseIP(ip), Port: 1}}, admission: a}, client
}

// add adds a connection from an address that has to be admitted.
func add(t *testing.T, a *admission, ip string) (added, replaced *connection) {
	t.Helper()
	c, _ := connectFrom(t, a, ip)
	admitted, replaced := a.add(c)
	if !admitted {
		t.Fatalf("the connection from %s is refused", ip)
	}
	return c, replaced
}

// openCall opens a call that has to be admitted.
func openCall(t *testing.T, a *admission, c *connection) *admittedCall {
	t.Helper()
	call, err := a.openCall(c, func(error) { t.Error("the call is ended") })
	if err != nil {
		t.Fatal(err)
	}
	return call
}

func TestANewConnectionReplacesTheOneThatIsIdleForLongest(t *testing.T) {
	a := newAdmission(Limits{Connections: 3, ConnectionsPerPeer: 2}, NewMetrics(nil))
	first, _ := add(t, a, "192.0.2.1")
	second, _ := add(t, a, "192.0.2.2")
	third, _ := add(t, a, "192.0.2.3")
	for _, c := range []*connection{first, second, third} {
		a.markProven(c)
	}
	call := openCall(t, a, first)
	fourth, replaced := add(t, a, "192.0.2.4")
	if replaced != second {
		t.Error("the new connection did not replace the second one")
	}
	a.markProven(fourth)
	a.closeCall(call)
	fifth, replaced := add(t, a, "192.0.2.5")
	if replaced != third {
		t.Error("the new connection did not replace the third one: the first had a call later")
	}
	a.markProven(fifth)
	openCall(t, a, fourth)
	if _, replaced = add(t, a, "192.0.2.6"); replaced != first {
		t.Error("the new connection did not replace the first one")
	}
}

func TestAConnectionIsRefusedWhileAllOthersHaveCalls(t *testing.T) {
	a := newAdmission(Limits{Connections: 10, ConnectionsPerPeer: 1}, NewMetrics(nil))
	first, _ := add(t, a, "2001:db8::1")
	a.markProven(first)
	call := openCall(t, a, first)
	neighbour, _ := connectFrom(t, a, "2001:db8::2")
	if admitted, _ := a.add(neighbour); admitted {
		t.Error("a second connection from the same network is admitted")
	}
	add(t, a, "2001:db8:0:1::1")
	_ = first.Close()
	a.closeCall(call)
	add(t, a, "2001:db8::2")
	if n := len(a.peers); n != 2 {
		t.Errorf("%d peers are remembered, want 2", n)
	}
}

func TestCallsAreLimited(t *testing.T) {
	a := newAdmission(Limits{Calls: 3, CallsPerPeer: 2}, NewMetrics(nil))
	c, _ := add(t, a, "192.0.2.1")
	other, _ := add(t, a, "192.0.2.2")
	a.markProven(c)
	a.markProven(other)
	var calls []*admittedCall
	for _, step := range []struct {
		c    *connection
		code codes.Code
	}{
		{c, codes.OK},
		{c, codes.OK},
		{c, codes.ResourceExhausted},
		{other, codes.OK},
		{other, codes.ResourceExhausted},
	} {
		call, err := a.openCall(step.c, func(error) { t.Error("a proven connection's call is ended") })
		if status.Code(err) != step.code {
			t.Errorf("a call from %s: %v, want %v", step.c.network, err, step.code)
		}
		calls = append(calls, call)
	}
	a.closeCall(calls[0])
	openCall(t, a, other)
}

func TestTheConnectionWithMostUnhandledBytesIsClosed(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	small, _ := add(t, a, "192.0.2.1")
	large, client := connectFrom(t, a, "192.0.2.2")
	if admitted, _ := a.add(large); !admitted {
		t.Fatal("the connection is refused")
	}
	call := openCall(t, a, small)
	a.countArrived(small, 100, 0)
	a.countArrived(large, maxMessages-100, 0)
	if n := len(a.connections); n != 2 {
		t.Fatalf("%d connections at the limit, want 2", n)
	}
	a.countArrived(small, 1, 0)
	if _, err := client.Read(make([]byte, 1)); err == nil || len(a.connections) != 1 || a.connections[0] != small {
		t.Errorf("the connection with most bytes is open: %v", err)
	}
	a.countArrived(large, 100, 1) // it may still be read
	a.countRead(call, 101)
	if a.bytes != 101 {
		t.Errorf("%d bytes counted before the message is passed on, want 101", a.bytes)
	}
	a.countPassed(call, 101)
	if a.bytes != 0 {
		t.Errorf("%d bytes counted, want 0", a.bytes)
	}
}

// gRPC keeps each frame of a message that is not complete, and a frame may have one byte.
func TestTinyFramesCountAsWhatTheyCost(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	c, client := connectFrom(t, a, "192.0.2.1")
	a.add(c)
	a.countArrived(c, maxMessages/(frameCost+1), maxMessages/(frameCost+1))
	if n := len(a.connections); n != 1 {
		t.Fatalf("%d connections at the limit, want 1", n)
	}
	a.countArrived(c, frameCost, 1)
	if _, err := client.Read(make([]byte, 1)); err == nil || a.bytes != 0 {
		t.Errorf("the connection is open: %v, and %d bytes are counted", err, a.bytes)
	}
	other, _ := add(t, a, "192.0.2.2")
	a.countArrived(other, 10, 10)
	a.countRead(openCall(t, a, other), 10)
	if a.bytes != 10 {
		t.Errorf("%d bytes counted for a message of 10 bytes", a.bytes)
	}
}

// A message that is never passed on, because its call has ended, must not keep the frames of all later messages.
func TestFramesGoWithTheirBytes(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	c, _ := add(t, a, "192.0.2.1")
	call := openCall(t, a, c)
	a.countArrived(c, 10, 1)
	for range 1000 {
		a.countArrived(c, 100, 1)
		a.countRead(call, 100)
		a.countPassed(call, 100)
	}
	if c.cost() > 10+frameCost {
		t.Errorf("a connection with 10 bytes in a frame counts as %d bytes", c.cost())
	}
}

// What ended calls leave unread goes with the last goroutine that may read it.
func TestAnIdleConnectionHasNoUnreadBytes(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	c, _ := add(t, a, "192.0.2.1")
	call := openCall(t, a, c)
	a.addUser(call)
	a.countArrived(c, 100, 1)
	a.closeCall(call)
	if a.bytes != 100+frameCost {
		t.Errorf("%d bytes counted while the call is read, want %d", a.bytes, 100+frameCost)
	}
	a.countRead(call, 30)
	if a.bytes != 100 { // and no frame
		t.Errorf("%d bytes counted after a message is read, want 100", a.bytes)
	}
	a.leave(call)
	if a.bytes != 0 || c.peer.bytes != 0 {
		t.Errorf("%d bytes counted on an idle connection, %d of its peer", a.bytes, c.peer.bytes)
	}
}

// messageStream is a call's stream that has messages until its context ends. A message counts as arrived when it is read.
type messageStream struct {
	grpc.ServerStream
	ctx  context.Context
	conn *connection
	left int // then it has no more
}

func (s *messageStream) Context() context.Context { return s.ctx }

func (s *messageStream) RecvMsg(into any) error {
	if s.left--; s.left < 0 || s.ctx.Err() != nil {
		return cmp.Or(s.ctx.Err(), io.EOF)
	}
	f := frame(make([]byte, rand.N(100)))
	s.conn.admission.countArrived(s.conn, f.size(), 1)
	*into.(*frame) = f
	return nil
}

func (s *messageStream) SendMsg(any) error            { return s.ctx.Err() }
func (s *messageStream) SendHeader(metadata.MD) error { return nil }
func (s *messageStream) SetTrailer(metadata.MD)       {}

// Each of a call's goroutines may be the last one with a message of it, and what it has must neither be subtracted twice nor
// stay. Another call is open, so that the connection's count does not begin at zero again.
func TestCallsThatEndAtAnyMomentLeaveNoBytes(t *testing.T) {
	consul := func(_ any, stream grpc.ServerStream) error {
		for range rand.N(20) {
			if err := stream.RecvMsg(new(frame)); err != nil {
				return err
			}
		}
		return nil
	}
	inBubble(t, consul, func(t *testing.T, h *harness) {
		a := h.server.admission
		conn, _ := add(t, a, "192.0.2.1")
		openCall(t, a, conn)
		var calls sync.WaitGroup
		for range 500 {
			ctx, cancel := context.WithCancel(peer.NewContext(t.Context(), &peer.Peer{AuthInfo: authInfo{conn: conn}}))
			c, err := h.server.newCall(&messageStream{ctx: ctx, conn: conn, left: rand.N(40)})
			if err != nil {
				t.Fatal(err)
			}
			c.method = "/example.Service/Method"
			calls.Go(func() {
				_ = h.server.passToConsul(c, nil)
				c.close()
			})
			calls.Go(func() {
				for range rand.N(200) {
					runtime.Gosched()
				}
				if rand.N(2) == 0 {
					c.end(errShuttingDown)
				}
				cancel()
			})
		}
		calls.Wait()
		synctest.Wait()
		if a.bytes != 0 || conn.cost() != 0 {
			t.Errorf("%d bytes are counted, %d of them on the connection: %d not read, %d not passed on, %d frames",
				a.bytes, conn.cost(), conn.unread, conn.unpassed, conn.frames)
		}
	})
}

// Many connections with a little each must not make Usher close that of a caller with one large message.
func TestTheLimitOfBytesHitsThePeerWithMost(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	honest, _ := add(t, a, "192.0.2.1")
	a.countArrived(honest, maxMessage/2, 1)
	for range 10 {
		attacker, _ := add(t, a, "192.0.2.2")
		a.countArrived(attacker, maxMessages/10, 1)
	}
	if honest.closed || len(a.connections) >= 11 {
		t.Errorf("the honest connection is closed: %v; %d connections are open", honest.closed, len(a.connections))
	}
}

// Callers without a token can neither keep others out by holding connections and calls, nor end those of others.
func TestCallersWithoutATokenMakeRoom(t *testing.T) {
	a := newAdmission(Limits{Connections: 4, ConnectionsPerPeer: 3, Calls: 4, CallsPerPeer: 3}, NewMetrics(nil))
	honest, _ := add(t, a, "192.0.2.1")
	a.markProven(honest)
	openCall(t, a, honest)
	var ended []int
	var attackers []*connection
	for i := range 3 {
		c, _ := add(t, a, "192.0.2.2")
		if _, err := a.openCall(c, func(error) { ended = append(ended, i) }); err != nil {
			t.Fatal(err)
		}
		attackers = append(attackers, c)
	}
	newcomer, replaced := add(t, a, "192.0.2.3")
	if replaced != attackers[0] {
		t.Error("a newcomer did not replace the oldest connection of the peer with most")
	}
	openCall(t, a, newcomer)
	if len(ended) != 1 || ended[0] != 0 {
		t.Errorf("the newcomer's call ended the attackers' calls %v, want the oldest", ended)
	}
	if _, replaced = add(t, a, "192.0.2.2"); replaced != attackers[1] {
		t.Error("the attackers' next connection did not replace one of theirs")
	}
	for _, p := range a.peers {
		if p.unprovenCalls < 0 || p.unprovenConns < 0 || p.unprovenConns > p.connections {
			t.Errorf("counted wrongly: %+v", p)
		}
	}
}

// The headers of a call on a connection that is not proven cost memory, so there are fewer of these calls.
func TestCallsThatNeedNoTokenAreFewer(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	ended := 0
	for peer := range 3 {
		c, _ := add(t, a, "192.0.2."+strconv.Itoa(peer+1))
		for range maxUnprovenCallsPerPeer + 1 {
			if _, err := a.openCall(c, func(error) { ended++ }); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := a.unprovenCalls(); n != maxUnprovenCalls || a.calls.Len() != n || ended != 3*(maxUnprovenCallsPerPeer+1)-n {
		t.Errorf("%d calls are not proven, %d are open, %d were ended", n, a.calls.Len(), ended)
	}
	honest, _ := add(t, a, "192.0.2.9")
	a.markProven(honest)
	before := ended
	openCall(t, a, honest)
	if ended != before {
		t.Error("the call of a caller with a token ended another one below the limits for all calls")
	}
}
