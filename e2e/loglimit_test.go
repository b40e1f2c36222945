//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"
)

// TestRejectedConnectionsDoNotFloodTheLog connects a few hundred times without a
// PROXY header to a listener that demands one. An Envoy that knows limits logs ten
// a second, the other one each; requests are logged as ever.
func TestRejectedConnectionsDoNotFloodTheLog(t *testing.T) {
	const rejected, perSecond = 300, 10
	onBothEnvoys(t, func(t *testing.T, envoy string) {
		l := startMeshLab(t, consulNew, envoy, false)
		usher := startUsher(t, usherOptions{Host: l.Gateway, Consul: l.Consul, Config: `usher { proxy_protocol { mode = "strict" } }`})
		gateway := startGateway(t, gatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: envoy, GRPCAddr: usher.GRPCAddr})
		l.waitMode(t, l.Gateway, "strict")
		c := call{From: l.Balancer, To: l.Gateway.addr(8080), Proxy: proxied(clientIP)}
		waitStatus(t, c, 200)

		lines := func() (n int) {
			for _, entry := range gateway.Log.entries(t) {
				if entry.text("rejected") != "" {
					n++
				}
			}
			return n
		}
		begin, before := time.Now(), lines()
		for range rejected {
			l.refused(t)
		}
		c.Path = newPath()
		c.must(t).wantHello(t)
		gateway.Log.request(t, c.Path)
		eventually(t, "there are lines", changeDeadline, func() error {
			if lines() == before {
				l.refused(t)
				return errors.New("there is none")
			}
			return nil
		})
		// A second's lines may be saved up, and the last second is a whole one.
		most := perSecond * int(2+time.Since(begin).Seconds())
		if envoy == envoyOld {
			eventually(t, "every connection has its line", changeDeadline, func() error {
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

// refused sends a request without a PROXY header, from the balancer's host, and
// wants it closed.
func (l *meshLab) refused(t *testing.T) {
	t.Helper()
	conn, err := l.Balancer.dial(t.Context(), "tcp", l.Gateway.addr(8080))
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
