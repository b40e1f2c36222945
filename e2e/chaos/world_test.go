//go:build e2e

package chaos

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The gateways' ports.
const (
	httpPort  = 8080
	httpsPort = 8444
	extraPort = 8090 // that comes and goes, and has no load
)

// world is all that a run has: three Consul servers with ACLs that deny by default, two Ushers, two
// gateways with two Envoys each, one HAProxy in front of each Envoy, and services with sidecars.
//
// All services and gateways are in Consul's catalog without an agent and without checks. So whatever
// happens to a server, no instance turns critical: what a restarted agent says of its own instances until
// their first checks is Consul's truth, and nothing that Usher could hide.
type world struct {
	*lab.Network
	t         *testing.T
	started   time.Time
	servers   []*lab.Consul
	away      []bool // the servers that are killed or stopped
	ushers    []*usher
	envoys    []*envoy
	instances []*instance
	disk      string // of the Ushers' logs and states

	usherToken token
	want       desired
	written    map[string]api.ConfigEntry // by kind and name
	registered map[string]bool            // instances, by ID

	chosen    map[Step]int // the server that a step has taken
	saved     []byte       // Consul's snapshot
	savedWant desired

	usherTokenDeleted bool

	log []logLine
}

// usher is one of the Ushers, with its links to Consul.
type usher struct {
	*lab.Usher
	links       []*lab.Link // to the HTTP and gRPC ports of Consul's servers
	log         string      // path
	invalidFile bool
}

// envoy is one of the gateways' Envoys, with its link to the Ushers and its loads.
type envoy struct {
	*lab.Envoy
	id, gateway string
	node        string
	link        *lab.Link
	front       *lab.Host // HAProxy's
	token       token
	outputs     []string // the files with its access logs, of all its processes
	loads       map[string]*lab.Load
	deleted     bool // its token

	downtime
}

// instance is an instance of a service with its sidecar.
type instance struct {
	*lab.Envoy // the sidecar
	id         string
	service    string
	host       *lab.Host
	link       *lab.Link
	downtime
}

// token is a token of Consul's that can be deleted and comes back the same.
type token struct{ accessor, secret, policy string }

func newToken(n int, policy string) token {
	return token{fmt.Sprintf("acce5505-0000-4000-8000-%012d", n), fmt.Sprintf("5ec2e700-0000-4000-8000-%012d", n), policy}
}

func startWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		Network: lab.NewNetwork(t), t: t, started: time.Now(), away: make([]bool, Servers),
		written: map[string]api.ConfigEntry{}, registered: map[string]bool{}, chosen: map[Step]int{},
		want: desired{mode: "permissive", innerMode: "permissive", second: true},
	}
	w.startConsul()
	w.startInstances()
	w.writeWanted()
	w.startUshers()
	w.startEnvoys()
	return w
}

// note adds a line to the log of actions.
func (w *world) note(format string, args ...any) {
	line := logLine{time.Now(), fmt.Sprintf(format, args...)}
	w.log = append(w.log, line)
	w.t.Logf("%8.1fs %s", line.at.Sub(w.started).Seconds(), line.text)
}

type logLine struct {
	at   time.Time
	text string
}

// address of a host, by the last number.
func address(n int) string { return fmt.Sprint("198.18.0.", n) }

func (w *world) startConsul() {
	var hosts []*lab.Host
	for i := range Servers {
		hosts = append(hosts, w.AddHost(w.t, fmt.Sprint("consul-", i+1), address(41+i)))
	}
	w.servers = lab.StartConsulCluster(w.t, lab.ConsulOptions{Version: lab.ConsulNew, ACLs: true}, hosts)
	w.usherToken = newToken(1, "usher")
	w.createPolicy("usher", `service "edge" { policy = "write" } service "inner" { policy = "write" }
		service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`)
	w.ensureToken(w.usherToken)
	w.registerIdle()
}

// registerIdle registers proxies without processes. A server of Consul serves no more than its share of all proxies, and with
// few of them it would refuse the sidecars that come from another server.
func (w *world) registerIdle() {
	const idle = 30
	for i := range idle {
		w.write("register an idle proxy", func(c *api.Client, o *api.WriteOptions) error {
			_, err := c.Catalog().Register(&api.CatalogRegistration{Node: "idle", Address: address(99), Service: &api.AgentService{
				Kind: api.ServiceKindConnectProxy, ID: fmt.Sprint("idle-", i), Service: "idle-sidecar-proxy", Port: sidecarPort + i,
				Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "idle"},
			}}, o)
			return err
		})
	}
}

func (w *world) createPolicy(name, rules string) {
	w.write("policy "+name, func(c *api.Client, o *api.WriteOptions) error {
		_, _, err := c.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, o)
		if err != nil && strings.Contains(err.Error(), "already exists") {
			return nil // an attempt whose answer got lost
		}
		return err
	})
}

