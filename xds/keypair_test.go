package xds_test

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
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// keyFiles is a mounted Kubernetes secret: a directory with a symbolic link to the files' current edition.
type keyFiles struct {
	t   *testing.T
	dir string
}

func (k keyFiles) cert() string { return filepath.Join(k.dir, "tls.crt") }
func (k keyFiles) key() string  { return filepath.Join(k.dir, "tls.key") }

func newKeyFiles(t *testing.T) keyFiles { return newKeyFilesIn(t, t.TempDir()) }

func newKeyFilesIn(t *testing.T, dir string) keyFiles {
	k := keyFiles{t, dir}
	k.must(os.MkdirAll(dir, 0o700))
	for _, name := range []string{"tls.crt", "tls.key"} {
		k.must(os.Symlink(filepath.Join("..data", name), filepath.Join(k.dir, name)))
	}
	return k
}

// replace swaps both files at once, as the kubelet does.
func (k keyFiles) replace(cert, key []byte) {
	k.t.Helper()
	edition, err := os.MkdirTemp(k.dir, "..edition")
	k.must(err)
	k.must(os.WriteFile(filepath.Join(edition, "tls.crt"), cert, 0o600))
	k.must(os.WriteFile(filepath.Join(edition, "tls.key"), key, 0o600))
	link := filepath.Join(k.dir, "..tmp")
	k.must(os.Symlink(filepath.Base(edition), link))
	k.must(os.Rename(link, filepath.Join(k.dir, "..data")))
}

func (k keyFiles) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

// pair makes a key and a certificate with a serial number, which is valid for an hour.
func pair(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	return pairUntil(t, serial, time.Now(), time.Now().Add(time.Hour))
}

func pairUntil(t *testing.T, serial int64, begin, end time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: begin, NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
}

// runKeyPair reads the files and then runs until the test ends.
func runKeyPair(t *testing.T, files keyFiles) (*xds.KeyPair, logLines) {
	t.Helper()
	log := make(logLines, 16)
	keys, err := xds.NewKeyPair(files.cert(), files.key(), slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- keys.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run did not end")
		}
	})
	return keys, log
}

func wantServed(t *testing.T, addr string, want int64) {
	t.Helper()
	if got := serial(t, addr); got != want {
		t.Errorf("served certificate %d, want %d", got, want)
	}
}

func TestCertificateIsReplaced(t *testing.T) {
	files := newKeyFiles(t)
	files.replace(pair(t, 1))
	keys, log := runKeyPair(t, files)
	addr := serveTLS(t, keys, xds.Options{})
	wantServed(t, addr, 1)
	files.replace(pair(t, 2))
	log.await(t, "TLS certificate replaced")
	wantServed(t, addr, 2)
	cert, _ := pair(t, 3)
	_, foreign := pair(t, 3)
	files.replace(cert, foreign)
	log.await(t, "the old one stays")
	wantServed(t, addr, 2) // the last valid one
	// Logged once: the next line is about the next good pair.
	files.replace(cert, foreign)
	files.replace(pair(t, 4))
	log.await(t, "TLS certificate replaced")
	wantServed(t, addr, 4)
}

func TestCertificateIsAMetric(t *testing.T) {
	files, day, metrics := newKeyFiles(t), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), prometheus.NewRegistry()
	files.replace(pairUntil(t, 1, day, day.Add(time.Minute)))
	keys, log := runKeyPair(t, files)
	keys.Register(metrics)
	want := func(expiry time.Time, lifetime time.Duration) {
		t.Helper()
		families, err := metrics.Gather()
		if err != nil || len(families) != 2 {
			t.Fatalf("got %v, %v, want 2 metrics", families, err)
		}
		got := []float64{families[0].GetMetric()[0].GetGauge().GetValue(), families[1].GetMetric()[0].GetGauge().GetValue()}
		if !slices.Equal(got, []float64{float64(expiry.Unix()), lifetime.Seconds()}) {
			t.Errorf("the metrics are %v, want %v and %v", got, expiry.Unix(), lifetime.Seconds())
		}
	}
	want(day.Add(time.Minute), time.Minute)
	files.replace(pairUntil(t, 2, day, day.Add(time.Hour)))
	log.await(t, "TLS certificate replaced")
	want(day.Add(time.Hour), time.Hour)
	if problems, err := testutil.GatherAndLint(metrics); err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
}

