//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestOpenConnectionsKeepTheirRules keeps a connection without a PROXY header
// open while the gateway becomes strict. It is answered until Envoy's drain time
// is over, as docs/client-address.md says, while new ones are closed at once.
func TestOpenConnectionsKeepTheirRules(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	l.SetMode(t, "permissive")
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul})
	lab.StartGateway(t, lab.GatewayOptions{
		Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr,
		EnvoyArgs: []string{"--drain-time-s", "4", "--parent-shutdown-time-s", "5"},
	})
	l.WaitMode(t, l.Gateway, "permissive")
	plain := lab.Request{From: l.Balancer, To: l.Gateway.Addr(8080), Path: lab.NewPath()}
	kept, tunnel := openConnection(t, plain), openConnection(t, plain)
	for _, conn := range []*lab.ClientConn{kept, tunnel} {
		if got, err := conn.RoundTrip(plain, "keep-alive"); err != nil || got.Status != http.StatusOK {
			t.Fatalf("the first request is answered %d (%v)", got.Status, err)
		}
	}

	l.SetMode(t, "strict")
	l.WaitMode(t, l.Gateway, "strict")
	if got, err := kept.RoundTrip(plain, "keep-alive"); err != nil || got.Status != http.StatusOK {
		t.Errorf("a request on the open connection is answered %d (%v), want 200", got.Status, err)
	}
	testprocess.Eventually(t, "the idle connection is closed once the old listener is drained", testprocess.ChangeDeadline, func() error {
		if !tunnel.ClosedByServer() {
			return errors.New("it is open")
		}
		return nil
	})
}

// openConnection opens a connection until the test's end.
func openConnection(t *testing.T, c lab.Request) *lab.ClientConn {
	t.Helper()
	conn, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}
