package xds

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// lineBuffer is a log that can be read while a timer may write.
type lineBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *lineBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lineBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// handshakeLog is a log whose lines have no times.
func handshakeLog(lines *lineBuffer) *slog.Logger {
	return slog.New(slog.NewTextHandler(lines, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// issued makes a certificate for usher.test, and the CA that signs it.
func issued(t *testing.T, until time.Time) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"usher.test"}, NotBefore: time.Unix(0, 0), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

func TestAFailedHandshakeIsLoggedWithItsReason(t *testing.T) {
	good, ca := issued(t, time.Now().Add(time.Hour))
	expired, expiredCA := issued(t, time.Now().Add(-time.Hour))
	_, otherCA := issued(t, time.Now().Add(time.Hour))
	withTLS := func(c tls.Certificate) credentials.TransportCredentials {
		return credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12})
	}
	handshake := func(roots *x509.CertPool) func(net.Conn) {
		return func(c net.Conn) {
			_ = tls.Client(c, &tls.Config{RootCAs: roots, ServerName: "usher.test", NextProtos: []string{"h2"}}).Handshake()
		}
	}
	write := func(text string) func(net.Conn) {
		return func(c net.Conn) { _, _ = c.Write([]byte(text)) }
	}
	for _, tc := range []struct {
		name   string
		server credentials.TransportCredentials
		client func(net.Conn)
		want   string // the beginning of the reason; empty: it does not fail, or there was none
	}{
		{"accepted", withTLS(good), handshake(ca), ""},
		{"another CA", withTLS(good), handshake(otherCA), "the caller does not accept --tls-cert"}, // Go says no more
		{"expired", withTLS(expired), handshake(expiredCA), "the caller does not accept --tls-cert"},
		{"plain text", withTLS(good), write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), "the caller speaks plain text, and this port has TLS"},
		{"half a handshake", withTLS(good), write("\x16\x03\x01"), "the caller closed the connection during the handshake"},
		{"a probe", withTLS(good), func(net.Conn) {}, ""},
		{"plain text on a port without TLS", insecure.NewCredentials(), write("PRI * HTTP/2.0"), ""},
		{"a probe of a port without TLS", insecure.NewCredentials(), func(net.Conn) {}, ""},
		{"TLS on a port without it", insecure.NewCredentials(), write("\x16\x03\x01\x02"), "the caller begins TLS, and this port is plain text"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var lines lineBuffer
			h := NewHandshakes(handshakeLog(&lines), prometheus.NewRegistry())
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				client, err := net.Dial("tcp", l.Addr().String())
				if err == nil {
					tc.client(client)
					client.Close()
				}
			}()
			raw, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			secured, _, err := h.Credentials("xds", tc.server).ServerHandshake(raw)
			if strings.HasPrefix(tc.name, "plain text on") {
				got := make([]byte, 3)
				if _, readErr := secured.Read(got[:1]); readErr != nil || got[0] != 'P' {
					t.Errorf("the first byte is %q (%v)", got[0], readErr)
				}
			}
			if tc.want != "" && err == nil {
				t.Error("the handshake did not fail")
			}
			raw.Close()
			<-done
			failures := testutil.ToFloat64(h.failures.WithLabelValues("xds"))
			if tc.want == "" {
				if failures != 0 || lines.String() != "" {
					t.Errorf("%v failures, and the log has %s", failures, lines.String())
				}
				return
			}
			if !strings.Contains(lines.String(), tc.want) || !strings.Contains(lines.String(), "address="+raw.RemoteAddr().String()) || failures != 1 {
				t.Errorf("%v failures, want 1; want %q in the log: %s", failures, tc.want, lines.String())
			}
		})
	}
}

// TestListenerReportsHandshakes has what callers of an HTTP server with TLS send.
func TestListenerReportsHandshakes(t *testing.T) {
	good, ca := issued(t, time.Now().Add(time.Hour))
	for _, tc := range []struct {
		name    string
		client  func(*net.TCPConn)
		stays   bool
		want    string // the beginning of the reason; empty: nothing counts
		succeed bool
	}{
		{"accepted", func(c *net.TCPConn) {
			_, _ = tls.Client(c, &tls.Config{RootCAs: ca, ServerName: "usher.test"}).Write([]byte("x"))
		}, false, "", true},
		{"plain text", func(c *net.TCPConn) { _, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n")) }, false, "the caller speaks plain text, and this port has TLS", false},
		{"a probe that closes", func(*net.TCPConn) {}, false, "", false},
		{"a probe that resets", func(c *net.TCPConn) { _ = c.SetLinger(0) }, false, "", false},
		{"a caller that sends nothing", func(*net.TCPConn) {}, true, "", false},
		{"a caller that stops", func(c *net.TCPConn) { _, _ = c.Write([]byte("\x16\x03\x01")) }, true, "the caller did not finish the handshake in time", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var lines lineBuffer
			h := NewHandshakes(handshakeLog(&lines), prometheus.NewRegistry())
			tcp, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			l := h.Listener("webhook", tcp, &tls.Config{Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS12})
			defer l.Close()
			sent, finish, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				client, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					return
				}
				tc.client(client.(*net.TCPConn))
				if tc.stays {
					close(sent)
					<-finish
				}
				client.Close()
			}()
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if tc.stays {
				<-sent
				_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			}
			n, err := conn.Read(make([]byte, 1))
			if got := n == 1 && err == nil; got != tc.succeed {
				t.Errorf("Read returned %d, %v", n, err)
			}
			close(finish)
			<-done
			want := 0.0
			if tc.want != "" {
				want = 1
			}
			failures := testutil.ToFloat64(h.failures.WithLabelValues("webhook"))
			if failures != want || !strings.Contains(lines.String(), tc.want) || tc.want == "" && lines.String() != "" {
				t.Errorf("%v failures, want %v; want %q in the log: %s", failures, want, tc.want, lines.String())
			}
		})
	}
}

