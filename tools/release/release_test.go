package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/usherproxy/usher/tools/image/checkout"
)

// workDir has the copies of the source.
var workDir string

func TestMain(m *testing.M) {
	var err error
	if workDir, err = os.MkdirTemp("", "usher-release-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(workDir)
	os.Exit(code)
}

// sourceDate is the time of the commit in the copies, for those without git.
const sourceDate = "1770091506"

// made is a directory with a release, the copy of the source that it is built from, and its commit; "" without git.
type made struct{ source, dist, commit string }

// newCopy copies a source, with a git repository or without.
func newCopy(root, name string, withGit bool) (made, error) {
	m := made{source: filepath.Join(workDir, name)}
	m.dist = filepath.Join(m.source, "dist")
	var err error
	if withGit {
		m.commit, err = checkout.Copy(root, m.source)
	} else {
		err = checkout.CopyWithoutGit(root, m.source)
	}
	return m, err
}

// build builds a version for a platform. The image has a test of this kind in tools/image.
func (m made) build(version, platform string) error {
	args := []string{"build", "-source", m.source, "-out", m.dist, "-version", version, "-platforms", platform, "-image=false"}
	return run(context.Background(), args, io.Discard)
}

// forLinux are two builds of one commit in two directories, and the version after it, which has another default config file.
type forLinux struct{ first, second, next made }

// linux makes the releases for Linux, once for all tests.
var linux = sync.OnceValues(func() (l forLinux, err error) {
	if l.first, err = newCopy(filepath.Join("..", ".."), "a", true); err != nil {
		return l, err
	}
	if l.second, err = newCopy(l.first.source, "another/and/a/longer/path", true); err != nil {
		return l, err
	}
	if l.next, err = newCopy(l.first.source, "next", true); err != nil {
		return l, err
	}
	if err = appendTo(filepath.Join(l.next.source, "tools/release/package/usher.hcl"), "# This line is new.\n"); err != nil {
		return l, err
	}
	for _, m := range []made{l.first, l.second} {
		if err = m.build("v0.1.0", "linux/amd64"); err != nil {
			return l, err
		}
	}
	return l, l.next.build("v0.2.0", "linux/amd64")
})

func appendTo(file, text string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(content, text...), 0o644)
}

// builtForLinux returns the releases for Linux.
func builtForLinux(t *testing.T) forLinux {
	t.Helper()
	l, err := linux()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestTwoBuildsOfACommitAreTheSameBytes(t *testing.T) {
	l := builtForLinux(t)
	compare(t, l.first.dist, l.second.dist, "usher_0.1.0-1_amd64.deb", "usher-0.1.0-1.x86_64.rpm",
		"usher_0.1.0_linux_amd64.tar.gz", "usher_0.1.0_linux_amd64.cdx.json", "usher-0.1.0.tgz", "SHA256SUMS")
}

func TestTwoBuildsOfAnArchiveOfTheSourceAreTheSameBytes(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", sourceDate)
	var dists []string
	source := filepath.Join("..", "..")
	for _, name := range []string{"darwin", "another/directory/for/darwin"} {
		m, err := newCopy(source, name, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.build("v0.1.0", "darwin/arm64"); err != nil {
			t.Fatal(err)
		}
		source, dists = m.source, append(dists, m.dist)
	}
	compare(t, dists[0], dists[1],
		"usher_0.1.0_darwin_arm64.tar.gz", "usher_0.1.0_darwin_arm64.cdx.json", "usher-0.1.0.tgz", "SHA256SUMS")
}

// compare demands that two directories have these files and no other, with the same content.
func compare(t *testing.T, first, second string, names ...string) {
	t.Helper()
	for _, dir := range []string{first, second} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != len(names) {
			t.Errorf("%s has %v, want %v", dir, entries, names)
		}
	}
	for _, name := range names {
		a, err := sumOf(filepath.Join(first, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if b, err := sumOf(filepath.Join(second, name)); err != nil || string(a) != string(b) {
			t.Errorf("%s: %x and %x (%v)", name, a, b, err)
		}
	}
}

func TestArchiveHasTheBinaryAndWhatBelongsToIt(t *testing.T) {
	l, dir := builtForLinux(t), t.TempDir()
	extract(t, filepath.Join(l.first.dist, "usher_0.1.0_linux_amd64.tar.gz"), dir)
	root := filepath.Join(dir, "usher_0.1.0_linux_amd64")
	for _, name := range []string{
		"LICENSE", "README.md", "CHANGELOG.md", "usher-policy.hcl", "man/man1/usher.1", "man/man1/usher-serve.1",
		"completions/usher.bash", "completions/_usher", "completions/usher.fish",
		"systemd/usher.service", "systemd/usher.default", "systemd/usher.hcl",
	} {
		if info, err := os.Stat(filepath.Join(root, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	licenses, err := os.ReadFile(filepath.Join(root, "THIRD-PARTY-LICENSES"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"==== google.golang.org/grpc v", "==== github.com/hashicorp/consul/api v", "Mozilla Public License"} {
		if !strings.Contains(string(licenses), text) {
			t.Errorf("the licenses have no %q", text)
		}
	}
	version, err := exec.CommandContext(t.Context(), filepath.Join(root, "usher"), "version").CombinedOutput()
	if want := "usher v0.1.0 (" + l.first.commit + ", " + runtime.Version() + ", linux/amd64)\n"; string(version) != want {
		t.Errorf("usher version: got %q (%v), want %q", version, err, want)
	}
}

func extract(t *testing.T, archive, dir string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "tar", "-xzf", archive, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestChartHasTheVersionOfTheRelease(t *testing.T) {
	chart := filepath.Join(builtForLinux(t).next.dist, "usher-0.2.0.tgz")
	for _, args := range []string{"show chart", "template usher"} {
		out, err := exec.CommandContext(t.Context(), "../../.tools/helm-3.22.0/helm", append(strings.Fields(args), chart)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "0.2.0") || strings.Contains(string(out), "0.1.0") {
			t.Errorf("helm %s: %v, want version 0.2.0:\n%s", args, err, out)
		}
	}
}

func TestMistakesOnTheCommandLine(t *testing.T) {
	for _, tc := range []struct{ args, epoch, want string }{
		{"", "", "no command; use: release build -source DIR"},
		{"biuld", "", `unknown command "biuld"; use: release build -source DIR`},
		{"build -version", "", "flag needs an argument: -version"},
		{"build -out none", "", `version "": use VERSION=v1.2.3, a semantic version`},
		{"build -out none -version 1.2.3", "", `version "1.2.3": use VERSION=v1.2.3`},
		{"build -out none -version v1.2", "", `version "v1.2": use VERSION=v1.2.3`},
		{"changelog -version 1.2.3", "", `version "1.2.3": use VERSION=v1.2.3`},
	} {
		t.Setenv("SOURCE_DATE_EPOCH", tc.epoch)
		err := run(t.Context(), strings.Fields(tc.args), io.Discard)
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("release %s: got %v, want one line with %q", tc.args, err, tc.want)
		}
	}
}
