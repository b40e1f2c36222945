//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/hashicorp/consul/api"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestThousandServicesOverPlainHTTP reaches Consul over plain HTTP, as is usual
// beside an agent, with a gateway of 1,000 services: many more than the agent
// allows connections. All are served, also after Usher is killed and starts
// again. The agent never refuses a connection, and a change arrives within the
// time that the log and the status say.
func TestThousandServicesOverPlainHTTP(t *testing.T) {
	t.Parallel()
	const services, connections, limit = 1000, 90, 200
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	ports := make([]int, services)
	for i := range ports {
		ports[i] = 20000 + i
	}
	registerMany(t, l, ports)
	registerDefinition(t, l.Consul, gatewayDefinition(l.Gateway))
	// With Consul's bootstrap, which has many stats_tags, Envoy itself would be
	// busy for a minute or more with so many clusters.
	gateway := lab.StartBootstrapped(t, lab.BootstrapOptions{Host: l.Gateway, Envoy: lab.EnvoyNew, XDSAddr: "127.0.0.1:18000"})
	counted := countConsulConnections(t, l)
	o := lab.UsherOptions{Host: l.Gateway, Consul: l.Consul}
	usher := lab.StartUsher(t, o)
	waitEndpoints(t, gateway, ports, testprocess.StartDeadline)
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	wantTurns(t, usher, 2*services)

	usher.Kill()
	usher = lab.StartUsher(t, o)
	usher.WaitStream(t)
	// Everything is known again when a new service arrives.
	ports = append(ports, 19999)
	registerMany(t, l, ports)
	waitEndpoints(t, gateway, ports, testprocess.StartDeadline)

	late := statedBound(t, usher)
	second := lab.ConnectFakeEnvoy(t, lab.XDSPort{From: l.Gateway}.Dial(t), fakeenvoy.Delta, "")
	second.Subscribe(resource.ClusterType)
	second.Subscribe(resource.EndpointType, "*")
	awaitPorts(t, second, changed(ports, 0, 1))
	for round := range 3 {
		for i := round; i < len(ports); i += 20 {
			ports[i] += 2000
			registerNumbered(t, l, i, ports[i])
		}
		start := time.Now()
		awaitPorts(t, second, changed(ports, round, 20))
		took := time.Since(start)
		t.Logf("%d changes at once arrived within %v of the last; stated are %v", len(ports)/20, took.Round(time.Millisecond), late)
		if took > late+time.Second {
			t.Errorf("a change was seen %v late, want at most the stated %v, and the time to deliver it", took, late)
		}
	}
	waitEndpoints(t, gateway, ports, testprocess.StartDeadline)
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)

	wantTurns(t, usher, 2*services)
	wantNoRefusal(t, usher)
	most := counted()
	t.Logf("Consul had up to %d connections from Usher's host, Usher up to %d to Consul", most.consul, most.usher)
	if most.usher == 0 || most.usher > connections || most.consul >= limit {
		t.Errorf("at most %d connections at Usher and less than %d at Consul are wanted", connections, limit)
	}
}

// registerMany puts the lab's service and one more for each port on the gateway's
// listener.
func registerMany(t *testing.T, l *lab.Lab, ports []int) {
	t.Helper()
	entry := &api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: "ingress-gateway", Listeners: []api.IngressListener{
		{Port: 8080, Protocol: "http", Services: []api.IngressService{{Name: "static-server"}}},
	}}
	for i, port := range ports {
		registerNumbered(t, l, i, port)
		entry.Listeners[0].Services = append(entry.Listeners[0].Services, api.IngressService{Name: crowdService(i)})
	}
	defaults := &api.ProxyConfigEntry{Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal, Config: map[string]any{"protocol": "http"}}
	for _, e := range []api.ConfigEntry{defaults, entry} {
		if _, _, err := l.Consul.Client.ConfigEntries().Set(e, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func crowdService(i int) string { return fmt.Sprintf("svc-%04d", i) }

// registerNumbered registers the sidecar of a service without processes.
func registerNumbered(t *testing.T, l *lab.Lab, i, port int) {
	t.Helper()
	if err := tryToRegister(l, i, port); err != nil {
		t.Fatal(err)
	}
}

func tryToRegister(l *lab.Lab, i, port int) error {
	name := crowdService(i)
	_, err := l.Consul.Client.Catalog().Register(&api.CatalogRegistration{
		Node: fmt.Sprintf("crowd-%d", i/50), Address: "198.19.0.1", Service: &api.AgentService{
			Kind: api.ServiceKindConnectProxy, ID: name + "-sidecar-proxy", Service: name + "-sidecar-proxy",
			Address: "198.19.0.1", Port: port, Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: name},
		},
	}, nil)
	return err
}

// waitEndpoints waits until Envoy has exactly those services, each at its port.
func waitEndpoints(t *testing.T, e *lab.Envoy, ports []int, deadline time.Duration) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%s has the endpoints of %d services", e.Name, len(ports)), deadline, func() error {
		clusters, err := e.Admin("/clusters")
		if err != nil {
			return err
		}
		found := 0
		for line := range strings.Lines(clusters) {
			var i, port int
			_, rest, _ := strings.Cut(line, "::")
			if _, err := fmt.Sscanf(line, "svc-%d.", &i); err != nil || !strings.Contains(rest, "::weight::") {
				continue
			}
			if _, err := fmt.Sscanf(rest, "198.19.0.1:%d::", &port); err != nil || i >= len(ports) || port != ports[i] {
				return fmt.Errorf("%s", strings.TrimSpace(line))
			}
			found++
		}
		if found != len(ports) {
			return fmt.Errorf("%d have endpoints", found)
		}
		return nil
	})
}

