package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

// options say what to build.
type options struct {
	source    string   // root of Usher's module
	out       string   // directory of what is built
	version   string   // such as v1.2.3
	platforms []string // such as linux/amd64
	image     bool     // build the container image, too
}

// allPlatforms are those that a release is for.
var allPlatforms = []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"}

// checkVersion returns an error if a version is not one by https://semver.org with the "v" of Go and of git's tags. Build
// metadata is not allowed.
func checkVersion(version string) error {
	if version == "" || semver.Canonical(version) != version {
		return fmt.Errorf("version %q: use VERSION=v1.2.3, a semantic version", version)
	}
	return nil
}

// release is what all files of a release have in common.
type release struct {
	options
	work     string    // directory of binaries and pages on the way
	modified time.Time // of every file
}

// build writes the files of a release, and the sums of them.
func build(ctx context.Context, o options, out io.Writer) error {
	if err := checkVersion(o.version); err != nil {
		return err
	}
	if err := o.checkChart(); err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(o.out, ".release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	r := release{options: o, work: work}
	if r.modified, err = timeOf(ctx, o.source); err != nil {
		return err
	}
	if err := r.compile(ctx); err != nil {
		return err
	}
	if err := removeOld(o.out); err != nil {
		return err
	}
	files, err := r.write(ctx)
	if err != nil {
		return err
	}
	return writeSums(o.out, files, out)
}

// number returns the version without "v", as packages and charts have it.
func (o options) number() string { return strings.TrimPrefix(o.version, "v") }

// timeOf returns SOURCE_DATE_EPOCH, else the time of the commit.
func timeOf(ctx context.Context, source string) (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		cmd := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct")
		cmd.Dir = source
		commit, err := cmd.Output()
		if failed, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(failed.Stderr))
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("the time of the commit: git log in %s: %w; without git, set SOURCE_DATE_EPOCH", source, err)
		}
		text = strings.TrimSpace(string(commit))
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%s: it must be a number of seconds since 1970; unset it to use the commit's time", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// compile puts into the work directory what the files of the release are made of: binaries with their SBOMs, manual pages,
// completions and the image.
func (r release) compile(ctx context.Context) error {
	work, err := filepath.Abs(r.work)
	if err != nil {
		return err
	}
	source, err := filepath.Abs(r.source)
	if err != nil {
		return err
	}
	image := []string{"-C", filepath.Join(source, "tools", "image"), "run", "-trimpath", "."}
	from := []string{"-source", source, "-out", work, "-version", r.version}
	commands := [][]string{
		slices.Concat(image, []string{"binaries", "-platforms", strings.Join(r.platforms, ",")}, from),
		{"test", "-trimpath", "-count=1", "-run", "^TestManualPagesAndCompletionsAreMadeFromTheCommands$", "./cmd/usher", "-manual", work},
	}
	if r.image {
		commands = append(commands, slices.Concat(image, []string{"build"}, from))
	}
	for _, args := range commands {
		if err := r.goCommand(ctx, args); err != nil {
			return err
		}
	}
	return nil
}

// goCommand runs the go command in the source. The error has its output. Manual pages have local time.
func (r release) goCommand(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = r.source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "TZ=UTC", "SOURCE_DATE_EPOCH="+strconv.FormatInt(r.modified.Unix(), 10))
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, output)
	}
	return nil
}

// patterns are the names that files of releases have.
var patterns = []string{"usher_*.tar.gz", "usher_*.deb", "usher-*.rpm", "usher_*.cdx.json", "usher_*_image.tar", "usher-*.tgz", sumsFile}

// sumsFile has a line for each file, for sha256sum --check.
const sumsFile = "SHA256SUMS"

// removeOld removes the files of the last release.
func removeOld(dir string) error {
	for _, pattern := range patterns {
		old, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, file := range old {
			if err := os.Remove(file); err != nil {
				return err
			}
		}
	}
	return nil
}

// write writes the files of the release, and returns their names.
func (r release) write(ctx context.Context) ([]string, error) {
	notices, err := r.notices(ctx)
	if err != nil {
		return nil, err
	}
	manual, err := r.manual()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, platform := range r.platforms {
		system, arch, _ := strings.Cut(platform, "/")
		p := product{release: r, system: system, arch: arch, notices: notices, manual: manual}
		made, err := p.write()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", platform, err)
		}
		names = append(names, made...)
	}
	chart, err := r.writeChart()
	if err != nil {
		return nil, err
	}
	names = append(names, chart)
	if r.image {
		archive := "usher_" + r.number() + "_image.tar"
		if err := os.Rename(filepath.Join(r.work, "usher-image.tar"), filepath.Join(r.out, archive)); err != nil {
			return nil, err
		}
		names = append(names, archive)
	}
	return names, nil
}

// writeSums writes the sum of each file, and prints it.
func writeSums(dir string, names []string, out io.Writer) error {
	slices.Sort(names)
	var sums strings.Builder
	for _, name := range names {
		sum, err := sumOf(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sum, name)
	}
	_, err := io.WriteString(out, sums.String())
	return errors.Join(err, os.WriteFile(filepath.Join(dir, sumsFile), []byte(sums.String()), 0o644))
}

func sumOf(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}
