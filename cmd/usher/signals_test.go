package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/logbuffer"
)

// testServe is a serve that runs on files.
type testServe struct {
	t           *testing.T
	log         logbuffer.Buffer
	config      string
	reload, end chan os.Signal
	ended       chan error
	conn        *grpc.ClientConn
	admin       string
	socket      string
}

func startServe(t *testing.T, drainTime time.Duration) *testServe {
	t.Helper()
	dir := t.TempDir()
	s := &testServe{
		t: t, config: filepath.Join(dir, "usher.hcl"),
		reload: make(chan os.Signal, 1), end: make(chan os.Signal, 2), ended: make(chan error, 1),
	}
	entries := filepath.Join(dir, "config")
	if err := os.Mkdir(entries, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		s.config: "usher { proxy_protocol { mode = \"off\" } }\n",
		filepath.Join(entries, "gw.hcl"): `
			kind = "ingress-gateway"
			name = "edge"
			listeners { port = 8080 services { name = "web" } }`,
		filepath.Join(entries, "web.hcl"): `service { name = "web" port = 9090 address = "127.0.0.1" }`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.socket = filepath.Join(dir, "xds.sock")
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		s.ended <- serve(ctx, serveOptions{
			configDir: entries, configFile: s.config, xdsAddr: "unix://" + s.socket, admin: adminOptions{addr: "127.0.0.1:0"},
			drainTime: drainTime, logOut: &s.log, logLevel: "info", logFormat: "text",
			signals: signals{reload: s.reload, end: s.end},
		})
	}()
	conn, err := grpc.NewClient("unix://"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	s.conn = conn
	t.Cleanup(func() {
		conn.Close()
		cancel()
		s.wantEnd()
		http.DefaultClient.CloseIdleConnections()
	})
	s.admin = s.waitLog(`msg=serving .*admin=(\S+)`)
	return s
}

// waitLog waits for a line of the log, and returns what its group matches.
func (s *testServe) waitLog(line string) string {
	s.t.Helper()
	pattern := regexp.MustCompile(line)
	for end := time.Now().Add(20 * time.Second); ; {
		if found := pattern.FindStringSubmatch(s.log.String()); found != nil {
			return found[len(found)-1]
		}
		if time.Now().After(end) {
			s.t.Fatalf("%s is not logged:\n%s", line, s.log.String())
		}
		time.Sleep(time.Millisecond)
	}
}

func (s *testServe) wantEnd() {
	s.t.Helper()
	select {
	case err := <-s.ended:
		if err != nil {
			s.t.Errorf("serve ended with %v", err)
		}
		s.ended <- nil
	case <-time.After(20 * time.Second):
		s.t.Fatalf("serve does not end:\n%s", s.log.String())
	}
}

func (s *testServe) connect() *fakeenvoy.Envoy {
	s.t.Helper()
	e := fakeenvoy.Connect(s.t, s.conn, fakeenvoy.Delta, fakeenvoy.Options{Node: &corev3.Node{Id: "edge", Cluster: "edge"}})
	e.Subscribe(resource.ClusterType)
	e.Ack(e.Next())
	return e
}

func (s *testServe) readyz() string {
	s.t.Helper()
	return s.get("/readyz")
}

// get returns the status and the body of a page of the admin port.
func (s *testServe) get(path string) string {
	s.t.Helper()
	response, err := http.Get("http://" + s.admin + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	return response.Status + "\n" + string(text)
}

func TestTheFirstSignalDrainsAndTheSecondEnds(t *testing.T) {
	s := startServe(t, 10*time.Minute)
	envoys := []*fakeenvoy.Envoy{s.connect(), s.connect()}
	s.end <- syscall.SIGTERM
	s.waitLog(`shutting down; a second signal ends usher at once" envoys=2 drain_time=10m0s`)
	if got := s.readyz(); got != "503 Service Unavailable\nnot ready: usher is shutting down\n" {
		t.Errorf("/readyz says %s", got)
	}
	s.waitLog(`msg="envoy disconnected"`) // the first, at once
	s.reload <- syscall.SIGHUP            // ends nothing
	select {
	case err := <-s.ended:
		t.Fatalf("it ended with %v while an Envoy had time left", err)
	default:
	}
	s.end <- syscall.SIGTERM
	s.wantEnd()
	for _, e := range envoys {
		e.ExpectEnd(codes.Unavailable)
	}
	s.waitLog(`msg="second signal: shutting down at once"`)
	s.waitLog(`msg="shut down" .*streams_cut=1`)
}

func TestServeEndsWhenTheLastEnvoyHasGone(t *testing.T) {
	s := startServe(t, 5*time.Second)
	e := s.connect()
	s.end <- os.Interrupt
	s.wantEnd()
	if err := e.ExpectEnd(codes.Unavailable); !strings.Contains(err.Error(), "usher is shutting down; Envoy connects again by itself") {
		t.Errorf("the stream ended with %v", err)
	}
	s.waitLog(`msg="shut down" .*streams_cut=0`)
}

// gRPC gives a connection without a handshake two minutes, and its server does not
// stop before.
func TestConnectionWithoutAHandshakeDoesNotDelayTheEnd(t *testing.T) {
	s := startServe(t, 5*time.Second)
	s.connect()
	for range 3 {
		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	s.connect() // comes after those
	s.end <- syscall.SIGTERM
	s.wantEnd()
	s.waitLog(`msg="shut down" .*streams_cut=0`)
}

// TestSIGHUPReadsFilesAgain replaces a directory above the watched one. A follower
// does not see that without SIGHUP.
func TestSIGHUPReadsFilesAgain(t *testing.T) {
	s := startServe(t, 0)
	dir := filepath.Dir(s.config)
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.config, []byte("gateway \"edge\" { usher { proxy_protocol { mode = \"off\" } } }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.reload <- syscall.SIGHUP
	s.waitLog(`msg="reloading files" signal=SIGHUP paths="\[\S+/config \S+/usher.hcl\]"`)
	s.waitLog(`msg="config file read" .*gateways=1`)
}
