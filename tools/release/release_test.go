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
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/tools/image/checkout"
)

// workDir has the copies of the source, and what is built from them.
var workDir string

// asCommand is the variable with which the binary of the tests is the command release.
const asCommand = "USHER_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
		return
	}
	var err error
	if workDir, err = checkout.WorkDir(filepath.Join("..", ".."), "release-test"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(workDir)
	os.Exit(code)
}

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

// build builds a version for linux/amd64, in a process with more environment. The image has a test of this kind in tools/image.
func (m made) build(version string, environment ...string) error {
	cmd := exec.CommandContext(context.Background(), os.Args[0], "build", "-source", m.source, "-out", m.dist, "-version", version, "-platforms", "linux/amd64", "-image=false")
	cmd.Env = append(append(os.Environ(), asCommand+"=1"), environment...)
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("release build of %s in %s: %w\n%s", version, m.source, err, output)
	}
	return nil
}

// The version of next, and what its files have as number.
const (
	nextVersion = "v0.2.0-rc1"
	nextNumber  = "0.2.0-rc1"
)

var (
	// first is a release of a commit.
	first = sync.OnceValues(func() (made, error) {
		m, err := newCopy(filepath.Join("..", ".."), "first", true)
		if err != nil {
			return m, err
		}
		return m, m.build("v0.1.0")
	})

	// next is a pre-release of the version after it, which has another default config file, without git.
	next = sync.OnceValues(func() (made, error) {
		if _, err := first(); err != nil { // it has compiled what all have in common
			return made{}, err
		}
		m, err := newCopy(filepath.Join("..", ".."), "next", false)
		if err != nil {
			return m, err
		}
		if err = edit(filepath.Join(m.source, "tools/release/package/usher.hcl"), "# Usher's settings.", "# Usher's new settings."); err != nil {
			return m, err
		}
		if err = edit(filepath.Join(m.source, "charts/usher/Chart.yaml"), "ersion: 0.1.0", "ersion: "+nextNumber); err != nil {
			return m, err
		}
		return m, m.build(nextVersion, sourceDateEpoch())
	})
)

// sourceDateEpoch is the time of the commit for a build without git.
func sourceDateEpoch() string {
	commit, err := time.Parse(time.RFC3339, checkout.Time)
	if err != nil {
		panic(err) // it is a constant
	}
	return fmt.Sprintf("SOURCE_DATE_EPOCH=%d", commit.Unix())
}

