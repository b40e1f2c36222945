//go:build e2e

package lab

import (
	"cmp"
	"fmt"
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

// StartBootstrapped runs `usher bootstrap`, starts Envoy with its output and waits for
// Envoy's admin port. It does not wait for configuration.
func StartBootstrapped(t *testing.T, o BootstrapOptions) *Envoy {
	t.Helper()
	o.Gateway, o.AdminPort = cmp.Or(o.Gateway, "ingress-gateway"), cmp.Or(o.AdminPort, 19000)
	config := WriteFile(t, testprocess.NewDir(t), "bootstrap.json", bootstrap(t, o))
	return runEnvoy(t, o.AdminPort, testprocess.Command{
		Name: o.Gateway + " on " + o.Host.Name + " (Envoy " + o.Envoy + ", own bootstrap)",
		Path: EnvoyBinary(t, o.Envoy), Host: o.Host,
		Args: append([]string{"-c", config, "--disable-hot-restart", "--file-flush-interval-msec", "20"}, o.EnvoyArgs...),
	}, o.Host)
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

// NewIsolatedHost returns a host without a network: loopback only.
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

// WantOneLine wants a single line that contains all the texts.
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
