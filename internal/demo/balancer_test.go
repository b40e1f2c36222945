package demo

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"
	proxyproto "github.com/pires/go-proxyproto"
)

func TestTheHeaderCarriesTheClientsAddress(t *testing.T) {
	target, addr := balance(t, true)
	client := dialFrom(t, clientIP, addr)
	got := accept(t, target)
	send(t, client, "GET")
	r := bufio.NewReader(got)

	h, err := proxyproto.Read(r)
	if err != nil {
		t.Fatal(err)
	}
	want := &proxyproto.Header{
		Version: 2, Command: proxyproto.PROXY, TransportProtocol: proxyproto.TCPv4,
		SourceAddr: client.LocalAddr(), DestinationAddr: client.RemoteAddr(),
	}
	if !h.EqualTo(want) {
		t.Errorf("got header %+v, want %+v", h, want)
	}
	if rest := readAll(t, r); rest != "GET" {
		t.Errorf("after the header the target got %q, want %q", rest, "GET")
	}
}

func TestWithoutTheHeaderTheTargetGetsTheClientsBytesAlone(t *testing.T) {
	target, addr := balance(t, false)
	client := dialFrom(t, clientIP, addr)
	got := accept(t, target)
	send(t, client, "GET")
	if text := readAll(t, got); text != "GET" {
		t.Errorf("the target got %q, want %q", text, "GET")
	}
}

func TestTheTargetSeesTheBalancersAddress(t *testing.T) {
	target, addr := balance(t, true)
	dialFrom(t, clientIP, addr)
	if host := hostOf(accept(t, target).RemoteAddr().String()); host != balancerIP {
		t.Errorf("the connection comes from %s, want %s", host, balancerIP)
	}
}

func TestTheAnswerComesAfterTheClientHasSaidAll(t *testing.T) {
	target, addr := balance(t, false)
	client := dialFrom(t, clientIP, addr)
	got := accept(t, target)
	send(t, client, "GET")
	readAll(t, got)
	send(t, got, "200")
	if text := readAll(t, client); text != "200" {
		t.Errorf("the client got %q, want %q", text, "200")
	}
}

func TestAClientOfABrokenTargetIsDisconnected(t *testing.T) {
	target, addr := balance(t, true)
	target.Close()
	client := dialFrom(t, clientIP, addr)
	if n, err := client.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read %d bytes, error %v; want the end of the connection", n, err)
	}
}

func TestTheEndOfTheBalancerEndsItsConnections(t *testing.T) {
	target, front := openPort(t, "127.0.0.1"), openPort(t, "127.0.0.1")
	b := &balancer{target: target.Addr().String(), logger: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- b.run(ctx, front) }()
	client := dialFrom(t, clientIP, front.Addr().String())
	got := accept(t, target)

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
	for _, conn := range []net.Conn{client, got} {
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("the connection to %s is still open", conn.RemoteAddr())
		}
	}
}

func TestTheHeaderIsTheSpecificationsBytes(t *testing.T) {
	target, addr := balance(t, true)
	client := dialFrom(t, clientIP, addr)
	got := accept(t, target)
	send(t, client, "")
	from, to := client.LocalAddr().(*net.TCPAddr), client.RemoteAddr().(*net.TCPAddr)
	want := "\r\n\r\n\x00\r\nQUIT\n" + // signature
		"\x21\x11\x00\x0c" + // version 2, PROXY; TCP over IPv4; 12 bytes follow
		string(from.IP.To4()) + string(to.IP.To4()) +
		string([]byte{byte(from.Port >> 8), byte(from.Port), byte(to.Port >> 8), byte(to.Port)})
	if diff := cmp.Diff([]byte(want), []byte(readAll(t, got))); diff != "" {
		t.Errorf("bytes at the target (-want +got):\n%s", diff)
	}
}

// balance runs a balancer in front of a target, and gives the target and the
// balancer's address.
func balance(t *testing.T, header bool) (net.Listener, string) {
	t.Helper()
	target := openPort(t, "127.0.0.1")
	b := &balancer{target: target.Addr().String(), header: header, logger: slog.New(slog.DiscardHandler)}
	return target, start(t, b.run)
}

func dialFrom(t *testing.T, ip, addr string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

func accept(t *testing.T, ln net.Listener) *net.TCPConn {
	t.Helper()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// send sends text as all that conn has to say.
func send(t *testing.T, conn *net.TCPConn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
