//go:build e2e

package lab

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

//go:embed machine.sh
var bootMachine string

// Machine is a clean Debian 12 that systemd has booted as process 1, in namespaces that end with the test. What is written
// on it is in memory. Its network is that of a host.
type Machine struct {
	process *testprocess.Process
	host    *Host
	pid     int // of its systemd, as the test sees it
}

// StartMachine boots a machine on a host's network. It has programs, by their names, in /usr/local/bin, and files, by their
// paths on the machine.
func StartMachine(t *testing.T, h *Host, programs, files map[string]string) *Machine {
	t.Helper()
	dir, group := testprocess.NewDir(t), newGroup(t)
	args := []string{
		"--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL",
		testprocess.Debian(t, "sh", "dash"), "-euc", `echo 0 >"$1/cgroup.procs"; shift; exec unshare --cgroup sh -euc "$0" boot "$@"`,
		bootMachine, group, dir, testprocess.Tool(t, testprocess.Machine, "root"), h.Name,
	}
	for name, path := range programs {
		args = append(args, path, "/usr/local/bin/"+name)
	}
	for on, path := range files {
		absolute, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, absolute, on)
	}
	m := &Machine{host: h, process: testprocess.Start(t, testprocess.Command{
		Name: "the machine " + h.Name, Path: testprocess.Debian(t, "unshare", "util-linux"), Args: args, Host: h,
	})}
	testprocess.Eventually(t, m.process.Name+" has booted", testprocess.StartDeadline, func() error {
		return m.booted(t)
	})
	t.Cleanup(func() {
		if t.Failed() {
			c := m.command("journalctl", "--lines", "60")
			output, err := exec.CommandContext(context.Background(), c.Path, c.Args...).CombinedOutput() // the test's context is over
			t.Logf("end of the journal: %v\n%s", err, output)
		}
	})
	return m
}

// booted is nil once every unit of the machine has started. That one has failed is final.
func (m *Machine) booted(t *testing.T) error {
	t.Helper()
	if err := m.process.Alive(); err != nil {
		return err
	}
	children := strings.Fields(testprocess.ReadFile(t, fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", m.process.Pid())))
	if len(children) != 1 {
		return fmt.Errorf("it has the processes %v", children)
	}
	pid, err := strconv.Atoi(children[0])
	if err != nil {
		return err
	}
	m.pid = pid
	state, err := testprocess.RunOutput(t, m.command("systemctl", "is-system-running"), "")
	if strings.TrimSpace(state) == "degraded" {
		failed := testprocess.Run(t, m.command("systemctl", "list-units", "--failed", "--plain", "--no-legend"), "")
		return testprocess.Permanent(fmt.Errorf("units have failed: %s%s", failed.Stdout, failed.Stderr))
	}
	if err != nil {
		return fmt.Errorf("systemd: %w: %s", err, state)
	}
	return nil
}

// Shell runs a shell of root's on the machine.
func (m *Machine) Shell() testprocess.Command {
	return m.command("bash", "-c", "cd && exec bash")
}

// command runs a program on the machine.
func (m *Machine) command(program string, args ...string) testprocess.Command {
	enter := []string{
		"--target", fmt.Sprint(m.pid), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "/usr/bin/env", "-i",
		"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0", program,
	}
	return testprocess.Command{Name: program + " on " + m.process.Name, Path: "/usr/bin/nsenter", Args: append(enter, args...), Host: m.host}
}

// newGroup makes a cgroup of version 2 until the test ends, in which a machine makes others.
func newGroup(t *testing.T) string {
	t.Helper()
	parent := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(parent, "cgroup.controllers")); err != nil {
		parent = "/sys/fs/cgroup/unified"
	}
	group, err := os.MkdirTemp(parent, "usher-e2e-") //nolint:usetesting // it is a cgroup
	if err != nil {
		t.Fatalf("make a cgroup (the e2e tests need root and cgroups of version 2): %v", err)
	}
	t.Cleanup(func() {
		testprocess.Eventually(t, "the machine's cgroups are empty", testprocess.StartDeadline, func() error { return removeGroup(group) })
	})
	return group
}

// removeGroup removes a cgroup with those in it, whose processes have ended.
func removeGroup(group string) error {
	var groups []string
	err := filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			groups = append(groups, path)
		}
		return err
	})
	for _, path := range slices.Backward(groups) {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

var (
	built   string    // the directory of the release that the tests have built; "" is none
	release sync.Once // builds it
)

// RemoveRelease removes what Release has built, when all tests are over.
func RemoveRelease() { os.RemoveAll(built) }

// Release is the path of the one file of a release that a pattern matches. The first call of all tests builds the release, for
// machines such as this one.
func Release(t *testing.T, pattern string) string {
	t.Helper()
	release.Do(func() { buildRelease(t) })
	found, err := filepath.Glob(filepath.Join(built, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("the release in %q has %v for %s, want one file (%v)", built, found, pattern, err)
	}
	return found[0]
}

// releaseDeadline is for a machine without any compiled package.
const releaseDeadline = 10 * time.Minute

func buildRelease(t *testing.T) {
	t.Helper()
	out, err := os.MkdirTemp("", "usher-e2e-release-") //nolint:usetesting // it outlives the test
	if err != nil {
		t.Fatal(err)
	}
	built = out
	root := testprocess.Root(t)
	build := testprocess.Start(t, testprocess.Command{
		Name: "the build of a release", Path: "go", Env: os.Environ(), // with the caches of go
		Args: []string{
			"-C", filepath.Join(root, "tools", "release"), "run", ".", "build", "-source", root, "-out", out,
			"-platforms", "linux/" + runtime.GOARCH, "-image=false", "-version", "v0.1.0",
		},
	})
	testprocess.Eventually(t, build.Name+" ends", releaseDeadline, func() error {
		if build.Alive() == nil {
			return errors.New("it runs")
		}
		return nil
	})
	if code := build.Wait(t); code != 0 {
		t.Fatalf("%s: exit status %d: %s", build.Name, code, build.Output(t))
	}
}