// ensureToken makes the token unless there is one.
func (w *world) ensureToken(k token) {
	w.write("token for "+k.policy, func(c *api.Client, o *api.WriteOptions) error {
		_, _, err := c.ACL().TokenCreate(&api.ACLToken{
			AccessorID: k.accessor, SecretID: k.secret, Description: k.policy, Policies: []*api.ACLLink{{Name: k.policy}},
		}, o)
		if err != nil && strings.Contains(err.Error(), "already in use") {
			return nil
		}
		return err
	})
}

func (w *world) deleteToken(k token) {
	w.write("delete the token for "+k.policy, func(c *api.Client, o *api.WriteOptions) error {
		_, err := c.ACL().TokenDelete(k.accessor, o)
		if err != nil && strings.Contains(err.Error(), "Cannot find token") {
			return nil
		}
		return err
	})
}

// addresses are those of a port of all servers.
func (w *world) addresses(port int) []string {
	var all []string
	for _, a := range w.servers {
		all = append(all, a.Host.Addr(port))
	}
	return all
}

// startInstances starts two instances of web, one of web-b and one of a tcp service. They answer with
// the client's address that they were given.
func (w *world) startInstances() {
	for i, service := range []string{"web", "web", "web-b", "tcp"} {
		id := fmt.Sprint(service, "-", i+1)
		h := w.AddHost(w.t, id, address(31+i))
		port := httpPort
		if service == "tcp" {
			port = lab.TCPPort
			lab.ServeTCP(w.t, h.Listen(w.t, fmt.Sprint("127.0.0.1:", port)), answerClientAddress)
		} else {
			lab.ServeHTTP(w.t, h, port, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				fmt.Fprintln(rw, r.Header.Get("X-Forwarded-For"))
			}))
		}
		x := &instance{id: id, service: service, host: h, link: lab.StartLink(w.t, h, "127.0.0.1:8502", w.addresses(8502)...)}
		w.instances = append(w.instances, x)
		w.register(x, port)
		k := newToken(10+i, id)
		w.createPolicy(id, fmt.Sprintf(`service %q { policy = "write" } service "%s-sidecar-proxy" { policy = "write" }
			service_prefix "" { policy = "read" } node_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }`, service, service))
		w.ensureToken(k)
		x.Envoy = lab.StartEnvoyWith(w.t, h, lab.EnvoyNew, w.sidecarBootstrap(x, k))
		x.WaitListener(w.t, sidecarPort)
	}
}

const sidecarPort = 21000

// sidecarBootstrap is the bootstrap that Consul's CLI makes.
func (w *world) sidecarBootstrap(x *instance, k token) string {
	command := testprocess.Command{
		Name: "consul connect envoy", Path: w.servers[0].Binary, Host: w.servers[0].Host, Env: w.servers[0].Env(k.secret),
		Args: []string{
			"connect", "envoy", "-bootstrap", "-proxy-id", x.id + "-sidecar-proxy", "-node-name", x.host.Name,
			"-envoy-binary", lab.EnvoyBinary(w.t, lab.EnvoyNew), "-ignore-envoy-compatibility",
			"-grpc-addr", "http://127.0.0.1:8502", "-admin-bind", "127.0.0.1:19000",
		},
	}
	var out testprocess.Result
	testprocess.Eventually(w.t, "the bootstrap of "+x.id, testprocess.ChangeDeadline, func() error {
		if out = testprocess.Run(w.t, command, ""); out.Code != 0 {
			return errors.New(out.Stderr) // the server may not know the token yet
		}
		return nil
	})
	return out.Stdout
}

// register puts an instance and its sidecar into the catalog.
func (w *world) register(x *instance, port int) {
	ip := x.host.IP.String()
	for _, service := range []*api.AgentService{
		{ID: x.id, Service: x.service, Address: ip, Port: port},
		{
			Kind: api.ServiceKindConnectProxy, ID: x.id + "-sidecar-proxy", Service: x.service + "-sidecar-proxy", Address: ip, Port: sidecarPort,
			Proxy: &api.AgentServiceConnectProxyConfig{
				DestinationServiceName: x.service, DestinationServiceID: x.id, LocalServiceAddress: "127.0.0.1", LocalServicePort: port,
			},
		},
	} {
		w.write("register "+service.ID, func(c *api.Client, o *api.WriteOptions) error {
			_, err := c.Catalog().Register(&api.CatalogRegistration{Node: x.host.Name, Address: ip, Service: service}, o)
			return err
		})
	}
}

// deregister removes the sidecar of an instance from the catalog, so that no Envoy sends requests there. The instance goes on.
func (w *world) deregister(x *instance) {
	w.write("deregister "+x.id, func(c *api.Client, o *api.WriteOptions) error {
		_, err := c.Catalog().Deregister(&api.CatalogDeregistration{Node: x.host.Name, ServiceID: x.id + "-sidecar-proxy"}, o)
		return err
	})
}