// A directory above the files is replaced.
func TestCertificateIsReadWhenAsked(t *testing.T) {
	up := filepath.Join(t.TempDir(), "up")
	files := newKeyFilesIn(t, filepath.Join(up, "tls"))
	files.replace(pair(t, 1))
	keys, log := runKeyPair(t, files)
	files.must(os.Rename(up, up+".old"))
	newKeyFilesIn(t, files.dir).replace(pair(t, 2))
	keys.Reload()
	log.await(t, "TLS certificate replaced")
	wantServed(t, serveTLS(t, keys, xds.Options{}), 2)
}

func TestCertificateIsNoFile(t *testing.T) {
	files := newKeyFiles(t)
	files.replace(pair(t, 1))
	keys, log := runKeyPair(t, files)
	addr := serveTLS(t, keys, xds.Options{})
	edition := filepath.Join(files.dir, "fifos")
	files.must(os.Mkdir(edition, 0o700))
	for _, name := range []string{"tls.crt", "tls.key"} {
		files.must(syscall.Mkfifo(filepath.Join(edition, name), 0o600))
	}
	files.must(os.Symlink("fifos", filepath.Join(files.dir, "..tmp")))
	files.must(os.Rename(filepath.Join(files.dir, "..tmp"), filepath.Join(files.dir, "..data")))
	log.await(t, "it is not a regular file")
	wantServed(t, addr, 1) // the last valid one
	files.replace(pair(t, 2))
	log.await(t, "TLS certificate replaced")
}

func TestCertificateIsMissingAtTheStart(t *testing.T) {
	files := newKeyFiles(t)
	if _, err := xds.NewKeyPair(files.cert(), files.key(), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("no error for files that do not exist")
	}
}

// lines is a log whose lines can be waited for.
type logLines chan string

func (l logLines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// await returns the next line, which must contain want.
func (l logLines) await(t *testing.T, want string) string {
	t.Helper()
	select {
	case line := <-l:
		if !strings.Contains(line, want) {
			t.Fatalf("logged %q, want %q", line, want)
		}
		return line
	case <-time.After(10 * time.Second):
		t.Fatalf("not logged: %q", want)
	}
	return ""
}

// serveTLS serves on loopback until the test ends.
func serveTLS(t *testing.T, keys *xds.KeyPair, o xds.Options) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Credentials, o.Logger = keys.Credentials(), slog.New(slog.DiscardHandler)
	server := xds.NewServer(o)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // it was stopped before it began
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// serial connects and reads the served certificate's number.
func serial(t *testing.T, addr string) int64 {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func TestConnectionReachesAuthorizerAndSource(t *testing.T) {
	files := newKeyFiles(t)
	files.replace(pair(t, 1))
	keys, err := xds.NewKeyPair(files.cert(), files.key(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s, d := &fakeSource{set: small().set(t)}, &fakeAuthorizer{}
	conn, err := grpc.NewClient(serveTLS(t, keys, xds.Options{Source: s, Authorizer: d}),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	e := fakeenvoy.Connect(t, conn, fakeenvoy.Delta, fakeenvoy.Options{})
	e.Subscribe(cds)
	e.Expect(cds, "web")
	if caller := d.calls()[0]; caller.TLS == nil || !caller.Address.IsLoopback() {
		t.Errorf("the authorizer saw the connection %v, %v", caller.TLS, caller.Address)
	}
	if address := s.watchedNodes()[0].Peer; !address.IsLoopback() {
		t.Errorf("the source saw the address %v", address)
	}
}

// TestAnExpiredCertificateIsAProblemUntilItIsRenewed also has new files that cannot be used.
func TestAnExpiredCertificateIsAProblemUntilItIsRenewed(t *testing.T) {
	files := newKeyFiles(t)
	files.replace(pairUntil(t, 1, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Minute)))
	keys, _ := runKeyPair(t, files)
	reports := make(chan []problem.Problem, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = keys.ReportProblems(ctx, func(expiry, rejected []problem.Problem) { reports <- append(expiry, rejected...) })
	}()
	defer func() { cancel(); <-done }()
	want := func(severity problem.Severity, what string) {
		t.Helper()
		timeout := time.After(20 * time.Second)
		for {
			select {
			case got := <-reports:
				if what == "" && len(got) == 0 || what != "" && len(got) == 1 && got[0].Where == files.cert() &&
					got[0].Severity == severity && strings.HasPrefix(got[0].What, what) {
					return
				}
			case <-timeout:
				t.Fatalf("no problem %q", what)
			}
		}
	}
	want(problem.Outage, "the certificate expired at ")
	files.replace(pair(t, 2))
	want(0, "")
	files.replace([]byte("x"), []byte("y"))
	want(problem.Degraded, "the new certificate cannot be used, and the old one stays in use: ")
	files.replace(pair(t, 3))
	want(0, "")
}
