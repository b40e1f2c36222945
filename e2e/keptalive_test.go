//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"testing"
)

// TestOpenConnectionsKeepTheirRules has a connection without a PROXY header
// open while the gateway becomes strict. It goes on being answered until Envoy's
// drain time is over, as docs/client-address.md says, while new ones are closed
// at once.
func TestOpenConnectionsKeepTheirRules(t *testing.T) {
	t.Parallel()
	l := startMeshLab(t, consulNew, envoyNew, false)
	l.setMode(t, "permissive")
	usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul})
	startGateway(t, gatewayOptions{
		Host: l.Gateway, Consul: l.Consul, Envoy: envoyNew, GRPCAddr: usher.GRPCAddr,
		EnvoyArgs: []string{"--drain-time-s", "4", "--parent-shutdown-time-s", "5"},
	})
	l.waitMode(t, l.Gateway, "permissive")
	plain := call{From: l.Balancer, To: l.Gateway.addr(8080), Path: newPath()}
	kept, tunnel := plain.open(t), plain.open(t)
	for _, conn := range []*clientConn{kept, tunnel} {
		if got, err := conn.exchange(plain, "keep-alive"); err != nil || got.Status != http.StatusOK {
			t.Fatalf("the first request is answered %d (%v)", got.Status, err)
		}
	}

	l.setMode(t, "strict")
	l.waitMode(t, l.Gateway, "strict")
	if got, err := kept.exchange(plain, "keep-alive"); err != nil || got.Status != http.StatusOK {
		t.Errorf("a request on the open connection is answered %d (%v), want 200", got.Status, err)
	}
	eventually(t, "the idle connection is closed once the old listener is drained", changeDeadline, func() error {
		if !tunnel.endedByPeer() {
			return errors.New("it is open")
		}
		return nil
	})
}

// open opens a connection until the test's end.
func (c call) open(t *testing.T) *clientConn {
	t.Helper()
	conn, err := c.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
