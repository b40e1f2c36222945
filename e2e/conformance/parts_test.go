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
	ip      string
	client  *api.Client
	http    string // host:port
	grpc    string // host:port
	token   string // may do everything; "" without ACLs
}

// startConsul starts a server and waits until its mesh has a certificate
// authority. The server takes more connections than by default: the queries of
// an Usher that was killed hold theirs until they time out, minutes later.
func startConsul(t *testing.T, ip, version string, args ...string) *consulServer {
	t.Helper()
	s := &consulServer{version: version, ip: ip, http: net.JoinHostPort(ip, "8500"), grpc: net.JoinHostPort(ip, "8502")}
	client, err := api.NewClient(&api.Config{Address: s.http})
	if err != nil {
		t.Fatal(err)
	}
	s.client = client
	start(t, part{name: "consul", path: filepath.Join(toolsDir(), "consul-"+version, "consul"), cure: "make tools", args: append([]string{
		"agent", "-dev", "-bind", ip, "-client", ip, "-node", serverNode, "-dns-port", "-1", "-log-level", "warn",
		"-hcl", "ports { grpc_tls = -1 } limits { http_max_conns_per_client = 2000 } disable_update_check = true",
	}, args...)})
	eventually(t, "the mesh has roots", func() error {
		roots, _, err := client.Connect().CARoots(nil)
		if err == nil && len(roots.Roots) == 0 {
			err = errors.New("none yet")
		}
		return err
	})
	return s
}

// startGuardedConsul starts a server that denies what no token allows.
func startGuardedConsul(t *testing.T, ip, version string) *consulServer {
	t.Helper()
	const token = "5ec2e7a0-0000-4000-8000-000000000001"
	s := startConsul(t, ip, version, "-hcl",
		`acl { enabled = true, default_policy = "deny", tokens { initial_management = "`+token+`", agent = "`+token+`" } }`)
	s.token = token
	s.client.AddHeader("X-Consul-Token", token)
	eventually(t, "the management token counts", func() error {
		_, _, err := s.client.ACL().TokenReadSelf(nil)
		return err
	})
	return s
}

// startUsher starts Usher on a port beside a Consul, and gives its xDS port once
// it listens.
func startUsher(t *testing.T, consul *consulServer, port int, args ...string) string {
	t.Helper()
	xds := net.JoinHostPort(consul.ip, fmt.Sprint(port))
	usher := "../../bin/usher"
	if v := os.Getenv("USHER_BIN"); v != "" {
		usher = v
	}
	start(t, part{name: "usher", path: usher, cure: "make build", args: append([]string{
		"serve", "--consul-http-addr", consul.http, "--xds-addr", xds,
		"--admin-addr", net.JoinHostPort(consul.ip, fmt.Sprint(port+1)),
	}, args...), env: []string{"CONSUL_HTTP_TOKEN=" + consul.token}})
	eventually(t, "usher listens", func() error {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", xds)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return xds
}

// part is a program that a test needs.
type part struct {
	name, path string
	cure       string // the command that makes it where it is missing
	args       []string
	env        []string // besides PATH, all that it gets
}

// start starts a part, which ends with the test. Its output is printed when the
// test has failed.
func start(t *testing.T, p part) {
	t.Helper()
	path, err := filepath.Abs(p.path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing: run %q", path, p.cure)
	}
	output := filepath.Join(t.TempDir(), p.name+".log")
	file, err := os.Create(output)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// Not the test's context: that ends before the cleanups, which still talk
	// with the part.
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, p.args...)
	cmd.Stdout, cmd.Stderr = file, file
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, p.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatalf("start %s: %v", p.name, err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("end of %s:\n%s", p.name, tail(output))
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
