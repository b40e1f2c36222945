//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The entry of the stories in this file: the lab's service on one port, and one
// without instances on another.
const twoPorts = `
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [
  { Port = 8080, Protocol = "http", Services = [{ Name = "static-server" }] },
  { Port = 9090, Protocol = "http", Services = [{ Name = "other" }] },
]
`

// threePorts is twoPorts and one more.
var threePorts = strings.Replace(twoPorts, "\n]", "\n  { Port = 9091, Protocol = \"http\", Services = [{ Name = \"other\" }] },\n]", 1)

func writeTwoPorts(t *testing.T, l *lab.Lab) {
	t.Helper()
	l.Consul.WriteEntry(t, `{"Kind": "service-defaults", "Name": "other", "Protocol": "http"}`)
	l.Consul.WriteEntry(t, twoPorts)
}

// unread is something that Usher cannot read.
type unread struct {
	question lab.Query
	faults   []string
	where    string // in the problem about it
}

// TestRestartWhileSomethingCannotBeRead restarts Usher while Consul answers one
// query wrongly. The Envoy that runs keeps what it has, and no request fails;
// the log says what is held back and why. Everything else goes on, for that
// Envoy and for a new one.
func TestRestartWhileSomethingCannotBeRead(t *testing.T) {
	t.Parallel()
	chain := unread{
		question: lab.Query{Name: "the chain", Path: "/v1/discovery-chain/static-server"},
		faults:   []string{"500", "403", "404", "garbage"},
		where:    `discovery chain of "static-server"`,
	}
	health := unread{
		question: lab.Query{Name: "the instances", Path: "/v1/health/connect/static-server"},
		faults:   []string{"403", "[null]"},
		where:    `instances of "static-server.default.default.dc1"`,
	}
	for name, args := range map[string][]string{
		"delta":              nil,
		"state of the world": {"--state-of-the-world"},
	} {
		for _, u := range []unread{chain, health} {
			t.Run(name+", "+u.question.Name, func(t *testing.T) {
				t.Parallel()
				l, proxy := startBehindFaultProxy(t)
				options := lab.UsherOptions{Host: l.Gateway, Env: []string{"CONSUL_HTTP_ADDR=" + proxy.URL}}
				usher := lab.StartUsher(t, options)
				running := lab.StartBootstrapped(t, lab.BootstrapOptions{Host: l.Gateway, Envoy: lab.EnvoyNew, XDSAddr: usher.GRPCAddr, Args: args})
				running.WaitListener(t, 9090)
				lab.WaitStatus(t, l.Request("/"), http.StatusOK)
				load := lab.StartLoad(t, l.Request("/"))
				for _, f := range u.faults {
					usher.Kill()
					fault := proxy.Inject(u.question, lab.FaultNamed(t, f))
					usher = lab.StartUsher(t, options)
					waitProblem(t, usher, u.where)
					load.WaitMore(t)
					wantListeners(t, running, 8080, 9090)
					fault.Clear()
					waitNoProblem(t, usher)
				}
				load.WantNoFailures(t)
			})
		}
		t.Run(name+", a new Envoy", func(t *testing.T) {
			t.Parallel()
			l, proxy := startBehindFaultProxy(t)
			fault := proxy.Inject(chain.question, lab.FaultNamed(t, "500"))
			usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Env: []string{"CONSUL_HTTP_ADDR=" + proxy.URL}})
			fresh := lab.StartBootstrapped(t, lab.BootstrapOptions{Host: l.Gateway, Envoy: lab.EnvoyNew, XDSAddr: usher.GRPCAddr, Args: args})
			fresh.WaitListener(t, 9090)
			wantListeners(t, fresh, 9090)
			l.Consul.WriteEntry(t, threePorts)
			fresh.WaitListener(t, 9091)
			fault.Clear()
			lab.WaitStatus(t, l.Request("/"), http.StatusOK)
		})
	}
}

