package xds

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fakeConn is a connection from an address, without data.
type fakeConn struct {
	net.Conn
	addr netip.Addr
}

func (f fakeConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.addr, 1))
}
func (f fakeConn) Close() error { return nil }

// connectFrom adds a connection.
func connectFrom(t *testing.T, a *admission, addr string) *connection {
	t.Helper()
	c := &connection{Conn: fakeConn{addr: netip.MustParseAddr(addr)}, admission: a}
	if !a.addConnection(c) {
		t.Fatalf("a connection from %s is not admitted", addr)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func newTestAdmission(l Limits) *admission {
	return newAdmission(l, NewMetrics(nil), slog.New(slog.DiscardHandler))
}

// A caller that holds pending connections evicts its own and not those of another.
func TestCallerWithMostPendingConnectionsIsEvicted(t *testing.T) {
	a := newTestAdmission(Limits{Connections: 10})
	honest := connectFrom(t, a, "192.0.2.1")
	for range 100 {
		connectFrom(t, a, "192.0.2.66")
	}
	if honest.closed {
		t.Error("the oldest connection of all was closed, although it is the only one of its caller")
	}
	connectFrom(t, a, "192.0.2.2") // has none to evict
}

// A caller over its own rate does not use up the rate of all.
func TestCallerOverItsRateCostsOthersNothing(t *testing.T) {
	a := newTestAdmission(Limits{})
	attacker, honest := connectFrom(t, a, "192.0.2.66"), connectFrom(t, a, "192.0.2.1")
	for range 50_000 {
		if p, err := a.openStream(attacker, Credential{Token: "unknown"}, func(error) {}); err == nil {
			p.close()
		}
	}
	if _, err := a.openStream(honest, Credential{Token: "new"}, func(error) {}); err != nil {
		t.Errorf("another caller's stream: %v", err)
	}
	if !attacker.closed {
		t.Error("a connection with only refused streams is still open")
	}
}

// An IPv6 network of 64 bits is one caller.
func TestIPv6CallersAreNetworks(t *testing.T) {
	a := newTestAdmission(Limits{StreamRatePerPeer: 1})
	for i, want := range []codes.Code{9: codes.OK, 10: codes.ResourceExhausted} {
		c := connectFrom(t, a, netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(i + 1)}).String())
		if _, err := a.openStream(c, Credential{Token: "unknown"}, func(error) {}); status.Code(err) != want {
			t.Errorf("stream %d: %v, want %v", i, err, want)
		}
	}
}

// The caller with most request bytes is evicted, not the one that has waited longest.
func TestCallerWithMostRequestBytesIsEvicted(t *testing.T) {
	a := newTestAdmission(Limits{})
	honest := connectFrom(t, a, "192.0.2.1")
	a.countRequestBytes(honest, 2<<20, 100)
	for range 40 {
		a.countRequestBytes(connectFrom(t, a, "192.0.2.66"), 4<<20, 100)
	}
	if honest.closed {
		t.Error("the request that has waited longest was cut off, although its caller has no other")
	}
	if a.requestBytes > maxRequestBytes {
		t.Errorf("%d bytes are held", a.requestBytes)
	}
}

// Reports do not make Usher forget the tokens of streams, streams do not make it forget
// the proofs of reports, and neither of them uses more and more memory.
func TestReportsAndStreamsAreKnownApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAdmission(Limits{StreamRate: 1_000_000, StreamRatePerPeer: 1_000_000})
		c := connectFrom(t, a, "192.0.2.1")
		open := func(isReport bool, i int) (*admittedStream, error) {
			if isReport {
				return a.openReport(c, fmt.Sprint(i))
			}
			return a.openStream(c, Credential{Bearer: Bearer(fmt.Sprint(i))}, func(error) {})
		}
		authorize := func(isReport bool, i int) *admittedStream {
			s, err := open(isReport, i)
			if err != nil {
				t.Fatal(err)
			}
			s.markAuthorized(nil)
			return s
		}
		isKnown := func(isReport bool, i int) bool {
			s, err := open(isReport, i)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			return s.known
		}
		for _, isReport := range []bool{true, false} {
			used := authorize(!isReport, 0)
			authorize(!isReport, 1).close()
			for i := range 2 * maxKnownTokens {
				authorize(isReport, 2+i).close()
			}
			if !isKnown(!isReport, 0) || !isKnown(!isReport, 1) || isKnown(!isReport, 2) || !isKnown(isReport, maxKnownTokens+2) {
				t.Errorf("reports: %t: what is known of the others has changed, or the newest are forgotten", isReport)
			}
			used.close()
			for _, tokens := range []*knownTokens{a.streamTokens, a.reportProofs} {
				if n := tokens.ended.Len(); n > maxKnownTokens || len(tokens.open) > 0 {
					t.Errorf("%d tokens are kept, and %d of streams", n, len(tokens.open))
				}
			}
			time.Sleep(knownTime)
			if isKnown(!isReport, 0) || isKnown(!isReport, 1) {
				t.Error("a token is known for too long")
			}
		}
	})
}
