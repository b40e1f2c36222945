//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestMovingToUsherAndBackLosesNothing follows the way of docs/cutover.md to move a gateway on a VM, and its way back, with
// the page's own commands: a gateway on Consul's own xDS moves to Usher, its balancer begins to send PROXY protocol, and then
// all of it is undone. Before each step, usher cutover refuses where requests would be lost, and says why. Requests come
// through the balancer all the time, and eight hundred a second directly to the gateway while one Envoy replaces the other.
// None fails.
//
// It does not run beside other stories: what it does to the kernel's queues shows at a high rate only.
func TestMovingToUsherAndBackLosesNothing(t *testing.T) {
	s := &modesStory{Lab: lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)}
	s.gateway = lab.StartGateway(t, lab.GatewayOptions{Host: s.Gateway, Consul: s.Consul, Envoy: lab.EnvoyNew})
	lab.WaitStatus(t, s.Request("/"), http.StatusOK)
	load := lab.StartLoad(t, s.Request("/"))
	c := &cutover{modesStory: s, systemd: newSystemd(t)}

	c.wantRefused(t, "usher cutover --dry-run", "REFUSED: net.ipv4.tcp_migrate_req is 0", "REFUSED: --usher-admin-addr: no Usher answers at http://127.0.0.1:18001: ")
	c.run(t, commandOf(t, pages.Find(t, "docs/cutover.md", "sysctl -w")))
	s.usher = lab.StartUsher(t, lab.UsherOptions{Host: s.Gateway, Consul: s.Consul, Config: pages.Find(t, "docs/cutover.md", "gateway \"ingress-gateway\"")[0].Text})
	s.writeFile(t, "strict")
	c.wantRefused(t, "usher cutover", "REFUSED: 198.18.0.20:8080: off -> strict: what the old Envoy serves now has no header")
	s.writeFile(t, "permissive")
	c.wantPlan(t, commandOf(t, pages.Find(t, "docs/cutover.md", "usher cutover --dry-run")), "ok: 198.18.0.20:8080: off -> permissive")
	c.wantOtherUserRefused(t)
	c.wantInterrupted(t)
	if command := commandOf(t, pages.Find(t, "docs/cutover.md", "consul connect envoy")); !strings.HasSuffix(command, "-grpc-addr http://127.0.0.1:18000 -admin-bind 127.0.0.1:19001") {
		t.Errorf("the new Envoy has other flags than the test gives it: %s", command)
	}
	c.replaceEnvoy(t, commandOf(t, pages.Find(t, "docs/cutover.md", "usher cutover --start")), lab.GatewayOptions{
		Envoy: lab.EnvoyNew, GRPCAddr: s.usher.GRPCAddr, AdminPort: 19001,
	})
	c.replaceEnvoy(t, commandOf(t, pages.Find(t, "docs/cutover.md", "usher cutover --old")), lab.GatewayOptions{
		Envoy: lab.EnvoyOld, GRPCAddr: s.usher.GRPCAddr, AdminPort: 19000,
	})
	c.replaceEnvoy(t, "usher cutover", lab.GatewayOptions{Envoy: lab.EnvoyNew, GRPCAddr: s.usher.GRPCAddr, AdminPort: 19001})

	c.run(t, strings.Replace(commandOf(t, pages.Find(t, "docs/cutover.md", "usher probe --expect permissive")), "<the gateway>", lab.GatewayIP, 1))

	s.switchBalancer(t, lab.SendV2)
	s.switchMode(t, "strict", func() { s.writeFile(t, "strict") })
	load.WaitMore(t)
	c.wantRefused(t, "usher cutover --undo", "REFUSED: 198.18.0.20:8080: strict -> off: the load balancer sends headers")
	s.switchMode(t, "permissive", func() { s.writeFile(t, "permissive") })
	c.wantRefused(t, "usher cutover --undo", "connections with a PROXY header came just now")
	s.switchBalancer(t, lab.SendNone)
	c.replaceEnvoy(t, commandOf(t, pages.Find(t, "docs/cutover.md", "usher cutover --undo")), lab.GatewayOptions{Envoy: lab.EnvoyNew, AdminPort: 19000})
	s.usher.Stop(t)
	load.WaitMore(t)
	if err := s.checkMode(t, "off"); err != nil {
		t.Errorf("back on Consul's own xDS: %v, want plain 200, with a header 400", err)
	}
	load.WantNoFailures(t)
}

// systemd is a systemctl that waits until its files say that a test has done what it was asked for.
type systemd struct{ dir string }

