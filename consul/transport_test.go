package consul

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/proto-public/pbconnectca"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// issuer is a certificate authority of a test.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	i := issuer{key: key}
	i.cert, _ = i.sign(t, cert, cert)
	return i
}

// sign returns a certificate and its key. For the issuer's own certificate, the key is
// the issuer's.
func (i issuer) sign(t *testing.T, cert, parent *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := i.key
	if cert != parent {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, key.Public(), i.key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signed, key
}

func (i issuer) leaf(t *testing.T) tls.Certificate {
	t.Helper()
	cert, key := i.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, i.cert)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func (i issuer) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
}

// serverOf returns the settings of a server that trusts the issuer's clients and has a
// certificate of the issuer.
func (i issuer) serverOf(t *testing.T) *tls.Config {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(i.cert)
	return &tls.Config{ //nolint:gosec // a test's
		Certificates: []tls.Certificate{i.leaf(t)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, NextProtos: []string{"h2", "http/1.1"},
	}
}

// tlsDir are the files of a client.
type tlsDir struct {
	ca, cert, key string
}

func newTLSDir(t *testing.T) tlsDir {
	dir := t.TempDir()
	return tlsDir{filepath.Join(dir, "ca.pem"), filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
}

// write writes the certificates of the issuer and of one of its clients.
func (d tlsDir) write(t *testing.T, i issuer) {
	t.Helper()
	leaf := i.leaf(t)
	key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, d.ca, "CERTIFICATE", i.cert.Raw)
	writePEM(t, d.cert, "CERTIFICATE", leaf.Certificate[0])
	writePEM(t, d.key, "PRIVATE KEY", key)
}

// env returns the variables that name the files. If grpc is true, the authority is
// that of the gRPC port.
func (d tlsDir) env(grpc bool) vars {
	v := vars{"CONSUL_CACERT": d.ca, "CONSUL_CLIENT_CERT": d.cert, "CONSUL_CLIENT_KEY": d.key}
	if grpc {
		v["CONSUL_GRPC_CACERT"] = d.ca
		delete(v, "CONSUL_CACERT")
	}
	return v
}

// TestTheFilesForTLSAreFollowed moves Consul and its clients to another authority while
// Usher runs. Usher's files change first, and are bad for a while.
func TestTheFilesForTLSAreFollowed(t *testing.T) {
	first, second := newIssuer(t), newIssuer(t)
	var serve atomic.Pointer[tls.Config]
	serve.Store(first.serverOf(t))
	h := &requestRecorder{}
	server := httptest.NewUnstartedServer(h)
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return serve.Load(), nil }} //nolint:gosec // a test's
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	files := newTLSDir(t)
	files.write(t, first)
	log := &logRecorder{}
	c := newTestClient(t, Config{HTTPAddr: server.URL, Getenv: files.env(false).get, Logger: slog.New(log)})
	if err := askMesh(t, c); err != nil {
		t.Fatal(err)
	}

	for what, spoil := range map[string]func() error{
		"half a file": func() error { return os.WriteFile(files.ca, second.pem()[:100], 0o600) },
		"no file":     func() error { return os.Remove(files.ca) },
		"another key": func() error { return os.WriteFile(files.key, second.pem(), 0o600) },
		"a fifo":      func() error { return errors.Join(os.Remove(files.ca), syscall.Mkfifo(files.ca, 0o600)) },
		"a huge file": func() error { return os.Truncate(files.ca, 2<<20) },
	} {
		logged := func(beginning string) bool {
			recheckFiles(c)
			if err := askMesh(t, c); err != nil {
				t.Fatalf("%s: the last valid files do not count: %v", what, err)
			}
			return slices.ContainsFunc(log.take(), func(line string) bool { return strings.HasPrefix(line, beginning) })
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		until(t, func() bool { return logged("WARN files cannot be used") })
		if err := os.RemoveAll(files.ca); err != nil {
			t.Fatal(err)
		}
		files.write(t, first)
		until(t, func() bool { return logged("INFO using the changed TLS files") })
	}

	serve.Store(second.serverOf(t))
	c.watchHTTP.CloseIdleConnections()
	if err := askMesh(t, c); err == nil || !strings.Contains(err.Error(), "authority") {
		t.Errorf("%v, want that the server's new authority is not known", err)
	}
	files.write(t, second)
	recheckFiles(c)
	if err := askMesh(t, c); err != nil {
		t.Error(err)
	}
	if h.last.Proto != "HTTP/2.0" {
		t.Errorf("after that, TLS carries %s", h.last.Proto)
	}
	if _, err := c.send(t.Context(), c.watchdogHTTP, heartbeat, 0, 0); err != nil || h.last.Proto != "HTTP/1.1" {
		t.Errorf("the watchdog has %s (%v), want a connection of its own", h.last.Proto, err)
	}
}

// lookAgain makes the next request use a new connection, for which Usher checks the
// files.
func recheckFiles(c *Client) {
	c.watchHTTP.CloseIdleConnections()
	files := c.watchHTTP.Transport.(*transports).byAddress[c.targets.current().http].files
	files.mu.Lock()
	defer files.mu.Unlock()
	files.checkedAt = time.Time{}
}

// TestTheFilesOfTheGRPCPortAreFollowed moves Consul's gRPC port to another authority.
func TestTheFilesOfTheGRPCPortAreFollowed(t *testing.T) {
	first, second := newIssuer(t), newIssuer(t)
	files := newTLSDir(t)
	files.write(t, first)
	addr, stop := secureConnectCA(t, "127.0.0.1:0", first.serverOf(t))
	s := &signer{client: newTestClient(t, Config{GRPCAddr: "https://" + addr, Getenv: files.env(true).get})}
	s.acquire()
	defer s.release()
	sign := func() error {
		_, err := requestCertificate(t.Context(), certRequest{uri: "spiffe://x"}, func(ctx context.Context, csr string) (string, error) {
			return s.sign(ctx, agent{}, csr)
		})
		return err
	}
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	stop()
	_, stop = secureConnectCA(t, addr, second.serverOf(t))
	defer stop()
	until(t, func() bool { err := sign(); return err != nil && strings.Contains(err.Error(), "authority") })
	files.write(t, second)
	until(t, func() bool { return sign() == nil })
}

// secureConnectCA signs at an address until stop.
func secureConnectCA(t *testing.T, addr string, config *tls.Config) (at string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	pbconnectca.RegisterConnectCAServiceServer(server, &fakeConnectCA{ca: newFakeCA(t), tokens: make(chan []string, 1000)})
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	return listener.Addr().String(), func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
