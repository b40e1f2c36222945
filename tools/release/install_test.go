package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestDebIsInstalledStartedUpgradedAndPurged(t *testing.T) {
	consul, err := filepath.Abs("../../.tools/consul-1.22.7/consul")
	if err != nil {
		t.Fatal(err)
	}
	if left := inCopyOfSystem(t, "deb.sh", "systemd", consul); left != "" {
		t.Errorf("after the purge there is still:\n%s", left)
	}
}

func TestDebWorksWithoutSystemd(t *testing.T) {
	if left := inCopyOfSystem(t, "deb-without-systemd.sh", "chroot"); left != "" {
		t.Errorf("after the purge there is still:\n%s", left)
	}
}

func TestRPMIsInstalledUpgradedAndRemoved(t *testing.T) {
	inCopyOfSystem(t, "rpm.sh", "chroot")
}

// inCopyOfSystem runs a script of testdata with the packages in a copy of this system, and returns what is left in it.
func inCopyOfSystem(t *testing.T, script, runner string, more ...string) (left string) {
	t.Helper()
	l, packages := builtForLinux(t), t.TempDir()
	for name, file := range map[string]string{
		"old.deb": filepath.Join(l.first.dist, "usher_0.1.0-1_amd64.deb"), "new.deb": filepath.Join(l.next.dist, "usher_0.2.0-1_amd64.deb"),
		"old.rpm": filepath.Join(l.first.dist, "usher-0.1.0-1.x86_64.rpm"), "new.rpm": filepath.Join(l.next.dist, "usher-0.2.0-1.x86_64.rpm"),
	} {
		if err := os.Link(file, filepath.Join(packages, name)); err != nil {
			t.Fatal(err)
		}
	}
	args := append([]string{"--mount", "--propagation", "private", "testdata/copy-of-system.sh", "testdata/" + script, runner, packages}, more...)
	cmd := exec.CommandContext(t.Context(), "unshare", args...)
	output, err := cmd.CombinedOutput()
	text := string(output)
	if err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	_, left, ok := strings.Cut(text, "== done\n")
	if !ok {
		t.Fatalf("the script did not come to its end:\n%s", text)
	}
	_, left, _ = strings.Cut(left, "== left\n")
	return left
}
