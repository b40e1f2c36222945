//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// configDir is a directory for --config-dir with the gateway of fakeGateway, in
// a directory.
func configDir(t *testing.T, in string) string {
	t.Helper()
	dir := filepath.Join(in, "config")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lab.WriteFile(t, dir, "gateway.hcl", `
kind = "ingress-gateway"
name = "ingress-gateway"
listeners { port = 8080 services { name = "static-server" } }
`)
	lab.WriteFile(t, dir, "service.hcl", `service { name = "static-server" port = 9090 address = "127.0.0.1" }`)
	return dir
}

// addService gives the gateway one more service, and so Envoys one more cluster.
func addService(t *testing.T, dir string) {
	t.Helper()
	lab.WriteFile(t, dir, "other.hcl", `service { name = "other" port = 9091 address = "127.0.0.1" }`)
	lab.WriteFile(t, dir, "gateway.hcl", `
kind = "ingress-gateway"
name = "ingress-gateway"
listeners { port = 8080 services { name = "static-server" } }
listeners { port = 8081 services { name = "other" } }
`)
}

// wantOther wants the cluster of that service as the next response.
func wantOther(t *testing.T, e *fakeenvoy.Envoy) {
	t.Helper()
	r := e.Next()
	if r.Type != resource.ClusterType || len(r.Names) != 1 || !strings.HasPrefix(r.Names[0], "other.") {
		t.Errorf("received %s %q, want the cluster of the new service", r.Type, r.Names)
	}
	e.Ack(r)
}

// wantFed wants a new stream served.
func wantFed(t *testing.T, h *lab.Host) *fakeenvoy.Envoy {
	t.Helper()
	e := lab.ConnectFakeEnvoy(t, lab.XDSPort{From: h}.Dial(t), fakeenvoy.Delta, "")
	e.Subscribe(resource.ClusterType)
	e.Ack(e.Next())
	return e
}