func newSystemd(t *testing.T) systemd {
	t.Helper()
	s := systemd{testprocess.NewDir(t)}
	path := lab.WriteFile(t, s.dir, "systemctl", "#!/bin/sh\n: > \"$(dirname \"$0\")/$1\"\n")
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// wait waits until systemctl is called with a verb.
func (s systemd) wait(t *testing.T, verb string, alive func() error) {
	t.Helper()
	testprocess.Eventually(t, "systemctl "+verb, testprocess.StartDeadline, func() error {
		return errors.Join(os.Remove(filepath.Join(s.dir, verb)), alive())
	})
}

// cutover runs usher cutover.
type cutover struct {
	*modesStory
	systemd systemd
}

// command is a command line on the gateway's host.
func (c *cutover) command(t *testing.T, line string) testprocess.Command {
	t.Helper()
	return cutoverCommand(t, c.Lab, line, filepath.Join(c.systemd.dir, "systemctl"))
}

// cutoverCommand is a command line on the gateway's host that finds usher and other programs.
func cutoverCommand(t *testing.T, l *lab.Lab, line string, programs ...string) testprocess.Command {
	t.Helper()
	return testprocess.Command{
		Name: line, Path: testprocess.Debian(t, "sh", "dash"), Args: []string{"-c", "exec " + line}, Host: l.Gateway,
		Env: append(l.Consul.Env(""), lab.Path(append(programs, testprocess.Usher(t))...)),
	}
}

// wantRefused wants a cutover refused for these reasons.
func (c *cutover) wantRefused(t *testing.T, line string, reasons ...string) {
	t.Helper()
	c.wantEnd(t, line, 1, append(reasons, "; nothing has changed"))
}

// wantPlan wants a cutover that would do this.
func (c *cutover) wantPlan(t *testing.T, line string, texts ...string) {
	t.Helper()
	c.wantEnd(t, line, 0, texts)
}

// wantEnd waits until a command ends with a status and these texts: Usher reads its config file within a second.
func (c *cutover) wantEnd(t *testing.T, line string, code int, texts []string) {
	t.Helper()
	testprocess.Eventually(t, line, testprocess.ChangeDeadline, func() error {
		end := testprocess.Run(t, c.command(t, line), "")
		output := end.Stdout + end.Stderr
		for _, text := range texts {
			if end.Code != code || !strings.Contains(output, text) {
				return fmt.Errorf("exit status %d, want %d and %q: %s", end.Code, code, text, output)
			}
		}
		return nil
	})
}

// wantOtherUserRefused starts a new Envoy as another user, which cannot listen on the ports of the old one.
func (c *cutover) wantOtherUserRefused(t *testing.T) {
	t.Helper()
	bootstrap := c.run(t, "usher bootstrap --gateway ingress-gateway --admin-addr 127.0.0.1:19001")
	other := testprocess.Start(t, testprocess.Command{
		Name: "Envoy of another user", Path: testprocess.Debian(t, "setpriv", "util-linux"), Host: c.Gateway,
		Args: []string{"--reuid", "65534", "--clear-groups", lab.EnvoyBinary(t, lab.EnvoyNew), "--disable-hot-restart", "--config-yaml", bootstrap},
	})
	c.wantEnd(t, "usher cutover", 1, []string{
		"the new Envoy refuses the listener http:198.18.0.20:8080: ", "run the new Envoy as the user of the old one; the old Envoy serves",
	})
	other.Stop(t)
}

// wantInterrupted ends a cutover with Ctrl-C.
func (c *cutover) wantInterrupted(t *testing.T) {
	t.Helper()
	run := testprocess.Start(t, c.command(t, "usher cutover"))
	run.WaitOutput(t, "start the new Envoy now")
	run.Signal(t, syscall.SIGINT)
	if code := run.Wait(t); code != 1 || !strings.Contains(run.Output(t), "usher: interrupted; the old Envoy serves") {
		t.Errorf("exit status %d: %s", code, run.Output(t))
	}
}

// replaceEnvoy replaces the gateway's Envoy by another one. Where the command does not start and end them, the test does when
// it is asked to.
func (c *cutover) replaceEnvoy(t *testing.T, line string, by lab.GatewayOptions) {
	t.Helper()
	var straight []*lab.Load
	for range 4 {
		straight = append(straight, lab.StartLoad(t, lab.Request{From: c.Balancer, To: c.Gateway.Addr(8080)}))
	}
	straight[0].WaitMore(t)
	run := testprocess.Start(t, c.command(t, line))
	byItself := strings.Contains(line, "--start")
	wait := func(verb, text string) {
		if byItself {
			c.systemd.wait(t, verb, run.Alive)
		} else {
			run.WaitOutput(t, text)
		}
	}
	wait("enable", "start the new Envoy now")
	old := c.gateway
	by.Host, by.Consul = c.Gateway, c.Consul
	c.gateway = lab.StartGateway(t, by)
	wait("disable", "the old Envoy has no connection any more; end it")
	if byItself && by.GRPCAddr != "" {
		c.wantNoWayBack(t, old)
	}
	old.Stop(t)
	if code := run.Wait(t); code != 0 {
		t.Errorf("%s: exit status %d: %s", line, code, run.Output(t))
	}
	straight[0].WaitMore(t)
	for _, load := range straight {
		load.WantNoFailures(t)
	}
	t.Log(run.Output(t))
}

// wantNoWayBack wants a cutover refused to an Envoy that has closed its listeners, although it calls itself live and lists
// them.
func (c *cutover) wantNoWayBack(t *testing.T, old *lab.Envoy) {
	t.Helper()
	postToAdmin(t, old, "/healthcheck/ok")
	c.wantEnd(t, "usher cutover --undo", 1, []string{"drains, and cannot serve again; end it, and run this again; only the old Envoy accepts connections"})
}

// commandOf is the command of the one block.
func commandOf(t *testing.T, blocks []pages.Block) string {
	t.Helper()
	return strings.TrimSpace(pages.Only(t, blocks).Text)
}

// run runs a command line on the gateway's host.
func (c *cutover) run(t *testing.T, line string) string {
	t.Helper()
	output, err := testprocess.RunOutput(t, c.command(t, line), "")
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, output)
	}
	return output
}