// changed returns the ports of every step-th service by their names.
func changed(ports []int, from, step int) map[string]int {
	of := map[string]int{}
	for i := from; i < len(ports); i += step {
		of[crowdService(i)] = ports[i]
	}
	return of
}

// awaitPorts waits until an Envoy has been sent each service at its port.
func awaitPorts(t *testing.T, e *fakeenvoy.Envoy, ports map[string]int) {
	t.Helper()
	for len(ports) > 0 {
		r := e.Next()
		e.Ack(r)
		if r.Type != resource.EndpointType {
			continue
		}
		for _, body := range r.Bodies {
			var a endpointv3.ClusterLoadAssignment
			if err := proto.Unmarshal(body, &a); err != nil {
				t.Fatal(err)
			}
			name, _, _ := strings.Cut(a.ClusterName, ".")
			for _, l := range a.Endpoints {
				port := l.LbEndpoints[0].GetEndpoint().GetAddress().GetSocketAddress().GetPortValue()
				if int(port) == ports[name] {
					delete(ports, name)
				}
			}
		}
	}
}

// wantTurns wants that log and status say once that at least so many queries
// take turns, and what to do about it.
func wantTurns(t *testing.T, u *lab.Usher, queries float64) {
	t.Helper()
	if n := strings.Count(u.Output(t), "take turns"); n != 1 {
		t.Errorf("the log says %d times that queries take turns, want once", n)
	}
	if n := u.MetricSum(t, "usher_consul_queries_sharing_connections"); n < queries {
		t.Errorf("the metric has %v queries that take turns, want at least %v", n, queries)
	}
	ready, err := u.Admin("/readyz")
	if err != nil || !strings.HasPrefix(ready, "ready\n") || !strings.Contains(ready, statedBound(t, u).String()+" late: use https:// for Consul") {
		t.Errorf("/readyz says %q (%v), want that it is ready, and would be faster over https://", ready, err)
	}
}

// statedBound is how late a change may be seen, as the log has it.
func statedBound(t *testing.T, u *lab.Usher) time.Duration {
	t.Helper()
	log := u.Output(t)
	_, after, found := strings.Cut(log, "use https:// for Consul to see every change at once")
	if !found {
		t.Fatalf("the log does not say how late a change may be seen:\n%s", log)
	}
	_, after, _ = strings.Cut(after, "late=")
	late, err := time.ParseDuration(strings.Fields(after)[0])
	if err != nil {
		t.Fatal(err)
	}
	return late
}

// wantNoRefusal wants that Consul has answered every question.
func wantNoRefusal(t *testing.T, u *lab.Usher) {
	t.Helper()
	for line := range strings.Lines(u.Metrics(t)) {
		if strings.HasPrefix(line, "usher_consul_queries_total{") && !strings.Contains(line, `outcome="ok"`) {
			t.Errorf("want answers only, got %s", strings.TrimSpace(line))
		}
	}
	if log := u.Output(t); strings.Contains(log, "429") || strings.Contains(log, "level=ERROR") {
		t.Errorf("the log has a refusal or an error:\n%s", log)
	}
}

// heldConnections are those between Usher's host and Consul's port, as each side
// has it: Consul keeps those of who has gone for a while.
type heldConnections struct{ usher, consul int }

// countConsulConnections looks again and again, until it is asked how many there were
// at most.
func countConsulConnections(t *testing.T, l *lab.Lab) func() heldConnections {
	t.Helper()
	var most heldConnections
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * testprocess.PollInterval)
		defer tick.Stop()
		for {
			now := consulConnections(t, l)
			most.usher, most.consul = max(most.usher, now.usher), max(most.consul, now.consul)
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
	}()
	stop := sync.OnceFunc(func() {
		close(end)
		<-done
	})
	t.Cleanup(stop)
	return func() heldConnections {
		stop()
		return most
	}
}

// consulConnections counts what the kernel has in /proc/net/tcp.
func consulConnections(t *testing.T, l *lab.Lab) heldConnections {
	const httpPort, established, closeWait = 8500, "01", "08"
	var now heldConnections
	for _, c := range socketsOf(t, l.Gateway) {
		if c.remote.Port() == httpPort && c.state == established {
			now.usher++
		}
	}
	for _, c := range socketsOf(t, l.Control) {
		if c.local.Port() == httpPort && c.remote.Addr() == l.Gateway.IP && (c.state == established || c.state == closeWait) {
			now.consul++
		}
	}
	return now
}

// tcpSocket is a line of /proc/net/tcp or tcp6.
type tcpSocket struct {
	local, remote netip.AddrPort // as IPv4
	state         string
}

// socketsOf returns the host's TCP sockets between IPv4 addresses.
func socketsOf(t *testing.T, h *lab.Host) []tcpSocket {
	var tables []byte
	err := h.Do(func() error {
		four, err := os.ReadFile("/proc/thread-self/net/tcp")
		six, err6 := os.ReadFile("/proc/thread-self/net/tcp6")
		tables = slices.Concat(four, six)
		return errors.Join(err, err6)
	})
	if err != nil {
		t.Errorf("sockets of %s: %v", h.Name, err)
	}
	var all []tcpSocket
	for line := range strings.Lines(string(tables)) {
		if f := strings.Fields(line); len(f) > 3 && f[0] != "sl" { // not the heading
			all = append(all, tcpSocket{addrPort(f[1]), addrPort(f[2]), f[3]})
		}
	}
	return all
}

// addrPort reads the end of an address, as the kernel prints it on a
// little-endian machine, and a port: 0100007F:1F90.
func addrPort(text string) netip.AddrPort {
	address, port, _ := strings.Cut(text, ":")
	n, _ := strconv.ParseUint(address[len(address)-8:], 16, 32) // the kernel's own
	p, _ := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}), uint16(p))
}
