//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
)

// TestServerSpeaksFirst has a service that greets before the client has sent a
// byte, as mail servers and databases do. Behind a listener that looks for PROXY
// headers its clients would wait forever. If the listener's settings say that
// the server speaks first, Usher rejects the combination, and the greeting still
// arrives.
func TestServerSpeaksFirst(t *testing.T) {
	t.Parallel()
	l := lab.StartTrustLab(t, []lab.TestListener{{Protocol: "tcp", Settings: lab.ListenerSettings{Mode: "off", Extra: `server_speaks_first = "yes"`}}})
	wantGreeting(t, l)

	l.Listeners[0].Settings.Mode = "permissive"
	if err := os.WriteFile(l.Usher.ConfigFile, []byte(l.Config()), 0o644); err != nil {
		t.Fatal(err)
	}
	l.Usher.WaitOutput(t, "proxy_protocol.server_speaks_first")
	if strings.Contains(l.Usher.Output(t), "severity=outage") {
		t.Errorf("usher says that it is an outage, and the last valid listener stays:\n%s", l.Usher.Output(t))
	}
	if errors := l.Usher.Errors(t); len(errors) == 0 || !strings.Contains(errors[0], fmt.Sprintf("listener %d", l.Listeners[0].Port)) {
		t.Errorf("usher logs %q, want the listener's port", errors)
	}
	wantGreeting(t, l)
}

// wantGreeting wants every gateway to bring a silent client the greeting of the
// service.
func wantGreeting(t *testing.T, l *lab.TrustLab) {
	t.Helper()
	for _, g := range l.Gateways {
		p := l.NewProbe(lab.Probe{Gateway: g, Listener: l.Listeners[0], From: l.Untrusted, Address: g.Addresses[0]})
		conn, err := p.From.DialFrom(t.Context(), p.Source, p.Target())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(lab.RequestTimeout)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(lab.TCPGreeting))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != lab.TCPGreeting {
			t.Errorf("%v: a silent client gets %q (%v), want %q", p, got, err, lab.TCPGreeting)
		}
	}
}
