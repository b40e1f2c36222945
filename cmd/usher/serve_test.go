package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// usher runs the command with args until it ends by itself.
func usher(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := rootCommand()
	cmd.SetOut(&out)
	_, err := execute(t.Context(), cmd, args)
	return out.String(), err
}

func TestServeRefusesBadFlagsInOneLine(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	empty := t.TempDir()
	for _, tc := range []struct {
		name string
		args []string
		want string
	}{
		{"plain text beyond loopback", []string{"--xds-addr", "0.0.0.0:0"}, "--xds-addr 0.0.0.0:0: private keys would cross the network unencrypted"},
		{"plain text on a host name", []string{"--xds-addr", "usher.example:18000"}, "private keys would cross the network unencrypted"},
		{"half a key pair", []string{"--tls-cert", "x"}, "--tls-cert and --tls-key belong together"},
		{"log level", []string{"--log-level", "loud"}, `--log-level "loud" is unknown; use debug, info, warn or error`},
		{"log format", []string{"--log-format", "xml"}, `--log-format "xml" is unknown; use text or json`},
		{"Consul's address", []string{"--consul-http-addr", "ftp://x"}, `unknown scheme "ftp"; write host:port`},
		{"Consul and files", []string{"--config-dir", empty, "--consul-http-addr", "127.0.0.1:1"}, "--config-dir: Usher reads files instead of Consul"},
		{"missing config file", []string{"--config", filepath.Join(empty, "none.hcl")}, "none.hcl"},
		{"a grace of less than nothing", []string{"--balancer-grace", "-1s"}, "--balancer-grace -1s: it must be at least 1s"},
		{"questions without a pause", []string{"--reauthorize-interval", "0"}, "--reauthorize-interval 0s: it must be at least 1s; use a duration such as 30s"},
		{"questions nearly without a pause", []string{"--reauthorize-interval", "1ns"}, "--reauthorize-interval 1ns: it must be at least 1s; use a duration such as 30s"},
		{"questions in the past", []string{"--reauthorize-interval", "-1s"}, "--reauthorize-interval -1s: it must be at least 1s; use a duration such as 30s"},
		{"a drain of less than nothing", []string{"--drain-time", "-1ns"}, "--drain-time -1ns: it must be from 0s to 10m"},
		{"a drain without an end", []string{"--drain-time", "10m1s"}, "--drain-time 10m1s: it must be from 0s to 10m"},
		{"a drain that is no time", []string{"--drain-time", "5"}, "--drain-time"},
		{"no grace", []string{"--balancer-grace", "0s"}, "--balancer-grace 0s: it must be at least 1s, because every load balancer needs time to follow its Service"},
		{"a record without Kubernetes", []string{"--balancer-record", "consul/usher"}, "--balancer-record: Usher does not run in Kubernetes; name the cluster with --kubeconfig, or remove the flag"},
		{"a record without a namespace", []string{"--balancer-record", "usher"}, "--balancer-record usher: use the NAMESPACE/NAME of a ConfigMap"},
		{"missing kubeconfig", []string{"--kubeconfig", filepath.Join(empty, "none.conf")}, "none.conf"},
		{"missing directory", []string{"--config-dir", filepath.Join(empty, "none")}, "none"},
		{"xDS port taken", []string{"--xds-addr", taken.Addr().String()}, "--xds-addr " + taken.Addr().String() + ": "},
		{"admin port taken", []string{"--xds-addr", "127.0.0.1:0", "--admin-addr", taken.Addr().String()}, "--admin-addr " + taken.Addr().String() + ": "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := usher(t, append([]string{"serve"}, tc.args...)...)
			if err == nil {
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}

// TestEveryNumberHasAFloor sets every flag of every command that is a time or a
// number to a negative value.
func TestEveryNumberHasAFloor(t *testing.T) {
	for _, cmd := range rootCommand().Commands() {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			less := map[string]string{"duration": "-1h", "int": "-1", "float64": "-1", "uint": "-1"}[f.Value.Type()]
			if less == "" {
				return
			}
			_, err := usher(t, cmd.Name(), "--"+f.Name, less)
			if err == nil || !strings.Contains(err.Error(), "--"+f.Name) || strings.Contains(err.Error(), "\n") {
				t.Errorf("usher %s --%s %s: %v, want one line that names the flag", cmd.Name(), f.Name, less, err)
			}
		})
	}
}

func TestIsLocal(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:1":        true,
		"127.9.9.9:1":        true,
		"[::1]:1":            true,
		"localhost:1":        true,
		"unix:///tmp/x.sock": true,
		"0.0.0.0:1":          false,
		":1":                 false,
		"[::]:1":             false,
		"10.0.0.1:1":         false,
		"localhost.evil:1":   false,
	} {
		if got := isLocal(addr); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
}

func TestListenReplacesOnlyALeftOverSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.sock")
	first, err := listen(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t.Context(), "unix://"+path); err == nil || !strings.Contains(err.Error(), "another process is listening") {
		t.Errorf("a socket that answers: %v", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false)
	first.Close()
	second, err := listen(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatalf("a socket that is left over: %v", err)
	}
	second.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(t.Context(), "unix://"+path); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("a file that is no socket: %v", err)
	}
}

