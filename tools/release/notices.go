package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// notices returns the license texts of the modules in the binaries, which have to go with every copy.
func (r release) notices(ctx context.Context) ([]byte, error) {
	paths, err := r.modules()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-m", "-json"}, paths...)...)
	cmd.Dir, cmd.Stderr = r.source, os.Stderr
	listed, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m in %s: %w", r.source, err)
	}
	var out bytes.Buffer
	decoder := json.NewDecoder(bytes.NewReader(listed))
	for {
		var module struct{ Path, Version, Dir string }
		if err := decoder.Decode(&module); errors.Is(err, io.EOF) {
			return out.Bytes(), nil
		} else if err != nil {
			return nil, err
		}
		if err := addNotices(&out, module.Path+" "+module.Version, module.Dir); err != nil {
			return nil, err
		}
	}
}

// modules returns the modules that are in a binary for any platform.
func (r release) modules() ([]string, error) {
	var paths []string
	for _, platform := range r.platforms {
		system, arch, _ := strings.Cut(platform, "/")
		info, err := buildinfo.ReadFile(product{release: r, system: system, arch: arch}.binary())
		if err != nil {
			return nil, err
		}
		for _, m := range info.Deps {
			paths = append(paths, m.Path)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

// addNotices adds the license files of a module.
func addNotices(out *bytes.Buffer, module, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	found := false
	for _, e := range entries {
		if !isNotice(e.Name()) || e.IsDir() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "==== %s: %s\n\n%s\n\n", module, e.Name(), bytes.TrimSpace(text))
		found = true
	}
	if !found {
		return fmt.Errorf("%s has no license file in %s", module, dir)
	}
	return nil
}

// isNotice reports whether a file has a license or what a license asks to pass on.
func isNotice(name string) bool {
	name = strings.ToUpper(name)
	return slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE"}, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}
