//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// demoOutput is what the demo prints, without ports and times.
const demoOutput = `client 127.0.0.7 --> load balancer 127.0.0.2 --> gateway (Envoy) 127.0.0.1:PORT --> service static-server
The client requests http://static-server.ingress.consul/ three times.

1. mode off, the balancer sends no PROXY header
   client got   200 OK "hello world"
   access log   response_code 200, downstream_remote_address 127.0.0.2:PORT (the load balancer)
   service got  no x-forwarded-for

2. mode off, the balancer sends a PROXY v2 header
   client got   400 Bad Request
   access log   response_code 400, downstream_remote_address 127.0.0.2:PORT (the load balancer)
   service got  nothing: the request did not reach it

Set usher.proxy_protocol.mode = "strict" in proxy-defaults: Envoy applied it after N ms, without a restart.

3. mode strict, the balancer sends a PROXY v2 header
   client got   200 OK "hello world"
   access log   response_code 200, downstream_remote_address 127.0.0.7:PORT (the client)
                downstream_direct_remote_address 127.0.0.2:PORT (the load balancer)
   service got  x-forwarded-for: 127.0.0.7
`

// TestDemo runs the demo as a user does, on a machine with nothing but an
// Envoy: it prints the lab's three requests, exits with 0 and leaves nothing
// behind.
func TestDemo(t *testing.T) {
	t.Parallel()
	for _, version := range lab.Envoys {
		t.Run("envoy "+version, func(t *testing.T) {
			t.Parallel()
			demo := startDemo(t, lab.NewIsolatedHost(t), lab.EnvoyBinary(t, version))
			if code := demo.Wait(t); code != 0 {
				t.Errorf("exit %d, want 0: %s", code, demo.Output(t))
			}
			if got := withoutPorts(demo.Output(t)); got != demoOutput {
				t.Errorf("the demo prints\n%s\nwant\n%s", got, demoOutput)
			}
			if left, _ := filepath.Glob(filepath.Join(demo.Dir, "usher-demo-*")); len(left) > 0 {
				t.Errorf("the demo leaves %v behind", left)
			}
		})
	}
}

// TestDemoStays has the demo wait for the user, who tries its curl lines,
// changes the mode in its files, and ends it with Ctrl-C.
func TestDemoStays(t *testing.T) {
	t.Parallel()
	machine := lab.NewIsolatedHost(t)
	demo := startDemo(t, machine, lab.EnvoyBinary(t, lab.EnvoyNew), "--stay")
	demo.WaitOutput(t, "Access log and requests at the service:\n")
	lines := regexp.MustCompile(`(?m)^    (curl .*)$`).FindAllStringSubmatch(demo.Output(t), -1)
	if len(lines) != 2 {
		t.Fatalf("the demo has %d curl lines, want 2:\n%s", len(lines), demo.Output(t))
	}
	withHeader, plain := lines[0][1], lines[1][1]

	if got := machine.Shell(t, withHeader); got.Code != 0 || got.Stdout != "hello world" {
		t.Errorf("%s: exit %d %q, want \"hello world\"", withHeader, got.Code, got.Stdout)
	}
	demo.WaitOutput(t, "service got  x-forwarded-for: 127.0.0.7\n")
	if got := machine.Shell(t, plain); got.Code == 0 || got.Stdout != "" {
		t.Errorf("%s: exit %d %q, want a closed connection", plain, got.Code, got.Stdout)
	}

	demo.makePermissive(t)
	testprocess.Eventually(t, "the plain connection is served in permissive mode", testprocess.ChangeDeadline, func() error {
		got := machine.Shell(t, plain)
		if got.Stdout != "hello world" {
			return fmt.Errorf("exit %d %q %s", got.Code, got.Stdout, got.Stderr)
		}
		return nil
	})

	// Ctrl-C reaches everything that the terminal runs, Envoy too.
	if err := syscall.Kill(-demo.Pid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := demo.Wait(t); code != 0 {
		t.Errorf("exit %d after Ctrl-C, want 0: %s", code, testprocess.ReadFile(t, demo.Stderr))
	}
	if got := testprocess.ReadFile(t, demo.Stderr); got != "" {
		t.Errorf("Ctrl-C is answered with %q, want nothing", got)
	}
}

// TestDemoWithoutAnEnvoy wants one line that says what is missing and what to do.
func TestDemoWithoutAnEnvoy(t *testing.T) {
	t.Parallel()
	machine := lab.NewIsolatedHost(t)
	for _, envoy := range []string{"/nowhere/envoy", "no-such-envoy", "/etc", "/etc/passwd"} {
		got := testprocess.Run(t, testprocess.Command{Path: testprocess.Usher(t), Args: []string{"demo", "--envoy", envoy}, Host: machine}, "")
		if got.Code != 1 || got.Stdout != "" {
			t.Errorf("--envoy %s: exit %d, output %q, want 1 and none", envoy, got.Code, got.Stdout)
		}
		lab.WantOneLine(t, got.Stderr, "usher: the demo needs an Envoy binary", envoy, "set its path with --envoy")
	}
}

func startDemo(t *testing.T, machine *lab.Host, envoy string, args ...string) *demoRun {
	t.Helper()
	return &demoRun{testprocess.Start(t, testprocess.Command{
		Name: "usher demo", Path: testprocess.Usher(t), Args: append([]string{"demo", "--envoy", envoy}, args...), Host: machine,
	})}
}

// demoRun is a demo that a user has started.
type demoRun struct{ *testprocess.Process }

// makePermissive edits the file that the demo names.
func (d *demoRun) makePermissive(t *testing.T) {
	t.Helper()
	named := regexp.MustCompile(`The configuration is in (\S+);`).FindStringSubmatch(d.Output(t))
	if named == nil {
		t.Fatalf("the demo does not say where its configuration is: %s", d.Output(t))
	}
	path := filepath.Join(named[1], "custom-resources.yaml")
	content := strings.Replace(testprocess.ReadFile(t, path), "mode: strict", "mode: permissive", 1)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

var portsAndTimes = regexp.MustCompile(`(127\.0\.0\.\d):\d+|after \d+ ms`)

func withoutPorts(text string) string {
	return portsAndTimes.ReplaceAllStringFunc(text, func(found string) string {
		if address, _, ok := strings.Cut(found, ":"); ok {
			return address + ":PORT"
		}
		return "after N ms"
	})
}