// answerClientAddress reads a PROXY header and a line, and answers with the greeting, the client's address from the
// header, and the line.
func answerClientAddress(conn net.Conn) {
	c := proxyproto.NewConn(conn, proxyproto.WithPolicy(proxyproto.REQUIRE))
	line := make([]byte, 4096)
	n, err := c.Read(line)
	if err != nil {
		return
	}
	host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
	_, _ = fmt.Fprint(c, lab.TCPGreeting, host, "\n", string(line[:n])) // the client may be gone
}

// startUshers starts two Ushers, each with a link to all Consul servers.
func (w *world) startUshers() {
	w.disk = w.startDisk()
	for i := range Ushers {
		h := w.AddHost(w.t, fmt.Sprint("usher-", i+1), address(51+i))
		u := &usher{log: filepath.Join(w.disk, fmt.Sprint("usher-", i+1, ".log"))}
		for _, port := range []int{8500, 8502} {
			u.links = append(u.links, lab.StartLink(w.t, h, fmt.Sprint("127.0.0.1:", port), w.addresses(port)...))
		}
		stateFlags, stateEnv := w.stateSettings(i)
		u.Usher = lab.LaunchUsher(w.t, lab.UsherOptions{
			Host: h, Config: w.want.file(), XDSAddr: h.Addr(18000), Log: u.log,
			Args: append([]string{
				"--insecure-plaintext", "--gateway", "edge", "--gateway", "inner", "--reauthorize-interval", "3s",
				"--consul-grpc-addr", "http://127.0.0.1:8502", "--drain-time", "2s",
			}, stateFlags...),
			Env: append([]string{"CONSUL_HTTP_ADDR=http://127.0.0.1:8500", "CONSUL_HTTP_TOKEN=" + w.usherToken.secret}, stateEnv...),
		})
		w.ushers = append(w.ushers, u)
		w.t.Cleanup(func() {
			if w.t.Failed() {
				w.t.Logf("end of the log of %s:\n%s", u.Name, end(u.log, 80))
				w.keepLog(u.log)
				w.keepLog(u.log + ".before")
			}
		})
		u.WaitReady(w.t)
	}
}