// TestUsherRunsWhileItsLogIsNotRead has a log collector that stops reading
// Usher's stderr, comes back, and goes away. Usher serves Envoys all the time,
// also when its log buffer is full, and the log says what is missing.
func TestUsherRunsWhileItsLogIsNotRead(t *testing.T) {
	t.Parallel()
	h := lab.NewIsolatedHost(t)
	fifo := filepath.Join(testprocess.NewDir(t), "log")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(fifo, os.O_RDWR, 0) // for writing, too: so no open waits for the other end
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	dir := configDir(t, testprocess.NewDir(t))
	u := lab.StartUsher(t, lab.UsherOptions{Host: h, Log: fifo, Args: []string{"--config-dir", dir, "--log-level", "debug"}})
	living := wantFed(t, h)

	// Each request is a line of more than a kilobyte.
	noise := "type.googleapis.com/" + strings.Repeat("x", 1000)
	testprocess.Eventually(t, "usher loses lines", testprocess.StartDeadline, func() error {
		for range 100 {
			living.Subscribe(noise)
		}
		if u.MetricSum(t, "usher_log_lines_dropped_total") == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	wantFed(t, h)
	addService(t, dir)
	wantOther(t, living)

	if err := log.SetReadDeadline(time.Now().Add(testprocess.ChangeDeadline)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(log)
	for !strings.Contains(lines.Text(), "log lines dropped") {
		if !lines.Scan() {
			t.Fatalf("the log does not say what is missing: %v", lines.Err())
		}
	}
	t.Log(lines.Text())
	log.Close()
	for range 100 {
		living.Subscribe(noise)
	}
	wantFed(t, h)
	u.Signal(t, syscall.SIGTERM)
	if code := u.Wait(t); code != 0 {
		t.Errorf("usher ended with %d, want 0", code)
	}
}

// TestUsherEndsWithoutAReaderOfItsLog stops an Usher whose log is full.
func TestUsherEndsWithoutAReaderOfItsLog(t *testing.T) {
	t.Parallel()
	h := lab.NewIsolatedHost(t)
	fifo := filepath.Join(testprocess.NewDir(t), "log")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	u := lab.StartUsher(t, lab.UsherOptions{Host: h, Log: fifo, Args: []string{"--config-dir", configDir(t, testprocess.NewDir(t)), "--log-level", "debug"}})
	e := wantFed(t, h)
	for range 500 {
		e.Subscribe("type.googleapis.com/" + strings.Repeat("x", 1000))
	}
	wantFed(t, h)
	u.Signal(t, syscall.SIGTERM)
	if code := u.Wait(t); code != 0 {
		t.Errorf("usher ended with %d, want 0", code)
	}
}

// TestSIGHUPIsAReload reloads Usher as users reload Consul. A parent directory
// was replaced, which Usher does not notice without the signal. The stream of an
// Envoy goes on, and brings the change.
func TestSIGHUPIsAReload(t *testing.T) {
	t.Parallel()
	h := lab.NewIsolatedHost(t)
	up := filepath.Join(testprocess.NewDir(t), "up")
	u := lab.StartUsher(t, lab.UsherOptions{Host: h, Args: []string{"--config-dir", configDir(t, up)}})
	e := wantFed(t, h)
	if err := os.Rename(up, up+".old"); err != nil {
		t.Fatal(err)
	}
	dir := configDir(t, up)
	addService(t, dir)
	u.Signal(t, syscall.SIGHUP)
	u.WaitOutput(t, `msg="reloading files" signal=SIGHUP paths=[`+dir+`]`)
	wantOther(t, e)
}

// TestSIGTERMDrains stops an Usher with many connected Envoys: they leave one
// after the other, and it accepts no new ones meanwhile.
func TestSIGTERMDrains(t *testing.T) {
	t.Parallel()
	const envoys = 60
	h := lab.NewIsolatedHost(t)
	u := lab.StartUsher(t, lab.UsherOptions{Host: h, Args: []string{"--config-dir", configDir(t, testprocess.NewDir(t)), "--drain-time", "4s"}})
	var connected []*fakeenvoy.Envoy
	for range envoys {
		connected = append(connected, wantFed(t, h))
	}
	u.Signal(t, syscall.SIGTERM)
	u.WaitOutput(t, fmt.Sprintf(`msg="shutting down; a second signal ends usher at once" envoys=%d drain_time=4s`, envoys))
	u.WantNotReady(t, "usher is shutting down")
	late := discoveryv3.NewAggregatedDiscoveryServiceClient(lab.XDSPort{From: h}.Dial(t))
	stream, err := late.DeltaAggregatedResources(t.Context())
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a new stream: %v, want Unavailable", err)
	}
	if code := u.Wait(t); code != 0 {
		t.Errorf("usher ended with %d, want 0", code)
	}
	for _, e := range connected {
		if err := e.ExpectEnd(codes.Unavailable); !strings.Contains(err.Error(), "usher is shutting down; Envoy connects again by itself") {
			t.Errorf("a stream ended with %v", err)
		}
	}
	u.WaitOutput(t, `msg="shut down"`)

	var ends []time.Time
	for _, line := range regexp.MustCompile(`time=(\S+) level=INFO msg="envoy disconnected"`).FindAllStringSubmatch(u.Output(t), -1) {
		at, err := time.Parse(time.RFC3339Nano, line[1])
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, at)
	}
	if len(ends) != envoys {
		t.Fatalf("%d Envoys disconnected, want %d", len(ends), envoys)
	}
	first, middle, last := ends[0], ends[envoys/2], ends[envoys-1]
	t.Logf("half of the Envoys left after %v, all after %v", middle.Sub(first), last.Sub(first))
	if middle.Sub(first) < time.Second || last.Sub(middle) < time.Second {
		t.Errorf("Envoys left after 0s, %v and %v, want that spread over 4s", middle.Sub(first), last.Sub(first))
	}
}

// TestEnvoyMovesToAnotherUsher has two Ushers behind one Service, and replaces
// the one that a real Envoy is connected to. The Envoy's next stream reaches the
// other one, and gets a change from there.
func TestEnvoyMovesToAnotherUsher(t *testing.T) {
	t.Parallel()
	for _, version := range []string{lab.EnvoyNew, lab.EnvoyOld} {
		t.Run("envoy "+version, func(t *testing.T) {
			t.Parallel()
			network := lab.NewNetwork(t)
			dir := configDir(t, testprocess.NewDir(t))
			var ushers []*lab.Usher
			service := &readyService{}
			for _, h := range []*lab.Host{network.Gateway, network.Service} {
				u := lab.StartUsher(t, lab.UsherOptions{Host: h, XDSAddr: h.Addr(18000), Args: []string{"--config-dir", dir, "--insecure-plaintext"}})
				ushers = append(ushers, u)
				service.add(u, h)
			}
			service.start(t, network.Client, "127.0.0.1:18000")
			e := lab.StartBootstrapped(t, lab.BootstrapOptions{Host: network.Client, Envoy: version, XDSAddr: "127.0.0.1:18000"})
			e.WaitListener(t, 8080)
			if n := ushers[0].MetricSum(t, "usher_xds_streams"); n != 1 {
				t.Fatalf("the first Usher has %v streams, want the Envoy's", n)
			}
			begin := time.Now()
			if ushers[0].Stop(t); strings.Contains(ushers[0].Output(t), "streams_cut=1") {
				t.Error("the Envoy's stream was cut off")
			}
			t.Logf("the Usher ended after %v", time.Since(begin).Round(time.Millisecond))
			testprocess.Eventually(t, "the Envoy is connected to the other Usher", testprocess.ChangeDeadline, func() error {
				if n := ushers[1].MetricSum(t, "usher_xds_streams"); n != 1 {
					return fmt.Errorf("it has %v streams", n)
				}
				return nil
			})
			t.Logf("the Envoy was there after %v", time.Since(begin).Round(time.Millisecond))
			addService(t, dir)
			e.WaitListener(t, 8081)
		})
	}
}

// readyService is what a Service of Kubernetes is to an Envoy: each connection
// is led to an Usher that is ready.
type readyService struct {
	mu     sync.Mutex
	ushers []*lab.Usher
	hosts  []*lab.Host
}

func (s *readyService) add(u *lab.Usher, h *lab.Host) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ushers, s.hosts = append(s.ushers, u), append(s.hosts, h)
}