// fakeChecker returns what the test sets.
type fakeChecker struct {
	mu      sync.Mutex
	why     error
	warning string
}

func (c *fakeChecker) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

func (c *fakeChecker) Warning() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.warning
}

func (c *fakeChecker) set(why error, warning string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.why, c.warning = why, warning
}

func TestAdminSaysWhetherUsherIsReady(t *testing.T) {
	c := &fakeChecker{why: errors.New("consul at http://127.0.0.1:8500: connection refused")}
	other := &fakeChecker{}
	a, err := newAdmin(t.Context(), adminOptions{addr: "127.0.0.1:0"}, slog.New(slog.DiscardHandler), prometheus.NewRegistry(), &readiness{source: c, balancers: other, plane: new(fakePlane), problems: new(fakeProblems)})
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		a.server.Handler.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), http.MethodGet, path, nil))
		text, _ := io.ReadAll(w.Body)
		return w.Code, string(text)
	}
	if code, text := get("/healthz"); code != http.StatusOK || text != "ok\n" {
		t.Errorf("/healthz: %d %q", code, text)
	}
	if code, text := get("/readyz"); code != http.StatusServiceUnavailable || text != "not ready: "+c.why.Error()+"\n" {
		t.Errorf("/readyz: %d %q", code, text)
	}
	c.why = nil
	if code, text := get("/readyz"); code != http.StatusOK || text != "ready\n" {
		t.Errorf("/readyz: %d %q", code, text)
	}
	for want, remarks := range map[string][2]string{
		"ready\nslow\n": {"slow", ""}, "ready\nwaits\n": {"", "waits"}, "ready\nslow\nwaits\n": {"slow", "waits"},
	} {
		c.warning, other.warning = remarks[0], remarks[1]
		if code, text := get("/readyz"); code != http.StatusOK || text != want {
			t.Errorf("/readyz: %d %q, want %q", code, text, want)
		}
	}
}

func TestBootstrapCarriesTheTokenOfConsulsEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONSUL_HTTP_TOKEN_FILE", "")
	t.Setenv("CONSUL_HTTP_TOKEN", "from-env")
	for _, tc := range []struct {
		args []string
		want string
	}{
		{nil, `"value": "from-env"`},
		{[]string{"--token-file", file}, `"value": "from-file"`},
	} {
		out, err := usher(t, append([]string{"bootstrap", "--gateway", "edge"}, tc.args...)...)
		if err != nil || !strings.Contains(out, tc.want) {
			t.Errorf("%v: %v, want %s in\n%s", tc.args, err, tc.want, out)
		}
	}
}

func TestEveryHelpTextIsASentence(t *testing.T) {
	for _, cmd := range rootCommand().Commands() {
		for line := range strings.Lines(cmd.Flags().FlagUsages()) {
			_, help, _ := strings.Cut(strings.TrimSpace(line), "   ")
			help, _, _ = strings.Cut(strings.TrimSpace(help), " (default")
			if help != "" && (strings.ToUpper(help[:1]) != help[:1] || !strings.HasSuffix(help, ".")) {
				t.Errorf("usher %s: %q", cmd.Name(), help)
			}
		}
	}
}

func TestSecurityPageHasEveryLimit(t *testing.T) {
	page, err := os.ReadFile("../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	serveCommand().Flags().VisitAll(func(f *pflag.Flag) {
		if strings.HasPrefix(f.Name, "max-") && !strings.Contains(string(page), "`--"+f.Name+"`") {
			t.Errorf("SECURITY.md does not have --%s", f.Name)
		}
	})
}
