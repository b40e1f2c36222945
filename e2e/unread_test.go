//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
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

func (l *meshLab) writeTwoPorts(t *testing.T) {
	t.Helper()
	l.Consul.writeEntry(t, `{"Kind": "service-defaults", "Name": "other", "Protocol": "http"}`)
	l.Consul.writeEntry(t, twoPorts)
}

// unread is something that Usher cannot read.
type unread struct {
	question question
	faults   []string
	where    string // in the problem about it
}

// TestRestartWhileSomethingCannotBeRead restarts Usher while Consul answers one
// question wrongly. The Envoy that runs keeps what it has, and no request fails;
// the operator is told what is withheld and why. Everything else goes on, for that
// Envoy and for a new one.
func TestRestartWhileSomethingCannotBeRead(t *testing.T) {
	chain := unread{
		question: question{"the chain", "/v1/discovery-chain/static-server"},
		faults:   []string{"500", "403", "404", "garbage"},
		where:    `discovery chain of "static-server"`,
	}
	health := unread{
		question: question{"the instances", "/v1/health/connect/static-server"},
		faults:   []string{"403", "[null]"},
		where:    `instances of "static-server.default.default.dc1"`,
	}
	for name, args := range map[string][]string{
		"delta":              nil,
		"state of the world": {"--state-of-the-world"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startMeshLab(t, consulNew, envoyNew, false)
			l.writeTwoPorts(t)
			l.Consul.register(t, gatewayDefinition(l.Gateway))
			proxy := startFaultProxy(t, l.Gateway.listen(t, "127.0.0.1:0"), l.Consul.HTTPAddr, &http.Transport{
				DialContext: l.Gateway.dial, MaxIdleConnsPerHost: 100,
			})
			options := usherOptions{Host: l.Gateway, Env: []string{"CONSUL_HTTP_ADDR=" + proxy.URL}}
			usher := startUsher(t, options)
			own := ownOptions{Host: l.Gateway, Envoy: envoyNew, XDSAddr: usher.GRPCAddr, Args: args}
			running := startOwn(t, own)
			running.waitListener(t, 9090)
			waitStatus(t, l.call("/"), http.StatusOK)
			load := startLoad(t, l.call("/"))
			for _, u := range []unread{chain, health} {
				for _, f := range u.faults {
					usher.Kill()
					fault := proxy.inject(u.question, faultNamed(t, f))
					usher = startUsher(t, options)
					usher.waitProblem(t, u.where)
					load.waitMore(t)
					running.wantListeners(t, 8080, 9090)
					fault.clear()
					usher.waitNoProblem(t)
				}
			}
			load.wantNoFailures(t)
			running.Kill()

			usher.Kill()
			fault := proxy.inject(chain.question, faultNamed(t, "500"))
			startUsher(t, options)
			fresh := startOwn(t, own)
			fresh.waitListener(t, 9090)
			fresh.wantListeners(t, 9090)
			l.Consul.writeEntry(t, threePorts)
			fresh.waitListener(t, 9091)
			fault.clear()
			waitStatus(t, l.call("/"), http.StatusOK)
		})
	}
}

// TestRestartAfterUshersTokenHasLostAService takes the right to read one service
// from Usher's token, and restarts Usher. The Envoy that runs keeps that service's
// listener, and no request fails; the operator is told which right is missing. The
// other port goes on.
func TestRestartAfterUshersTokenHasLostAService(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, true)
	l.writeTwoPorts(t)
	policy := readFile(t, "../docs/usher-policy.hcl")
	options := usherOptions{Host: l.Gateway, Consul: l.Consul, Token: l.Consul.newToken(t, "usher", policy)}
	usher := startUsher(t, options)
	running := startGateway(t, gatewayOptions{
		Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: usher.GRPCAddr, Token: l.Consul.newToken(t, "gateway", gatewayRules),
	})
	running.waitListener(t, 9090)
	waitStatus(t, l.call("/"), http.StatusOK)
	load := startLoad(t, l.call("/"))

	usher.Kill()
	(&guardedLab{meshLab: l}).setRules(t, options.Token, policy+`
service "static-server" { policy = "deny" }
service "static-server-sidecar-proxy" { policy = "deny" }
`)
	usher = startUsher(t, options)
	usher.waitProblem(t, `service "static-server" on port 8080 of gateway "ingress-gateway"`)
	l.Consul.writeEntry(t, threePorts)
	running.waitListener(t, 9091)
	load.waitMore(t)
	running.wantListeners(t, 8080, 9090, 9091)
	load.wantNoFailures(t)

	// With the right, and by then without a fault, everything is followed again.
	(&guardedLab{meshLab: l}).setRules(t, options.Token, policy)
	usher.Kill()
	usher = startUsher(t, options)
	usher.waitStream(t)
	l.Consul.writeEntry(t, twoPorts)
	eventually(t, "the third listener goes away", changeDeadline, func() error {
		if ports, err := running.listeners(); err != nil || slices.Contains(ports, 9091) {
			return errors.Join(fmt.Errorf("listeners on %v", ports), err)
		}
		return nil
	})
	waitStatus(t, l.call("/"), http.StatusOK)
	usher.waitNoProblem(t)
}

// waitProblem waits for an error in Usher's log about a place.
func (u *usher) waitProblem(t *testing.T, where string) {
	t.Helper()
	eventually(t, "usher has a problem with "+where, startDeadline, func() error {
		for _, line := range u.errors(t) {
			if strings.Contains(line, "where="+quotedInLog(where)) {
				return nil
			}
		}
		return fmt.Errorf("its errors are %q", u.errors(t))
	})
}

func (u *usher) waitNoProblem(t *testing.T) {
	t.Helper()
	eventually(t, "usher's metrics have no problem", startDeadline, func() error {
		if n := u.configProblems(t); n != 0 {
			return fmt.Errorf("usher_config_problems is %d", n)
		}
		return nil
	})
}

// wantListeners wants Envoy to have listeners on these of the stories' ports.
func (e *envoy) wantListeners(t *testing.T, want ...int) {
	t.Helper()
	ports, err := e.listeners()
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
