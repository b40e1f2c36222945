package dataplane

import (
	"net"
	"strconv"
	"testing"

	"google.golang.org/grpc/codes"
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
	a.countBytes(small, 100, 0)
	a.countBytes(large, maxMessages-100, 0)
	if n := len(a.connections); n != 2 {
		t.Fatalf("%d connections at the limit, want 2", n)
	}
	a.countBytes(small, 1, 0)
	if _, err := client.Read(make([]byte, 1)); err == nil || len(a.connections) != 1 || a.connections[0] != small {
		t.Errorf("the connection with most bytes is open: %v", err)
	}
	a.countBytes(large, 100, 1) // it may still be read
	a.countBytes(small, -101, 0)
	if a.bytes != 0 {
		t.Errorf("%d bytes counted, want 0", a.bytes)
	}
}

// gRPC keeps each frame of a message that is not complete, and a frame may have one byte.
func TestTinyFramesCountAsWhatTheyCost(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	c, client := connectFrom(t, a, "192.0.2.1")
	a.add(c)
	a.countBytes(c, maxMessages/(frameCost+1), maxMessages/(frameCost+1))
	if n := len(a.connections); n != 1 {
		t.Fatalf("%d connections at the limit, want 1", n)
	}
	a.countBytes(c, frameCost, 1)
	if _, err := client.Read(make([]byte, 1)); err == nil || a.bytes != 0 {
		t.Errorf("the connection is open: %v, and %d bytes are counted", err, a.bytes)
	}
	other, _ := add(t, a, "192.0.2.2")
	a.countBytes(other, 10, 10)
	a.countBytes(other, -10, 0)
	if a.bytes != 0 || other.frames != 0 {
		t.Errorf("%d bytes and %d frames counted after everything is passed on", a.bytes, other.frames)
	}
}

// A message that is never passed on, because its call has ended, must not keep the frames of all later messages.
func TestFramesGoWithTheirBytes(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	c, _ := add(t, a, "192.0.2.1")
	a.countBytes(c, 10, 1)
	for range 1000 {
		a.countBytes(c, 100, 1)
		a.countBytes(c, -100, 0)
	}
	if c.cost() > 10+frameCost {
		t.Errorf("a connection with 10 bytes in a frame counts as %d bytes", c.cost())
	}
}

// Many connections with a little each must not make Usher close that of a caller with one large message.
func TestTheLimitOfBytesHitsThePeerWithMost(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	honest, _ := add(t, a, "192.0.2.1")
	a.countBytes(honest, maxMessage/2, 1)
	for range 10 {
		attacker, _ := add(t, a, "192.0.2.2")
		a.countBytes(attacker, maxMessages/10, 1)
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
