//go:build e2e

package conformance

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
)

// The deadlines of a wait, generous because a machine may be slow.
const (
	startDeadline = 60 * time.Second
	pollInterval  = 10 * time.Millisecond
)

// consulVersion is the Consul that Usher must equal; the other one is older, and
// must be equalled in what it can do.
const (
	consulVersion    = "1.22.0"
	oldConsulVersion = "1.15.1"
)

// loopback picks an address of 127.0.0.0/8 for one run of the suite, so that
// runs at the same time share no port.
func loopback() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
}

// consulServer is a running Consul.
type consulServer struct {
	version string
	client  *api.Client
	http    string // host:port
	grpc    string // host:port
}

// startConsul starts a server and waits until its mesh has a certificate
// authority. The server takes more connections than by default: the queries of
// an Usher that was killed hold theirs until they time out, minutes later.
func startConsul(t *testing.T, ip, version string, args ...string) *consulServer {
	t.Helper()
	s := &consulServer{version: version, http: net.JoinHostPort(ip, "8500"), grpc: net.JoinHostPort(ip, "8502")}
	client, err := api.NewClient(&api.Config{Address: s.http})
	if err != nil {
		t.Fatal(err)
	}
	s.client = client
	start(t, "consul", filepath.Join(toolsDir(), "consul-"+version, "consul"), "make tools", append([]string{
		"agent", "-dev", "-bind", ip, "-client", ip, "-node", "server", "-dns-port", "-1", "-log-level", "warn",
		"-hcl", "ports { grpc_tls = -1 } limits { http_max_conns_per_client = 2000 } disable_update_check = true",
	}, args...))
	eventually(t, "the mesh has roots", func() error {
		roots, _, err := client.Connect().CARoots(nil)
		if err == nil && len(roots.Roots) == 0 {
			err = errors.New("none yet")
		}
		return err
	})
	return s
}

// startUsher starts Usher on a port of the address, beside a Consul, and gives
// its xDS port once it listens.
func startUsher(t *testing.T, consul *consulServer, ip string, port int) string {
	t.Helper()
	xds := net.JoinHostPort(ip, fmt.Sprint(port))
	usher := "../../bin/usher"
	if v := os.Getenv("USHER_BIN"); v != "" {
		usher = v
	}
	start(t, "usher", usher, "make build", []string{
		"serve", "--consul-http-addr", consul.http, "--xds-addr", xds,
		"--admin-addr", net.JoinHostPort(ip, fmt.Sprint(port+1)),
	})
	eventually(t, "usher listens", func() error {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", xds)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return xds
}

// start starts a part, which ends with the test. Its output is printed when the
// test has failed.
func start(t *testing.T, name, path, cure string, args []string) {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing: run %q", path, cure)
	}
	output := filepath.Join(t.TempDir(), name+".log")
	file, err := os.Create(output)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// Not the test's context: that ends before the cleanups, which still talk
	// with the part.
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = file, file
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatalf("start %s: %v", name, err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("end of %s:\n%s", name, tail(output))
		}
	})
}

func toolsDir() string {
	if dir := os.Getenv("USHER_TOOLS"); dir != "" {
		return dir
	}
	return "../../.tools"
}

// tail is the end of a file.
func tail(path string) string {
	const most = 4 << 10
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-most):])
}

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	end := time.After(startDeadline)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-end:
			t.Fatalf("%s: not within %v: %v", what, startDeadline, err)
		case <-tick.C:
		}
	}
}