// replace puts an Usher in the place of the ith, on the same host.
func (s *readyService) replace(i int, u *lab.Usher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ushers = slices.Clone(s.ushers)
	s.ushers[i] = u
}

// start serves until the test ends.
func (s *readyService) start(t *testing.T, on *lab.Host, address string) {
	t.Helper()
	listener := on.Listen(t, address)
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		listener.Close()
		work.Wait()
	})
	work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			work.Go(func() { s.relay(ctx, conn) })
		}
	})
}

// relay copies both ways until one of the ends closes.
func (s *readyService) relay(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	ushers, hosts := s.ushers, s.hosts
	s.mu.Unlock()
	for i, u := range ushers {
		if _, err := u.Admin("/readyz"); err != nil {
			continue
		}
		to, err := hosts[i].Dial(ctx, "tcp", hosts[i].Addr(18000))
		if err != nil {
			return
		}
		defer to.Close()
		ended := make(chan struct{}, 2)
		for _, way := range [][2]net.Conn{{conn, to}, {to, conn}} {
			go func() { _, _ = io.Copy(way[0], way[1]); ended <- struct{}{} }()
		}
		select {
		case <-ended:
		case <-ctx.Done():
		}
		return
	}
}

// TestSIGTERMTwice ends at once.
func TestSIGTERMTwice(t *testing.T) {
	t.Parallel()
	h := lab.NewIsolatedHost(t)
	u := lab.StartUsher(t, lab.UsherOptions{Host: h, Args: []string{"--config-dir", configDir(t, testprocess.NewDir(t)), "--drain-time", "10m"}})
	for range 3 {
		wantFed(t, h)
	}
	u.Signal(t, syscall.SIGTERM)
	u.WaitOutput(t, "shutting down; a second signal ends usher at once")
	u.Signal(t, syscall.SIGINT)
	if code := u.Wait(t); code != 0 {
		t.Errorf("usher ended with %d, want 0", code)
	}
	u.WaitOutput(t, "second signal: shutting down at once")
}

// TestAdminPortIsLimited opens more connections to the admin port than Usher may
// open files. Probes are answered, and an Envoy can connect.
func TestAdminPortIsLimited(t *testing.T) {
	t.Parallel()
	h := lab.NewIsolatedHost(t)
	u := lab.StartUsher(t, lab.UsherOptions{Host: h, Files: 1024, Args: []string{"--config-dir", configDir(t, testprocess.NewDir(t))}})
	u.HTTPClient.CloseIdleConnections()
	for range 1500 {
		conn, err := h.Dial(t.Context(), "tcp", "127.0.0.1:18001")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		begin := time.Now()
		if _, err := u.Admin(path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		t.Logf("%s is answered after %v", path, time.Since(begin).Round(time.Millisecond))
	}
	wantFed(t, h)
	if open := u.MetricSum(t, "process_open_fds"); open > 200 {
		t.Errorf("usher has %v files open", open)
	}
	if strings.Contains(u.Output(t), "too many open files") {
		t.Error("usher had too many files open")
	}
}

// TestAdminPortIsLogged makes the admin port reachable from other hosts, as
// probes in Kubernetes need it.
func TestAdminPortIsLogged(t *testing.T) {
	t.Parallel()
	h := lab.NewIsolatedHost(t)
	u := lab.LaunchUsher(t, lab.UsherOptions{Host: h, Args: []string{"--config-dir", configDir(t, testprocess.NewDir(t)), "--admin-addr", "0.0.0.0:18001"}})
	u.WaitReady(t)
	u.WaitOutput(t, `level=WARN msg="admin port is reachable beyond loopback`)
}
