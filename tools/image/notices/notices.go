// Package notices collects the license texts that have to go with every copy of a binary.
package notices

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

// OfBinaries returns the license texts of Go, whose standard library is in each binary, and of the modules in any of them.
// Source is the directory of the module that they are built from.
func OfBinaries(ctx context.Context, source string, binaries ...*buildinfo.BuildInfo) ([]byte, error) {
	var modules []string
	for _, b := range binaries {
		for _, m := range b.Deps {
			modules = append(modules, m.Path)
		}
	}
	slices.Sort(modules)
	golang, err := ofGo(ctx, source)
	if err != nil {
		return nil, err
	}
	texts, err := OfModules(ctx, source, slices.Compact(modules)...)
	return append(golang, texts...), err
}

// ofGo returns the license texts of the Go release that builds a module.
func ofGo(ctx context.Context, source string) ([]byte, error) {
	text, err := run(ctx, source, "env", "GOVERSION", "GOROOT")
	if err != nil {
		return nil, err
	}
	version, root, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	var out bytes.Buffer
	err = add(&out, "Go "+version, root)
	return out.Bytes(), err
}

// OfModules returns the license texts of modules that the module in a directory requires.
func OfModules(ctx context.Context, dir string, modules ...string) ([]byte, error) {
	listed, err := run(ctx, dir, append([]string{"list", "-m", "-json"}, modules...)...)
	if err != nil {
		return nil, err
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
		if err := add(&out, module.Path+" "+module.Version, module.Dir); err != nil {
			return nil, err
		}
	}
}

// run returns what a go command prints.
func run(ctx context.Context, dir string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s in %s: %w", strings.Join(args[:2], " "), dir, err)
	}
	return text, nil
}

// add adds the license files in the directory of a module or of Go.
func add(out *bytes.Buffer, name, dir string) error {
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
		fmt.Fprintf(out, "==== %s: %s\n\n%s\n\n", name, e.Name(), bytes.TrimSpace(text))
		found = true
	}
	if !found {
		return fmt.Errorf("%s has no license file in %s", name, dir)
	}
	return nil
}

// isNotice reports whether a file has a license or what a license asks to pass on.
func isNotice(name string) bool {
	name = strings.ToUpper(name)
	return slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "PATENTS"}, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}
