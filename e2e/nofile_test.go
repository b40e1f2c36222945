//go:build e2e

package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestConfigThatIsNotARegularFile replaces configuration files with a FIFO, a
// device and a truncated file while the gateway is strict. The gateway stays
// strict, Usher logs the problem once, applies changes once the file is back,
// and ends on SIGTERM.
func TestConfigThatIsNotARegularFile(t *testing.T) {
	t.Parallel()
	const good = "gateway \"ingress-gateway\" {\n  usher { proxy_protocol { mode = \"strict\" } }\n}\n"
	l := startFileLab(t, good)
	l.HAProxy.SetHeader(t, lab.SendV2)
	lab.WaitStatus(t, l.call("/"), http.StatusOK)
	file, resources := l.Usher.ConfigFile, l.resources()
	write := func(text string) {
		replaceBy(t, file, func(path string) error { return os.WriteFile(path, []byte(text), 0o600) })
	}
	const noFile = "cannot be read: it is not a regular file; "

	for _, bad := range []struct {
		where, what string
		spoil, put  func()
	}{
		{file, noFile + "correct it; the last valid content stays in use", func() { putFIFO(t, file) }, func() { write(good) }},
		{resources, noFile + "correct it, or remove it", func() { putFIFO(t, resources) }, func() { l.writeResources(t) }},
		{file, noFile + "correct it; the last valid content stays in use", func() { putDevice(t, file) }, func() { write(good) }},
		{file + ":1", `this is not HCL: "\400" is neither a number nor a text that HCL understands; correct it`, func() { write(`gateway "\400" {}`) }, func() { write(good) }},
	} {
		trouble := l.Usher.WantProblem(t, `msg=problem `+lab.LoggedProblem(bad.where, bad.what), bad.spoil)
		l.wantStrict(t)
		trouble.WantFixed(t, bad.put)
	}

	putFIFO(t, file)
	putFIFO(t, resources)
	l.Usher.Stop(t)
	want := "usher: " + resources + ": " + noFile + "correct it, or remove it\n"
	if got := l.serve(t, "--config-dir", l.Dir); got.Code != 1 || got.Stderr != want {
		t.Errorf("exit %d %q, want 1 %q", got.Code, got.Stderr, want)
	}
	l.writeResources(t)
	want = "usher: config file: read " + file + ": it is not a regular file\n"
	if got := l.serve(t, "--config-dir", l.Dir, "--config", file); got.Code != 1 || got.Stderr != want {
		t.Errorf("exit %d %q, want 1 %q", got.Code, got.Stderr, want)
	}
	write(`{"usher": "\u12`)
	want = "usher: " + file + ":1: this is not JSON: invalid character ' ' in \\u hexadecimal character escape; correct it\n"
	if got := l.serve(t, "--config-dir", l.Dir, "--config", file); got.Code != 1 || got.Stderr != want {
		t.Errorf("exit %d %q, want 1 %q", got.Code, got.Stderr, want)
	}
	l.wantStrict(t)
}

// putFIFO puts a FIFO without a writer in the place of a file.
func putFIFO(t *testing.T, path string) {
	t.Helper()
	replaceBy(t, path, func(path string) error { return syscall.Mkfifo(path, 0o600) })
}

// putDevice puts a link to a device that never ends in the place of a file.
func putDevice(t *testing.T, path string) {
	t.Helper()
	replaceBy(t, path, func(path string) error { return os.Symlink("/dev/zero", path) })
}

func replaceBy(t *testing.T, path string, create func(path string) error) {
	t.Helper()
	next := filepath.Join(testprocess.NewDir(t), "next")
	if err := create(next); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}
