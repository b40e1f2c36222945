//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// ownFields are ways in which users write the client's address, and what
// they are for a client at 192.0.2.7:40000. Each begins with the address that connects, by which
// the test finds the line.
var ownFields = map[string]string{
	"%DOWNSTREAM_REMOTE_ADDRESS%":              "192.0.2.7:40000",
	"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%": "192.0.2.7",
	"%DOWNSTREAM_REMOTE_PORT%":                 "40000",
}

// TestOwnLogFormats is for a user with a custom log format,
// as text and as JSON. The line of a trusted address has the client, and
// that of an untrusted one has itself, in every form of an address.
func TestOwnLogFormats(t *testing.T) {
	t.Parallel()
	var listeners []lab.TestListener
	for _, protocol := range matrixProtocols {
		listeners = append(listeners, lab.TestListener{Protocol: protocol, Settings: lab.ListenerSettings{Mode: "permissive", TrustedCIDRs: true}})
	}
	l := lab.StartTrustLab(t, listeners)
	operators := slices.Sorted(maps.Keys(ownFields))
	nested := map[string]any{"kind": "json", "peer": peerField, "of": map[string]any{"the": map[string]any{"client": strings.Join(operators, " ")}}}
	object, err := json.Marshal(nested)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []struct {
		name string
		logs api.AccessLogsConfig
	}{
		{"text", api.AccessLogsConfig{Enabled: true, TextFormat: "text " + peerField + " " + strings.Join(operators, " ")}},
		{"json", api.AccessLogsConfig{Enabled: true, JSONFormat: string(object)}},
	} {
		t.Run(format.name, func(t *testing.T) {
			setLogFormat(t, l, format.logs)
			for _, g := range l.Gateways {
				for _, m := range l.Listeners {
					for _, from := range []lab.Downstream{l.Trusted, l.Untrusted} {
						wantLogLine(t, l, format.name, lab.Probe{Gateway: g, Listener: m, From: from, Address: g.Addresses[0]})
					}
				}
			}
		})
	}
}

// peerField finds a line.
const peerField = "peer=%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%;"

func setLogFormat(t *testing.T, l *lab.TrustLab, logs api.AccessLogsConfig) {
	t.Helper()
	_, _, err := l.Consul.Client.ConfigEntries().Set(&api.ProxyConfigEntry{
		Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal, AccessLogs: &logs,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// wantLogLine makes connections until the log has a line of the format for one,
// and wants its addresses to be the right ones.
func wantLogLine(t *testing.T, l *lab.TrustLab, format string, p lab.Probe) {
	t.Helper()
	p.Preface = lab.PrefaceNamed("v2, IPv4")
	var line string
	testprocess.Eventually(t, fmt.Sprintf("%v: a line as %s", p, format), testprocess.ChangeDeadline, func() error {
		p = l.NewProbe(p)
		p.Send(t, l)
		marker := strings.Replace(peerField, "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", p.Source.String(), 1)
		testprocess.Eventually(t, fmt.Sprintf("%v: logged", p), testprocess.ChangeDeadline, func() error {
			line = lineWith(t, p.Gateway.Log, p.Source.String())
			if line == "" {
				return errors.New("it is not")
			}
			return nil
		})
		if !strings.Contains(line, format) || !strings.Contains(line, marker) {
			return fmt.Errorf("the line is %s", line)
		}
		return nil
	})
	var want []string
	for _, operator := range slices.Sorted(maps.Keys(ownFields)) {
		value := ownFields[operator]
		if p.From.Host == l.Untrusted.Host {
			value = strings.NewReplacer("192.0.2.7", p.Source.Addr().String(), "40000", fmt.Sprint(p.Source.Port())).Replace(value)
		}
		want = append(want, value)
	}
	if !strings.Contains(line, strings.Join(want, " ")) {
		t.Errorf("%v: the line is\n%swant %q in it", p, line, want)
	}
}

// lineWith is the last line of the log that has the text in it, or "".
func lineWith(t *testing.T, l *lab.AccessLog, text string) string {
	t.Helper()
	var found string
	for line := range strings.Lines(testprocess.ReadFile(t, l.Stdout)) {
		if strings.Contains(line, text) {
			found = line
		}
	}
	return found
}
