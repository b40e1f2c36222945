package dataplane

import (
	"net"
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

func TestANewConnectionReplacesTheOneThatIsIdleForLongest(t *testing.T) {
	a := newAdmission(Limits{Connections: 3, ConnectionsPerPeer: 2}, NewMetrics(nil))
	first, _ := add(t, a, "192.0.2.1")
	second, _ := add(t, a, "192.0.2.2")
	third, _ := add(t, a, "192.0.2.3")
	if err := a.openCall(first); err != nil {
		t.Fatal(err)
	}
	fourth, replaced := add(t, a, "192.0.2.4")
	if replaced != second {
		t.Error("the new connection did not replace the second one")
	}
	a.closeCall(first)
	if _, replaced = add(t, a, "192.0.2.5"); replaced != third {
		t.Error("the new connection did not replace the third one: the first had a call later")
	}
	if err := a.openCall(fourth); err != nil {
		t.Fatal(err)
	}
	if _, replaced = add(t, a, "192.0.2.6"); replaced != first {
		t.Error("the new connection did not replace the first one")
	}
}

func TestAConnectionIsRefusedWhileAllOthersHaveCalls(t *testing.T) {
	a := newAdmission(Limits{Connections: 10, ConnectionsPerPeer: 1}, NewMetrics(nil))
	first, _ := add(t, a, "2001:db8::1")
	if err := a.openCall(first); err != nil {
		t.Fatal(err)
	}
	neighbour, _ := connectFrom(t, a, "2001:db8::2")
	if admitted, _ := a.add(neighbour); admitted {
		t.Error("a second connection from the same network is admitted")
	}
	add(t, a, "2001:db8:0:1::1")
	_ = first.Close()
	a.closeCall(first)
	add(t, a, "2001:db8::2")
	if n := len(a.peers); n != 2 {
		t.Errorf("%d peers are remembered, want 2", n)
	}
}

func TestCallsAreLimited(t *testing.T) {
	a := newAdmission(Limits{Calls: 3, CallsPerPeer: 2}, NewMetrics(nil))
	c, _ := add(t, a, "192.0.2.1")
	other, _ := add(t, a, "192.0.2.2")
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
		if err := a.openCall(step.c); status.Code(err) != step.code {
			t.Errorf("a call from %s: %v, want %v", step.c.network, err, step.code)
		}
	}
	a.closeCall(c)
	if err := a.openCall(other); err != nil {
		t.Errorf("after a call has ended: %v", err)
	}
}

func TestTheConnectionWithMostUnhandledBytesIsClosed(t *testing.T) {
	a := newAdmission(Limits{}, NewMetrics(nil))
	small, _ := add(t, a, "192.0.2.1")
	large, client := connectFrom(t, a, "192.0.2.2")
	if admitted, _ := a.add(large); !admitted {
		t.Fatal("the connection is refused")
	}
	a.countBytes(small, 100)
	a.countBytes(large, maxMessages-100)
	if n := len(a.connections); n != 2 {
		t.Fatalf("%d connections at the limit, want 2", n)
	}
	a.countBytes(small, 1)
	if _, err := client.Read(make([]byte, 1)); err == nil || len(a.connections) != 1 || a.connections[0] != small {
		t.Errorf("the connection with most bytes is open: %v", err)
	}
	a.countBytes(large, 100) // it may still be read
	a.countBytes(small, -101)
	if a.bytes != 0 {
		t.Errorf("%d bytes counted, want 0", a.bytes)
	}
}