func TestReasonsOfHandshakes(t *testing.T) {
	for text, want := range map[string]string{
		"remote error: tls: unknown certificate authority":                "the caller does not trust the CA of --tls-cert",
		"remote error: tls: expired certificate":                          "the caller says that --tls-cert has expired",
		"remote error: tls: unknown certificate":                          "the caller does not accept --tls-cert",
		"tls: client offered only unsupported versions: [301]":            "the caller and Usher have no common TLS version",
		"read tcp 10.0.0.1:1->10.0.0.2:2: read: connection reset by peer": "the caller closed the connection",
		"something else": "the handshake failed",
	} {
		if got := handshakeReason(errors.New(text)); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

// A caller that tries again and again has one line a minute.
func TestFailedHandshakesAreThinned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines lineBuffer
		h := NewHandshakes(handshakeLog(&lines), nil)
		from := func(ip byte) net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, ip), Port: 4000} }
		for range 5 * 60 {
			h.Failed("xds", from(1), errors.New("x"))
			time.Sleep(time.Second)
			synctest.Wait() // at the end of a minute, the line comes first
		}
		h.Failed("xds", from(2), errors.New("x"))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		var counts []string
		for line := range strings.Lines(lines.String()) {
			_, after, _ := strings.Cut(line, "address=")
			address, after, _ := strings.Cut(after, " ")
			count, _, _ := strings.Cut(after, " ")
			counts = append(counts, address+" "+count)
		}
		slices.Sort(counts)
		want := []string{"10.0.0.1:4000 count=1", "10.0.0.1:4000 count=59", "10.0.0.1:4000 count=60", "10.0.0.1:4000 count=60", "10.0.0.1:4000 count=60", "10.0.0.1:4000 count=60", "10.0.0.2:4000 count=1"}
		if !slices.Equal(counts, want) {
			t.Errorf("the log has %q, want %q", counts, want)
		}
		if len(h.lines.subjects) != 0 {
			t.Errorf("%d callers are remembered for ever", len(h.lines.subjects))
		}
	})
}

func TestCertificateExpiry(t *testing.T) {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for _, tc := range []struct {
		lifetime, left time.Duration
		want           string // the severity; "": no problem
	}{
		{365 * day, 365*day + time.Hour, "outage"}, // it is not valid yet
		{365 * day, 31 * day, ""},
		{365 * day, 30 * day, "notice"},
		{365 * day, 4 * day, "notice"},
		{365 * day, 3 * day, "degraded"},
		{365 * day, time.Second, "degraded"},
		{365 * day, 0, "outage"},
		{90 * day, 10 * day, ""},
		{90 * day, 9 * day, "notice"},
		{90 * day, 3 * day, "degraded"},
		{3 * day, 8 * time.Hour, ""},
		{3 * day, 7 * time.Hour, "notice"},
		{3 * day, 2 * time.Hour, "degraded"},
		{3 * day, -day, "outage"},
	} {
		v := validity{begin, begin.Add(tc.lifetime), "the certificate", true}
		now := v.until.Add(-tc.left)
		found, changes := chain{v}.problems("tls.crt", now)
		got := ""
		if len(found) > 0 {
			got = found[0].Severity.String()
		}
		if got != tc.want {
			t.Errorf("%v of %v are left: got %q, want %q", tc.left, tc.lifetime, got, tc.want)
		}
		if expired := tc.left <= 0; expired != changes.IsZero() || !expired && !changes.After(now) {
			t.Errorf("%v of %v are left: it changes at %v", tc.left, tc.lifetime, changes)
		}
		if len(found) > 0 && tc.left <= tc.lifetime && !strings.Contains(found[0].What, v.until.Format(time.RFC3339)) {
			t.Errorf("it has no date: %s", found[0])
		}
	}
}

// An alert on the increase of a series that begins with the first failure would miss that one.
func TestEachPortHasASeriesFromTheStart(t *testing.T) {
	metrics := prometheus.NewRegistry()
	NewHandshakes(slog.New(slog.DiscardHandler), metrics)
	if n, err := testutil.GatherAndCount(metrics, "usher_tls_handshake_failures_total"); n != 3 || err != nil {
		t.Errorf("%d series (%v), want those of xds, dataplane and webhook", n, err)
	}
}
