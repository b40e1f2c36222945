//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestBadSettingAtColdStart starts Usher while proxy-defaults is bad, so that
// Usher cannot know what the gateway's listener should be. An Envoy that runs
// keeps its listener and goes on answering. A new Envoy gets no listener until
// proxy-defaults is correct. No other layer can replace what proxy-defaults may
// say about a single listener.
func TestBadSettingAtColdStart(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"delta":              nil,
		"state of the world": {"--state-of-the-world"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
			registerDefinition(t, l.Consul, gatewayDefinition(l.Gateway))
			l.HAProxy.SetHeader(t, lab.SendV2)
			l.SetMode(t, "strict")
			usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
			own := lab.BootstrapOptions{Host: l.Gateway, Envoy: lab.EnvoyNew, XDSAddr: usher.GRPCAddr, Args: args}
			running := lab.StartBootstrapped(t, own)
			lab.WaitStatus(t, l.Request("/"), http.StatusOK)

			usher.Stop(t)
			l.SetMode(t, "stict")
			usher = lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
			waitProblemAtStart(t, usher)
			wantInstanceFollowed(t, l)
			wantStrictMode(t, l)
			const heldBack = `usher_held_back_listeners{gateway="ingress-gateway",port="8080"}`
			waitMetric(t, usher, heldBack, "") // it keeps its listener
			running.Kill()

			fresh := lab.StartBootstrapped(t, own)
			waitCluster(t, fresh, "static-server.")
			wantClosedPort(t, l, fresh)
			waitMetric(t, usher, heldBack, "1")
			wantOutageInReadyz(t, usher)

			l.SetMode(t, "permissive")
			l.WaitMode(t, l.Gateway, "permissive")
			if n := usher.ConfigProblems(t); n != 0 {
				t.Errorf("usher_config_problems is %d after it was corrected", n)
			}
		})
	}
}

// waitProblemAtStart waits for the one line about the bad proxy-defaults, which
// comes when an Envoy asks for its gateway.
func waitProblemAtStart(t *testing.T, u *lab.Usher) {
	t.Helper()
	want := `msg=problem gateway=ingress-gateway ` +
		lab.LoggedProblem(`proxy-defaults "global": usher.proxy_protocol.mode`, `"stict" is not allowed (did you mean "strict"?); use "auto", "off", "permissive" or "strict"`)
	testprocess.Eventually(t, "usher logs "+want, testprocess.StartDeadline, func() error {
		switch got := u.Errors(t); {
		case len(got) == 0:
			return errors.New("nothing yet")
		case len(got) > 1 || got[0] != want:
			return testprocess.Permanent(errors.New("it logs\n" + strings.Join(got, "\n")))
		}
		return nil
	})
}

// wantInstanceFollowed gives the service a second name and waits until the running Envoy
// serves it: the route is not what the bad setting concerns.
func wantInstanceFollowed(t *testing.T, l *lab.Lab) {
	t.Helper()
	l.Consul.WriteEntry(t, replaceOnce(t, testprocess.ReadFile(t, "testdata/lab/ingress-gateway.hcl"),
		`{ Name = "static-server" }`, `{ Name = "static-server", Hosts = ["static-server.ingress.consul", "second.example.com"] }`))
	second := l.Request("/")
	second.Host = "second.example.com"
	lab.WaitStatus(t, second, http.StatusOK)
}

// wantOutageInReadyz wants /readyz to say which Envoy serves nothing on which port, and why.
func wantOutageInReadyz(t *testing.T, u *lab.Usher) {
	t.Helper()
	ready, err := u.Admin("/readyz")
	for _, want := range []string{
		`outage (gateway ingress-gateway): gateway ingress-gateway: listener 8080: it is held back`,
		`Envoy "ingress-gateway" (release 1.40.0, from `,
		`degraded (gateway ingress-gateway): proxy-defaults "global": usher.proxy_protocol.mode: "stict" is not allowed`,
	} {
		if err != nil || !strings.Contains(ready, want) {
			t.Errorf("/readyz does not have %q (%v):\n%s", want, err, ready)
		}
	}
}

// waitCluster waits until Envoy has a cluster whose name begins so.
func waitCluster(t *testing.T, e *lab.Envoy, prefix string) {
	t.Helper()
	testprocess.Eventually(t, e.Name+" has the cluster "+prefix, testprocess.StartDeadline, func() error {
		clusters, err := e.Admin("/clusters")
		if err == nil && !strings.Contains("\n"+clusters, "\n"+prefix) {
			err = errors.New("not yet")
		}
		return err
	})
}

// wantClosedPort wants that Envoy has no listener on the gateway's port and
// no other test has.
func wantClosedPort(t *testing.T, l *lab.Lab, e *lab.Envoy) {
	t.Helper()
	ports, err := e.ListenerPorts()
	if err != nil || slices.Contains(ports, 8080) {
		t.Errorf("a fresh Envoy has listeners on the ports %v, want none on 8080 (%v)", ports, err)
	}
	conn, err := l.Client.Dial(t.Context(), "tcp", l.Gateway.Addr(8080))
	if err == nil {
		conn.Close()
		t.Error("port 8080 is open on a gateway that has no listener")
	}
}