// end returns the last lines of a file.
func end(path string, n int) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(strings.Trim(string(content), "\x00"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// stateSettings let an Usher that can do so keep its state on the disk.
func (w *world) stateSettings(i int) (flags, env []string) {
	help := testprocess.Run(w.t, testprocess.Command{Path: testprocess.Usher(w.t), Args: []string{"serve", "--help"}}, "")
	if !strings.Contains(help.Stdout+help.Stderr, "--state-dir") {
		return nil, nil
	}
	dir := filepath.Join(w.disk, fmt.Sprint("state-", i+1))
	if err := os.Mkdir(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	return []string{"--state-dir", dir}, []string{"USHER_STATE_KEY=a secret of more than sixteen bytes"}
}

// startDisk mounts a small file system in a namespace that ends with the test, and returns its path.
func (w *world) startDisk() string {
	dir := testprocess.NewDir(w.t)
	holder := testprocess.Start(w.t, testprocess.Command{
		Name: "disk", Path: testprocess.Debian(w.t, "unshare", "util-linux"),
		Args: []string{"--mount", "sh", "-c", `mount -t tmpfs -o size=32m none "$0" && echo mounted && exec sleep infinity`, dir},
	})
	holder.WaitOutput(w.t, "mounted")
	return filepath.Join("/proc", fmt.Sprint(holder.Pid()), "root", dir)
}

// startEnvoys starts the gateways' Envoys, of two releases, each behind another HAProxy: so a
// client knows which Envoy has failed it.
func (w *world) startEnvoys() {
	for i, gateway := range []string{"edge", "edge", "inner", "inner"} {
		n := i + 1
		e := &envoy{id: fmt.Sprint(gateway, "-", n), gateway: gateway, token: newToken(20+n, fmt.Sprint("gateway-", n)), loads: map[string]*lab.Load{}}
		h := w.AddHost(w.t, fmt.Sprint("gateway-", n), address(20+n))
		e.node = h.Name
		e.front = w.AddHost(w.t, fmt.Sprint("balancer-", n), address(10+n))
		w.createPolicy(e.token.policy, fmt.Sprintf(`service %q { policy = "write" }`, gateway))
		w.ensureToken(e.token)
		w.write("register "+e.id, func(c *api.Client, o *api.WriteOptions) error {
			_, err := c.Catalog().Register(&api.CatalogRegistration{Node: h.Name, Address: h.IP.String(), Service: &api.AgentService{
				Kind: api.ServiceKindIngressGateway, ID: e.id, Service: gateway, Address: h.IP.String(), Port: 8443,
			}}, o)
			return err
		})
		lab.StartHAProxy(w.t, lab.HAProxyOptions{
			Host: e.front, Targets: []*lab.Host{h}, Ports: []int{httpPort, httpsPort, lab.TCPPort}, Header: lab.SendV2, NoRetries: true,
		})
		e.link = lab.StartLink(w.t, h, "127.0.0.1:18000", w.ushers[0].xds(), w.ushers[1].xds())
		version, args := lab.EnvoyNew, []string{"--service-id", e.id, "--node-name", h.Name}
		if n%2 == 0 {
			version = lab.EnvoyOld
		}
		e.Envoy = lab.StartBootstrapped(w.t, lab.BootstrapOptions{
			Host: h, Envoy: version, Gateway: gateway, XDSAddr: "http://127.0.0.1:18000",
			Args: args, Env: []string{"CONSUL_HTTP_TOKEN=" + e.token.secret},
		})
		e.outputs = append(e.outputs, e.Stdout)
		w.envoys = append(w.envoys, e)
	}
	for _, e := range w.envoys {
		testprocess.Eventually(w.t, e.id+" serves", testprocess.StartDeadline, func() error { return w.serves(e) })
	}
}

// xds is the address of the port for Envoys.
func (u *usher) xds() string { return strings.TrimPrefix(u.GRPCAddr, "http://") }

// serves is nil if an Envoy serves all listeners with a load, several times in a row.
func (w *world) serves(e *envoy) error {
	const consecutive = 10
	for range consecutive {
		for _, r := range []lab.Request{w.httpRequest(e), w.httpsRequest(e)} {
			r.Path = lab.PollPath
			got, err := r.Do(context.Background())
			if err == nil && (got.Status != http.StatusOK || got.Body != r.WantBody) {
				err = fmt.Errorf("%s: status %d: %q", r.To, got.Status, got.Body)
			}
			if err != nil {
				return err
			}
		}
		data, client, err := w.tcpExchange(e).Do(context.Background())
		if err == nil {
			err = wantClient(data, client)
		}
		if err != nil {
			return fmt.Errorf("tcp: %w", err)
		}
	}
	return nil
}

func (w *world) httpRequest(e *envoy) lab.Request {
	return lab.Request{From: w.Client, To: e.front.Addr(httpPort), WantBody: lab.ClientIP + "\n", Timeout: patience}
}

func (w *world) httpsRequest(e *envoy) lab.Request {
	r := w.httpRequest(e)
	r.To = e.front.Addr(httpsPort)
	r.TLS = &tls.Config{
		InsecureSkipVerify: true, // the roots change; what counts is that it has not expired
		VerifyConnection: func(s tls.ConnectionState) error {
			if leaf := s.PeerCertificates[0]; time.Now().After(leaf.NotAfter) {
				return fmt.Errorf("the certificate has expired at %v", leaf.NotAfter)
			}
			return nil
		},
	}
	return r
}

func (w *world) tcpExchange(e *envoy) lab.TCPExchange {
	return lab.TCPExchange{From: w.Client, To: e.front.Addr(lab.TCPPort), Timeout: patience}
}

// patience is how long a client waits. A machine that has more to do than it can delays answers, and loses none.
const patience = 20 * time.Second

// wantClient wants a tcp service to have got the client's address.
func wantClient(data, _ string) error {
	if data != lab.ClientIP+"\n" {
		return fmt.Errorf("the service got the client's address %q, want %s", data, lab.ClientIP)
	}
	return nil
}

// servers that answer come first.
func (w *world) inOrder() []*lab.Consul {
	var there, others []*lab.Consul
	for i, a := range w.servers {
		if w.away[i] {
			others = append(others, a)
		} else {
			there = append(there, a)
		}
	}
	return append(there, others...)
}

// write writes to Consul through a server that works, and tries until one takes it.
func (w *world) write(what string, f func(*api.Client, *api.WriteOptions) error) {
	w.t.Helper()
	testprocess.Eventually(w.t, what, testprocess.StartDeadline, func() error {
		var errs []error
		for _, a := range w.inOrder() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err := f(a.Client, new(api.WriteOptions).WithContext(ctx))
			cancel()
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// read is write for questions.
func (w *world) read(what string, f func(*api.Client, *api.QueryOptions) error) {
	w.t.Helper()
	w.write(what, func(c *api.Client, o *api.WriteOptions) error {
		return f(c, new(api.QueryOptions).WithContext(o.Context()))
	})
}

// second is the instance of web that comes and goes.
func (w *world) second() *instance {
	return w.instances[slices.IndexFunc(w.instances, func(x *instance) bool { return x.id == "web-2" })]
}
