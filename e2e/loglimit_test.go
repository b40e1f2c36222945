//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestRejectedConnectionsDoNotFloodTheLog connects a few hundred times without a
// PROXY header to a strict listener. An Envoy that supports limits logs ten a
// second, the older one all of them; requests are logged as usual.
func TestRejectedConnectionsDoNotFloodTheLog(t *testing.T) {
	const rejected, perSecond = 300, 10
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := lab.Start(t, lab.ConsulNew, envoy, false)
		usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: `usher { proxy_protocol { mode = "strict" } }`})
		gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		l.WaitMode(t, l.Gateway, "strict")
		c := lab.Request{From: l.Balancer, To: l.Gateway.Addr(8080), Proxy: lab.ProxyHeaderFor(lab.ClientIP)}
		lab.WaitStatus(t, c, 200)

		lines := func() (n int) {
			for _, entry := range gateway.Log.Entries(t) {
				if entry.Text("rejected") != "" {
					n++
				}
			}
			return n
		}
		begin, before := time.Now(), lines()
		for range rejected {
			countRefused(t, l)
		}
		c.Path = lab.NewPath()
		c.MustDo(t).WantHello(t)
		gateway.Log.WaitRequest(t, c.Path)
		testprocess.Eventually(t, "there are lines", testprocess.ChangeDeadline, func() error {
			if lines() == before {
				countRefused(t, l)
				return errors.New("there is none")
			}
			return nil
		})
		// A second's lines may be saved up, and the last second is a whole one.
		most := perSecond * int(2+time.Since(begin).Seconds())
		if envoy == lab.EnvoyOld {
			testprocess.Eventually(t, "every connection has its line", testprocess.ChangeDeadline, func() error {
				if n := lines() - before; n < rejected {
					return fmt.Errorf("there are %d", n)
				}
				return nil
			})
			return
		}
		if n := lines() - before; n > most {
			t.Errorf("%d connections in %v have left %d lines, want at most %d", rejected, time.Since(begin), n, most)
		}
	})
}

// countRefused sends a request without a PROXY header, from the balancer's host, and
// wants it closed.
func countRefused(t *testing.T, l *lab.Lab) {
	t.Helper()
	conn, err := l.Balancer.Dial(t.Context(), "tcp", l.Gateway.Addr(8080))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: static-server.ingress.consul\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if answer, _ := io.ReadAll(conn); len(answer) > 0 {
		t.Fatalf("it is answered %q", answer)
	}
}
