//go:build e2e

package lab

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// BootstrapOptions describe an instance of a gateway whose Envoy has a bootstrap of
// `usher bootstrap`.
type BootstrapOptions struct {
	Host      *Host
	Envoy     string   // its version
	XDSAddr   string   // Usher's address
	Gateway   string   // "ingress-gateway" when empty
	AdminPort int      // 19000 when 0
	Args      []string // more arguments of `usher bootstrap`
	Env       []string // of `usher bootstrap`
	EnvoyArgs []string
}

// StartBootstrapped makes a bootstrap, starts Envoy with it and waits for Envoy's admin
// port. There may be no configuration for it yet, or ever.
func StartBootstrapped(t *testing.T, o BootstrapOptions) *Envoy {
	t.Helper()
	if o.Gateway == "" {
		o.Gateway = "ingress-gateway"
	}
	if o.AdminPort == 0 {
		o.AdminPort = 19000
	}
	config := WriteFile(t, testprocess.NewDir(t), "bootstrap.json", bootstrap(t, o))
	transport := &http.Transport{DialContext: o.Host.Dial}
	t.Cleanup(transport.CloseIdleConnections)
	e := &Envoy{
		Host:      o.Host,
		AdminPort: o.AdminPort,
		client:    &http.Client{Transport: transport},
		Process: testprocess.Start(t, testprocess.Command{
			Name: o.Gateway + " on " + o.Host.Name + " (Envoy " + o.Envoy + ", own bootstrap)",
			Path: EnvoyBinary(t, o.Envoy), Host: o.Host,
			Args: append([]string{"-c", config, "--disable-hot-restart", "--file-flush-interval-msec", "20"}, o.EnvoyArgs...),
		}),
	}
	e.Log = &AccessLog{Process: e.Process}
	testprocess.Eventually(t, e.Name+" answers on its admin port", testprocess.StartDeadline, func() error {
		_, err := e.Admin("/server_info")
		return err
	})
	return e
}

// bootstrap is what `usher bootstrap` prints.
func bootstrap(t *testing.T, o BootstrapOptions) string {
	t.Helper()
	args := []string{
		"bootstrap", "--gateway", o.Gateway, "--xds-addr", o.XDSAddr,
		"--admin-addr", fmt.Sprintf("127.0.0.1:%d", o.AdminPort),
	}
	end := testprocess.Run(t, testprocess.Command{Path: testprocess.Usher(t), Args: append(args, o.Args...), Env: o.Env, Host: o.Host}, "")
	if end.Code != 0 || end.Stderr != "" {
		t.Fatalf("usher bootstrap: exit %d: %s", end.Code, end.Stderr)
	}
	return end.Stdout
}

// NewIsolatedHost is a host of its own without a network: loopback only.
func NewIsolatedHost(t *testing.T) *Host {
	t.Helper()
	h := &Host{Namespace: newNamespace(t), Name: "machine"}
	h.RunIP(t, "link set lo up")
	return h
}

// Shell runs a line as a user types it on the host.
func (h *Host) Shell(t *testing.T, line string) testprocess.Result {
	t.Helper()
	return testprocess.Run(t, testprocess.Command{Path: testprocess.Debian(t, "sh", "dash"), Args: []string{"-c", line}, Host: h}, "")
}

// WantOneLine wants one line that has all the texts.
func WantOneLine(t *testing.T, line string, texts ...string) {
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
