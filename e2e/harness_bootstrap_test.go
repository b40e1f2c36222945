//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// ownOptions describe an instance of a gateway whose Envoy has a bootstrap of
// `usher bootstrap`.
type ownOptions struct {
	Host      *host
	Envoy     string   // its version
	XDSAddr   string   // Usher's address
	Gateway   string   // "ingress-gateway" when empty
	AdminPort int      // 19000 when 0
	Args      []string // more arguments of `usher bootstrap`
	Env       []string // of `usher bootstrap`
	EnvoyArgs []string
}

// startOwn makes a bootstrap, starts Envoy with it and waits for Envoy's admin
// port. There may be no configuration for it yet, or ever.
func startOwn(t *testing.T, o ownOptions) *envoy {
	t.Helper()
	if o.Gateway == "" {
		o.Gateway = "ingress-gateway"
	}
	if o.AdminPort == 0 {
		o.AdminPort = 19000
	}
	config := writeFile(t, newDir(t), "bootstrap.json", bootstrap(t, o))
	transport := &http.Transport{DialContext: o.Host.dial}
	t.Cleanup(transport.CloseIdleConnections)
	e := &envoy{
		Host:      o.Host,
		AdminPort: o.AdminPort,
		client:    &http.Client{Transport: transport},
		process: startProcess(t, command{
			Name: o.Gateway + " on " + o.Host.Name + " (Envoy " + o.Envoy + ", own bootstrap)",
			Path: envoyBinary(t, o.Envoy), Host: o.Host,
			Args: append([]string{"-c", config, "--disable-hot-restart", "--file-flush-interval-msec", "20"}, o.EnvoyArgs...),
		}),
	}
	e.Log = &accessLog{process: e.process}
	eventually(t, e.Name+" answers on its admin port", startDeadline, func() error {
		_, err := e.admin("/server_info")
		return err
	})
	return e
}

// bootstrap is what `usher bootstrap` prints.
func bootstrap(t *testing.T, o ownOptions) string {
	t.Helper()
	args := []string{
		"bootstrap", "--gateway", o.Gateway, "--xds-addr", o.XDSAddr,
		"--admin-addr", fmt.Sprintf("127.0.0.1:%d", o.AdminPort),
	}
	end := runToEnd(t, command{Path: usherBinary(t), Args: append(args, o.Args...), Env: o.Env, Host: o.Host})
	if end.Code != 0 || end.Stderr != "" {
		t.Fatalf("usher bootstrap: exit %d: %s", end.Code, end.Stderr)
	}
	return end.Stdout
}

// newMachine is a host of its own without a network: loopback only.
func newMachine(t *testing.T) *host {
	t.Helper()
	h := &host{namespace: newNamespace(t), Name: "machine"}
	h.ip(t, "link set lo up")
	return h
}

// shell runs a line as a user types it on the host.
func (h *host) shell(t *testing.T, line string) ending {
	t.Helper()
	return runToEnd(t, command{Path: tool(t, "sh", "dash"), Args: []string{"-c", line}, Host: h})
}

// wantOneLine wants one line that has all the texts.
func wantOneLine(t *testing.T, line string, texts ...string) {
	t.Helper()
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
		t.Errorf("%q is not one line", line)
	}
	for _, text := range texts {
		if !strings.Contains(line, text) {
			t.Errorf("%q does not say %q", strings.TrimSuffix(line, "\n"), text)
		}
	}
}
