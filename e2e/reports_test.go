//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"testing"

	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestEnvoysReportTheirConnections makes connections with and without a PROXY
// header in each mode, and counts what the Envoy reports of them, over the
// cluster that its bootstrap has for xDS.
func TestEnvoysReportTheirConnections(t *testing.T) {
	t.Parallel()
	for _, envoy := range []string{lab.EnvoyNew, lab.EnvoyOld} {
		t.Run(envoy, func(t *testing.T) {
			t.Parallel()
			s := startModesStoryOn(t, envoy)
			plain := lab.Request{From: s.Client, To: s.Gateway.Addr(8080), Path: "/"}
			fromClient, check := plain, lab.Request{From: s.Balancer, To: s.Gateway.Addr(8080), Path: "/"}
			fromClient.From, fromClient.Proxy = s.Balancer, lab.ProxyHeaderFor(lab.ClientIP)
			check.Proxy = &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}

			s.wantReported(t, "off", "no_header", plain)
			s.wantReported(t, "off", "malformed", fromClient)
			s.switchMode(t, "permissive", func() { s.writeFile(t, "permissive") })
			s.wantReported(t, "permissive", "no_header", plain)
			s.wantReported(t, "permissive", "header", fromClient)
			s.wantReported(t, "permissive, from an address that sends headers", "ambiguous", check)
			s.switchMode(t, "strict", func() { s.writeFile(t, "strict") })
			s.wantReported(t, "strict", "header", fromClient)
			s.wantReported(t, "strict", "refused", plain)
			s.wantReported(t, "strict", "unknown", check)
		})
	}
}

// wantReported makes connections until the gateway's Envoy has reported some of
// a type: it reports a fifth of them if it is too old to limit their rate.
func (s *modesStory) wantReported(t *testing.T, mode, connection string, r lab.Request) {
	t.Helper()
	before := lab.Reported(t, s.usher.Metrics(t), 8080, connection)
	testprocess.Eventually(t, fmt.Sprintf("%s: the Envoy reports %q", mode, connection), testprocess.ChangeDeadline, func() error {
		for range 10 {
			_, _ = r.Do(t.Context()) // many fail, as they should
		}
		if n := lab.Reported(t, s.usher.Metrics(t), 8080, connection) - before; n < 3 {
			return errors.Join(fmt.Errorf("it has reported %d", n), s.usher.Alive())
		}
		return nil
	})
}