// built returns a release that all tests share.
func built(t *testing.T, release func() (made, error)) made {
	t.Helper()
	m, err := release()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// edit replaces a text in a file.
func edit(file, old, text string) error {
	content, err := os.ReadFile(file)
	if err == nil && !strings.Contains(string(content), old) {
		err = fmt.Errorf("%s has no %q", file, old)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(file, []byte(strings.ReplaceAll(string(content), old, text)), 0o644)
}

// In Tokyo, the commit's day is another one, and in another month.
func TestTwoBuildsOfACommitAreTheSameBytes(t *testing.T) {
	t.Parallel()
	compareWithAnother(t, built(t, first), "v0.1.0", "TZ=Asia/Tokyo")
}

func TestTwoBuildsOfAnArchiveOfTheSourceAreTheSameBytes(t *testing.T) {
	t.Parallel()
	compareWithAnother(t, built(t, next), nextVersion, sourceDateEpoch())
}

// compareWithAnother builds a release from a copy of its source in another directory, and demands the same files.
func compareWithAnother(t *testing.T, m made, version string, environment ...string) {
	t.Helper()
	another, err := newCopy(m.source, "another/and/a/longer/path/"+version, m.commit != "")
	if err != nil {
		t.Fatal(err)
	}
	if err := another.build(version, environment...); err != nil {
		t.Fatal(err)
	}
	compare(t, m.dist, another.dist, append(strings.Fields(filesOf[version]), sumsFile)...)
}

// filesOf are the files of each version for linux/amd64, in the order of their names, without the sums.
var filesOf = map[string]string{
	"v0.1.0": "usher-0.1.0-1.x86_64.rpm usher-0.1.0.tgz usher_0.1.0-1_amd64.deb usher_0.1.0_linux_amd64.cdx.json usher_0.1.0_linux_amd64.tar.gz",
	nextVersion: "usher-0.2.0-rc1.tgz usher-0.2.0.rc1-1.x86_64.rpm usher_0.2.0-rc1_linux_amd64.cdx.json " +
		"usher_0.2.0-rc1_linux_amd64.tar.gz usher_0.2.0.rc1-1_amd64.deb",
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
	t.Parallel()
	m, dir := built(t, first), t.TempDir()
	extract(t, filepath.Join(m.dist, "usher_0.1.0_linux_amd64.tar.gz"), dir)
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
	for _, text := range []string{"==== Go " + runtime.Version() + ": LICENSE", "==== google.golang.org/grpc v", "==== github.com/hashicorp/consul/api v", "Mozilla Public License"} {
		if !strings.Contains(string(licenses), text) {
			t.Errorf("the licenses have no %q", text)
		}
	}
	version, err := exec.CommandContext(t.Context(), filepath.Join(root, "usher"), "version").CombinedOutput()
	if want := "usher v0.1.0 (" + m.commit + ", " + runtime.Version() + ", linux/amd64)\n"; string(version) != want {
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
	t.Parallel()
	chart := filepath.Join(built(t, next).dist, "usher-"+nextNumber+".tgz")
	for _, args := range []string{"show chart", "template usher"} {
		out, err := exec.CommandContext(t.Context(), "../../.tools/helm-3.22.0/helm", append(strings.Fields(args), chart)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), nextNumber) || strings.Contains(string(out), "0.1.0") {
			t.Errorf("helm %s: %v, want version %s:\n%s", args, err, nextNumber, out)
		}
	}
}

// workflow is what the tests read of .github/workflows/release.yml.
type workflow struct {
	Permissions map[string]string
	Jobs        map[string]struct {
		Permissions map[string]string
		Steps       []struct{ Name, Uses, Run string }
	}
}

// The job that runs code of dependencies has no token that can write, and the other one makes a draft of exactly the files
// that the release lists.
func TestDraftHasTheFilesOfTheRelease(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../.github/workflows/release.yml")
	if err != nil {
		t.Fatal(err)
	}
	var w workflow
	if err := yaml.Unmarshal(text, &w); err != nil {
		t.Fatal(err)
	}
	if p := w.Jobs["build"].Permissions; w.Permissions["contents"] != "read" || len(w.Permissions) != 1 || p != nil {
		t.Errorf("the job build has the permissions %v and %v, want contents: read alone", w.Permissions, p)
	}
	var script string
	for _, step := range w.Jobs["draft"].Steps {
		if script += step.Run; step.Run == "" && !strings.HasPrefix(step.Uses, "actions/download-artifact@") {
			t.Errorf("the job draft, which may write, uses %s", step.Uses)
		}
	}
	for _, tc := range []struct {
		made           made
		version, flags string
	}{
		{built(t, first), "v0.1.0", "--draft"},
		{built(t, next), nextVersion, "--draft --prerelease"},
	} {
		bin := t.TempDir()
		if err := os.WriteFile(filepath.Join(bin, "gh"), []byte("#!/bin/sh\necho \"gh $*\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "bash", "-ec", script)
		cmd.Dir = tc.made.dist
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "GITHUB_REF_NAME="+tc.version)
		out, err := cmd.CombinedOutput()
		want := "\ngh release create " + tc.version + " " + tc.flags + " --verify-tag --title " + tc.version + " --notes-file notes.md SHA256SUMS " + filesOf[tc.version] + "\n"
		if err != nil || !strings.HasSuffix(string(out), want) {
			t.Errorf("%v:\n%s\nwant%s", err, out, want)
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
		{"build -out none -version v1.2.3+4", "", `version "v1.2.3+4": use VERSION=v1.2.3`},
		{"build -source ../.. -out none -version v99.0.0", "", "Chart.yaml: version is 0.1.0; set it to 99.0.0, and run make generate"},
		{"changelog -version 1.2.3", "", `version "1.2.3": use VERSION=v1.2.3`},
	} {
		t.Setenv("SOURCE_DATE_EPOCH", tc.epoch)
		err := run(t.Context(), strings.Fields(tc.args), io.Discard)
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("release %s: got %v, want one line with %q", tc.args, err, tc.want)
		}
	}
}
