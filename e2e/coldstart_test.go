//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestBadSettingAtColdStart starts Usher while proxy-defaults is bad, so that
// nobody knows what the gateway's listener should be. An Envoy that runs keeps
// the listener it has and goes on answering; a fresh one gets none rather than
// an open one, and is served once proxy-defaults is mended. No other source can
// say in its place what it may have said of a single listener.
func TestBadSettingAtColdStart(t *testing.T) {
	for name, args := range map[string][]string{
		"delta":              nil,
		"state of the world": {"--state-of-the-world"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startMeshLab(t, consulNew, envoyNew, false)
			l.Consul.register(t, gatewayDefinition(l.Gateway))
			l.HAProxy.setHeader(t, v2Header)
			l.setMode(t, "strict")
			usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul})
			own := ownOptions{Host: l.Gateway, Envoy: envoyNew, XDSAddr: usher.GRPCAddr, Args: args}
			running := startOwn(t, own)
			waitStatus(t, l.call("/"), http.StatusOK)

			usher.Stop(t)
			l.setMode(t, "stict")
			usher = startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul})
			usher.waitColdTrouble(t)
			l.wantMoving(t)
			l.wantStrict(t)
			running.Kill()

			fresh := startOwn(t, own)
			fresh.waitCluster(t, "static-server.")
			l.wantClosedPort(t, fresh)

			l.setMode(t, "permissive")
			l.waitMode(t, l.Gateway, "permissive")
			if n := usher.configProblems(t); n != 0 {
				t.Errorf("usher_config_problems is %d after it was mended", n)
			}
		})
	}
}

// waitColdTrouble waits for the one line about the bad proxy-defaults, which
// comes when an Envoy asks for its gateway.
func (u *usher) waitColdTrouble(t *testing.T) {
	t.Helper()
	want := `msg="bad configuration" gateway=ingress-gateway ` +
		asLogged(`proxy-defaults "global": usher.proxy_protocol.mode`, `"stict" is not allowed (did you mean "strict"?); use "auto", "off", "permissive" or "strict"`)
	eventually(t, "usher logs "+want, startDeadline, func() error {
		switch got := u.errors(t); {
		case len(got) == 0:
			return errors.New("nothing yet")
		case len(got) > 1 || got[0] != want:
			return testprocess.Hopeless(errors.New("it logs\n" + strings.Join(got, "\n")))
		}
		return nil
	})
}

// wantMoving gives the service a second name and waits until the running Envoy
// serves it: the route is not what the bad setting concerns.
func (l *meshLab) wantMoving(t *testing.T) {
	t.Helper()
	l.Consul.writeEntry(t, replaceOnce(t, readFile(t, "testdata/lab/ingress-gateway.hcl"),
		`{ Name = "static-server" }`, `{ Name = "static-server", Hosts = ["static-server.ingress.consul", "second.example.com"] }`))
	second := l.call("/")
	second.Host = "second.example.com"
	waitStatus(t, second, http.StatusOK)
}

// waitCluster waits until Envoy has a cluster whose name begins so.
func (e *envoy) waitCluster(t *testing.T, prefix string) {
	t.Helper()
	eventually(t, e.Name+" has the cluster "+prefix, startDeadline, func() error {
		clusters, err := e.admin("/clusters")
		if err == nil && !strings.Contains("\n"+clusters, "\n"+prefix) {
			err = errors.New("not yet")
		}
		return err
	})
}

// wantClosedPort wants that Envoy has no listener on the gateway's port and
// nobody else has.
func (l *meshLab) wantClosedPort(t *testing.T, e *envoy) {
	t.Helper()
	ports, err := e.listeners()
	if err != nil || slices.Contains(ports, 8080) {
		t.Errorf("a fresh Envoy has listeners on the ports %v, want none on 8080 (%v)", ports, err)
	}
	conn, err := l.Client.dial(t.Context(), "tcp", l.Gateway.addr(8080))
	if err == nil {
		conn.Close()
		t.Error("port 8080 is open on a gateway that has no listener")
	}
}
