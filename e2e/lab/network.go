//go:build e2e

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The addresses of the lab: the client's is from a documentation range
// (RFC 5737), the others from the benchmarking range (RFC 2544).
const (
	ClientIP   = "203.0.113.7"
	BalancerIP = "198.18.0.10"
	GatewayIP  = "198.18.0.20"
	Gateway2IP = "198.18.0.21"
	ServiceIP  = "198.18.0.30"
	ControlIP  = "198.18.0.40"
)

// Network is a network of hosts on one switch. Nothing in it can reach the machine
// that runs the test, or the other way round: Go code enters a host with
// Host.Do, Host.Dial and Host.Listen.
type Network struct {
	Switch *Namespace

	Client   *Host // it makes requests
	Balancer *Host // the network load balancer
	Gateway  *Host // the first instance of the gateway
	Service  *Host // the service and its sidecar
	Control  *Host // Consul's server
}

// Host is one machine of a lab, with loopback and one address.
type Host struct {
	*Namespace
	Name string
	IP   netip.Addr
}

// NewNetwork creates a network with five hosts.
func NewNetwork(t *testing.T) *Network {
	t.Helper()
	l := &Network{Switch: newNamespace(t)}
	l.Switch.RunIP(t, "link add name bridge type bridge mcast_snooping 0", "link set bridge up")
	l.Client = l.AddHost(t, "client", ClientIP)
	l.Balancer = l.AddHost(t, "balancer", BalancerIP)
	l.Gateway = l.AddHost(t, "gateway", GatewayIP)
	l.Service = l.AddHost(t, "service", ServiceIP)
	l.Control = l.AddHost(t, "control", ControlIP)
	return l
}

// AddHost plugs one more host into the lab's switch.
func (l *Network) AddHost(t *testing.T, name, ip string) *Host {
	t.Helper()
	h := &Host{Namespace: newNamespace(t), Name: name, IP: netip.MustParseAddr(ip)}
	l.Switch.RunIP(t,
		fmt.Sprintf("link add name %s type veth peer name eth0 netns %s", name, h.path()),
		fmt.Sprintf("link set %s master bridge up", name))
	h.RunIP(t,
		"link set lo up",
		fmt.Sprintf("address add %s/32 dev eth0", ip),
		"link set eth0 up",
		"route add 198.18.0.0/15 dev eth0",
		"route add 203.0.113.0/24 dev eth0")
	return h
}

// Addr is the host's address with a port.
func (h *Host) Addr(port int) string {
	return netip.AddrPortFrom(h.IP, uint16(port)).String()
}

// Dial connects from inside the host; address is an IP address with a port. It
// fits http.Transport.DialContext.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return h.dialBy(ctx, new(net.Dialer), network, address)
}

// DialFrom connects over TCP from a source of the host's; zero is any.
func (h *Host) DialFrom(ctx context.Context, source netip.AddrPort, address string) (net.Conn, error) {
	dialer := new(net.Dialer)
	if source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(source)
	}
	return h.dialBy(ctx, dialer, "tcp", address)
}

func (h *Host) dialBy(ctx context.Context, dialer *net.Dialer, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := h.Do(func() error {
		var err error
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// httpClient makes requests from inside the host.
func (h *Host) httpClient(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{DialContext: h.Dial}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// get returns the body of an answer; one other than 200 is an error with its text.
func get(client *http.Client, url string) (string, error) {
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return string(body), err
}

// Path is the variable PATH of a process that finds these programs, by their names, before those of the test.
func Path(programs ...string) string {
	var dirs []string
	for _, program := range programs {
		dirs = append(dirs, filepath.Dir(program))
	}
	return "PATH=" + strings.Join(append(dirs, os.Getenv("PATH")), ":")
}

// addIPv6 adds an address of the lab's IPv6 network to the host.
func (h *Host) addIPv6(t *testing.T, ip string) netip.Addr {
	t.Helper()
	h.RunIP(t, fmt.Sprintf("address add %s/64 dev eth0 nodad", ip))
	return netip.MustParseAddr(ip)
}

// Listen opens a TCP listener inside the host until the test ends.
func (h *Host) Listen(t *testing.T, address string) net.Listener {
	t.Helper()
	var listener net.Listener
	err := h.Do(func() error {
		var err error
		listener, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatalf("listen in host %s: %v", h.Name, err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

// Namespace is a network namespace without a name: it lives as long as the
// test or a process in it, so that even a killed test leaves nothing behind.
type Namespace struct {
	file *os.File
}

func newNamespace(t *testing.T) *Namespace {
	t.Helper()
	var n *Namespace
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace (the e2e tests need root): %w", err)
		}
		file, err := currentNamespace()
		n = &Namespace{file: file}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.file.Close() })
	return n
}

// Do runs f inside the namespace. Sockets that f opens and processes that it
// starts stay there; goroutines that it starts do not enter.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return f()
	})
}

// path names the namespace for the ip command, while this process lives.
func (n *Namespace) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd())
}

// RunIP runs lines of the ip command inside the namespace.
func (n *Namespace) RunIP(t *testing.T, lines ...string) {
	t.Helper()
	cmd := exec.Command(testprocess.Debian(t, "ip", "iproute2"), "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	var output []byte
	err := n.Do(func() error {
		var err error
		output, err = cmd.CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("ip %q: %v: %s", lines, err, output)
	}
}

// onThread runs f on a thread that may change its network namespace, and takes
// the thread back to where it was. A thread that cannot go back is not used
// again.
func onThread(f func() error) error {
	runtime.LockOSThread()
	home, err := currentNamespace()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		panic(fmt.Sprintf("leave the network namespace: %v", back))
	}
	runtime.UnlockOSThread()
	return err
}

func currentNamespace() (*os.File, error) {
	return os.Open("/proc/thread-self/ns/net")
}
