package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/pages"
)

func TestDebIsInstalledStartedUpgradedAndPurged(t *testing.T) {
	t.Parallel()
	if left := inCopyOfSystem(t, "deb.sh", "systemd"); left != "" {
		t.Errorf("after the purge there is still:\n%s", left)
	}
}

func TestDebWorksWithoutSystemd(t *testing.T) {
	t.Parallel()
	if left := inCopyOfSystem(t, "deb-without-systemd.sh", "chroot"); left != "" {
		t.Errorf("after the purge there is still:\n%s", left)
	}
}

func TestRPMIsInstalledStartedUpgradedAndRemoved(t *testing.T) {
	t.Parallel()
	inCopyOfSystem(t, "rpm.sh", "systemd")
}

// The page has commands for systems without a package. They lead to the same.
func TestArchiveIsInstalledByHandLikeTheDeb(t *testing.T) {
	t.Parallel()
	commands := pages.Find(t, "docs/install.md", "tar -xzf usher_")[0].Text
	if left := inCopyOfSystem(t, "by-hand.sh", "chroot", file{name: "commands", content: []byte(commands)}); left != "" {
		t.Errorf("after the purge there is still:\n%s", left)
	}
}

// inCopyOfSystem runs a script of testdata with the packages and other files in a copy of this system, and returns what is
// left in it. With systemd, there is a Consul, too. All of it ends with the test.
func inCopyOfSystem(t *testing.T, script, runner string, files ...file) (left string) {
	t.Helper()
	first, next := built(t, first), built(t, next)
	packages := filepath.Join(workDir, "packages of "+script)
	if err := os.Mkdir(packages, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{
		"old.deb": filepath.Join(first.dist, "usher_0.1.0-1_amd64.deb"), "new.deb": filepath.Join(next.dist, "usher_0.2.0.rc1-1_amd64.deb"),
		"old.rpm": filepath.Join(first.dist, "usher-0.1.0-1.x86_64.rpm"), "new.rpm": filepath.Join(next.dist, "usher-0.2.0.rc1-1.x86_64.rpm"),
		"usher_0.1.0_linux_amd64.tar.gz": filepath.Join(first.dist, "usher_0.1.0_linux_amd64.tar.gz"),
	} {
		if err := os.Link(file, filepath.Join(packages, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(packages, f.name), f.content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	consul, err := filepath.Abs("../../.tools/consul-1.22.7/consul")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"testdata/copy-of-system.sh", "testdata/"+script, runner, packages, consul)
	runtime.LockOSThread() // Linux sends the signal when this thread ends
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr, cmd.WaitDelay = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}, 10*time.Second
	output, err := cmd.CombinedOutput()
	text := string(output)
	if err != nil {
		t.Fatalf("%v (%v):\n%s", err, ctx.Err(), text)
	}
	_, left, ok := strings.Cut(text, "== done\n")
	if !ok {
		t.Fatalf("the script did not come to its end:\n%s", text)
	}
	_, left, _ = strings.Cut(left, "== left\n")
	return left
}
