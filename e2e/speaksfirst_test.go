//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// TestServerSpeaksFirst is the story of a service that greets before its client
// has said a word, as mail servers and databases do. Behind a listener that
// looks for PROXY headers its clients would wait for ever: where the listener
// says what kind of service it has, the combination is refused, and the greeting
// goes on arriving.
func TestServerSpeaksFirst(t *testing.T) {
	t.Parallel()
	l := startPeersLab(t, []testListener{{protocol: "tcp", policy: policy{mode: "off", more: `server_speaks_first = "yes"`}}})
	l.wantGreeting(t)

	l.listeners[0].policy.mode = "permissive"
	if err := os.WriteFile(l.Usher.ConfigFile, []byte(l.config()), 0o644); err != nil {
		t.Fatal(err)
	}
	l.Usher.WaitOutput(t, "usher.proxy_protocol.server_speaks_first")
	if errors := l.Usher.errors(t); len(errors) == 0 || !strings.Contains(errors[0], fmt.Sprintf("listener %d", l.listeners[0].port)) {
		t.Errorf("usher logs %q, want the listener's port", errors)
	}
	l.wantGreeting(t)
}

// wantGreeting wants every gateway to bring a silent client the greeting of the
// service.
func (l *peersLab) wantGreeting(t *testing.T) {
	t.Helper()
	for _, g := range l.gateways {
		p := l.newProbe(probe{gateway: g, listener: l.listeners[0], from: l.stranger, address: g.addresses[0]})
		conn, err := p.from.dialFrom(t.Context(), p.source, p.target())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(tcpGreeting))
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != tcpGreeting {
			t.Errorf("%v: a silent client gets %q (%v), want %q", p, got, err, tcpGreeting)
		}
	}
}
