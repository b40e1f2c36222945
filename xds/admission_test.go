package xds

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// from is a connection from an address, which nothing is read of.
type fakeConn struct {
	net.Conn
	addr netip.Addr
}

func (f fakeConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.addr, 1))
}
func (f fakeConn) Close() error { return nil }

// enterFrom takes a connection in.
func connectFrom(t *testing.T, a *admission, addr string) *connection {
	t.Helper()
	c := &connection{Conn: fakeConn{addr: netip.MustParseAddr(addr)}, admission: a}
	if !a.addConnection(c) {
		t.Fatalf("a connection from %s is not taken", addr)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func newTestAdmission(l Limits) *admission {
	return newAdmission(l, NewMetrics(nil), slog.New(slog.DiscardHandler))
}

// Connections that one peer holds make no room for more of its own at the cost of
// another's.
func TestThePeerWithMostPendingConnectionsGivesWay(t *testing.T) {
	a := newTestAdmission(Limits{Connections: 10})
	honest := connectFrom(t, a, "192.0.2.1")
	for range 100 {
		connectFrom(t, a, "192.0.2.66")
	}
	if honest.closed {
		t.Error("the oldest connection of all was closed, and it is the only one of its peer")
	}
	connectFrom(t, a, "192.0.2.2") // has none that could give way
}

// A peer over its own rate does not use up that of all.
func TestAPeerOverItsRateCostsOthersNothing(t *testing.T) {
	a := newTestAdmission(Limits{})
	stranger, honest := connectFrom(t, a, "192.0.2.66"), connectFrom(t, a, "192.0.2.1")
	for range 50_000 {
		if p, err := a.openStream(stranger, "unknown", func(error) {}); err == nil {
			p.close()
		}
	}
	if _, err := a.openStream(honest, "new", func(error) {}); err != nil {
		t.Errorf("another peer's stream: %v", err)
	}
	if !stranger.closed {
		t.Error("a connection on which nothing but refused streams come is open")
	}
}

// Networks of 64 bits are one peer each.
func TestIPv6PeersAreNetworks(t *testing.T) {
	a := newTestAdmission(Limits{StreamRatePerPeer: 1})
	for i, want := range []codes.Code{9: codes.OK, 10: codes.ResourceExhausted} {
		c := connectFrom(t, a, netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(i + 1)}).String())
		if _, err := a.openStream(c, "unknown", func(error) {}); status.Code(err) != want {
			t.Errorf("stream %d: %v, want %v", i, err, want)
		}
	}
}

// Requests of a peer that has most of them give way, however long others wait.
func TestThePeerWithMostRequestBytesGivesWay(t *testing.T) {
	a := newTestAdmission(Limits{})
	honest := connectFrom(t, a, "192.0.2.1")
	a.addRequestBytes(honest, 2<<20, 100)
	for range 40 {
		a.addRequestBytes(connectFrom(t, a, "192.0.2.66"), 4<<20, 100)
	}
	if honest.closed {
		t.Error("the request that has waited longest was cut off, and its peer has no other")
	}
	if a.requestBytes > maxRequestBytes {
		t.Errorf("%d bytes are held", a.requestBytes)
	}
}