// startBehindFaultProxy starts the lab with two ports and a registered gateway, and
// a fault proxy on the gateway's host in front of Consul.
func startBehindFaultProxy(t *testing.T) (*lab.Lab, *lab.FaultProxy) {
	t.Helper()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	writeTwoPorts(t, l)
	registerDefinition(t, l.Consul, gatewayDefinition(l.Gateway))
	return l, lab.StartFaultProxy(t, l.Gateway.Listen(t, "127.0.0.1:0"), l.Consul.HTTPAddr, &http.Transport{
		DialContext: l.Gateway.Dial, MaxIdleConnsPerHost: 100,
	})
}

// TestRestartWithATokenThatHasLostAService takes the right to read one service
// from Usher's token, and restarts Usher. The Envoy that runs keeps that service's
// listener, and no request fails; the log says which right is missing. The
// other port goes on.
func TestRestartWithATokenThatHasLostAService(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, true)
	writeTwoPorts(t, l)
	policy := testprocess.ReadFile(t, "../docs/usher-policy.hcl")
	options := lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Token: l.Consul.NewToken(t, "usher", policy)}
	usher := lab.StartUsher(t, options)
	running := lab.StartGateway(t, lab.GatewayOptions{
		Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr, Token: l.Consul.NewToken(t, "gateway", gatewayRules),
	})
	running.WaitListener(t, 9090)
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	load := lab.StartLoad(t, l.Request("/"))

	usher.Kill()
	(&guardedLab{Lab: l}).setRules(t, options.Token, policy+`
service "static-server" { policy = "deny" }
service "static-server-sidecar-proxy" { policy = "deny" }
`)
	usher = lab.StartUsher(t, options)
	waitProblem(t, usher, `service "static-server" on port 8080 of gateway "ingress-gateway"`)
	l.Consul.WriteEntry(t, threePorts)
	running.WaitListener(t, 9091)
	load.WaitMore(t)
	wantListeners(t, running, 8080, 9090, 9091)
	load.WantNoFailures(t)

	// With the right, and by then without a fault, all changes apply again.
	(&guardedLab{Lab: l}).setRules(t, options.Token, policy)
	usher.Kill()
	usher = lab.StartUsher(t, options)
	usher.WaitStream(t)
	l.Consul.WriteEntry(t, twoPorts)
	testprocess.Eventually(t, "the third listener goes away", testprocess.ChangeDeadline, func() error {
		if ports, err := running.ListenerPorts(); err != nil || slices.Contains(ports, 9091) {
			return errors.Join(fmt.Errorf("listeners on %v", ports), err)
		}
		return nil
	})
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	waitNoProblem(t, usher)
}

// waitProblem waits for an error in Usher's log about a place.
func waitProblem(t *testing.T, u *lab.Usher, where string) {
	t.Helper()
	testprocess.Eventually(t, "usher has a problem with "+where, testprocess.StartDeadline, func() error {
		for _, line := range u.Errors(t) {
			if strings.Contains(line, "where="+lab.QuoteInLog(where)) {
				return nil
			}
		}
		return fmt.Errorf("its errors are %q", u.Errors(t))
	})
}

func waitNoProblem(t *testing.T, u *lab.Usher) {
	t.Helper()
	testprocess.Eventually(t, "usher's metrics have no problem", testprocess.StartDeadline, func() error {
		if n := u.ConfigProblems(t); n != 0 {
			return fmt.Errorf("usher_config_problems is %d", n)
		}
		return nil
	})
}

// wantListeners wants Envoy to have listeners on these of the stories' ports.
func wantListeners(t *testing.T, e *lab.Envoy, want ...int) {
	t.Helper()
	ports, err := e.ListenerPorts()
	if err != nil {
		t.Fatal(err)
	}
	var got []int
	for _, port := range []int{8080, 9090, 9091} {
		if slices.Contains(ports, port) {
			got = append(got, port)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("listeners on %v, want %v", got, want)
	}
}
