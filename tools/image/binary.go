package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// binary is Usher's executable for one platform.
type binary struct {
	os, arch string
	content  []byte
	info     *buildinfo.BuildInfo
}

// platform returns the name of what the binary runs on, such as linux/amd64.
func (b binary) platform() string { return b.os + "/" + b.arch }

// binaryFile returns the name of the file with the binary for a platform.
func binaryFile(system, arch string) string { return "usher-" + system + "-" + arch }

// compile builds Usher for a platform, without cgo and without paths of this machine.
func compile(ctx context.Context, o options, system, arch string) (binary, error) {
	file, err := filepath.Abs(filepath.Join(o.out, binaryFile(system, arch)))
	if err != nil {
		return binary{}, err
	}
	flags := "-s -w"
	if o.version != "" {
		flags += " -X main.version=" + o.version
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", flags, "-o", file, "./cmd/usher")
	cmd.Dir, cmd.Stderr = o.source, os.Stderr
	cmd.Env = append(os.Environ(),
		"CGO_ENABLED=0", "GOOS="+system, "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=",
		"GOFLAGS=-buildvcs=auto") // in place of what go env says
	if err := cmd.Run(); err != nil {
		return binary{}, fmt.Errorf("go build for %s/%s in %s: %w", system, arch, o.source, err)
	}
	return readBinary(file)
}

// binaries compiles Usher for platforms, and writes the SBOM of each binary.
func binaries(ctx context.Context, o options, platforms []string) error {
	for _, platform := range platforms {
		system, arch, ok := strings.Cut(platform, "/")
		if !ok {
			return fmt.Errorf("platform %q: use OS/ARCH, such as linux/amd64", platform)
		}
		b, err := compile(ctx, o, system, arch)
		if err != nil {
			return err
		}
		document, err := sbomOf(b, o)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(o.out, sbomFile(system, arch)), document, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// readBinary reads a binary. One for Linux has to be static.
func readBinary(file string) (binary, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return binary{}, err
	}
	info, err := buildinfo.Read(bytes.NewReader(content))
	if err != nil {
		return binary{}, fmt.Errorf("%s: %w", file, err)
	}
	b := binary{content: content, info: info}
	b.os, b.arch = b.setting("GOOS"), b.setting("GOARCH")
	if b.os != "linux" {
		return b, nil
	}
	if err := checkStatic(content); err != nil {
		return binary{}, fmt.Errorf("%s: %w", file, err)
	}
	return b, nil
}

// checkStatic returns an error if the kernel needs another file to start a binary.
func checkStatic(content []byte) error {
	file, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return err
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			return fmt.Errorf("it is linked dynamically (%v), and an image has no libraries; "+
				"find the import that sets linker flags", p.Type)
		}
	}
	return nil
}

// setting returns a setting of the build, such as vcs.revision; "" if it is unknown.
func (b binary) setting(key string) string {
	for _, s := range b.info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}

// release is what the binaries have in common.
type release struct {
	version  string    // such as v1.2.3, or "devel" if Go knows none
	revision string    // the commit; "" outside a git checkout
	time     time.Time // of every file and manifest
}

// releaseOf reads the release from a binary. The time is SOURCE_DATE_EPOCH, else the commit's, else 1970.
func releaseOf(b binary, o options) (release, error) {
	r := release{version: o.version, revision: b.setting("vcs.revision"), time: time.Unix(0, 0).UTC()}
	if r.version == "" {
		r.version = strings.Trim(b.info.Main.Version, "()")
	}
	if r.version == "" {
		r.version = "devel"
	}
	if o.epoch != nil {
		r.time = *o.epoch
	} else if text := b.setting("vcs.time"); text != "" {
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return release{}, fmt.Errorf("vcs.time of the binary: %w; set SOURCE_DATE_EPOCH", err)
		}
		r.time = t.UTC()
	}
	return r, nil
}
