// Command site builds the site from the pages of docs/, with Hugo: the pages of docs/navigation.yaml, a search over them,
// and nothing from another host.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
)

// The parts in .tools that the site is built with; the Makefile and the pins under tools/ have their versions, too.
const (
	hugoPart       = "hugo-0.165.0"
	miniSearchPart = "minisearch-7.2.0"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "site:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	flag.StringVar(&o.root, "root", ".", "the directory of the repository")
	flag.StringVar(&o.out, "out", "dist/site", "the directory that the site replaces")
	flag.StringVar(&o.tools, "tools", ".tools", "the directory with Hugo and MiniSearch")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return build(ctx, o)
}

// options say from where to where the site is built.
type options struct {
	root  string
	out   string
	tools string
}

// build replaces the directory with the site.
func build(ctx context.Context, o options) error {
	groups, err := readNavigation(filepath.Join(o.root, "docs", "navigation.yaml"))
	if err != nil {
		return err
	}
	pages, err := readPages(o.root, groups)
	if err != nil {
		return err
	}
	repository, err := repository(o.root)
	if err != nil {
		return err
	}
	input, err := os.MkdirTemp("", "usher-site-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(input)
	if err := writeInput(input, pages, repository, o); err != nil {
		return err
	}
	return replace(o.out, func(out string) error { return hugo(ctx, input, out, o) })
}

// writeInput writes what Hugo reads: the layouts, the pages, their pictures and the library for the search.
func writeInput(dir string, pages []page, repository string, o options) error {
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(o.root, "tools", "site", "hugo"))); err != nil {
		return err
	}
	if err := writePages(dir, pages, repository); err != nil {
		return err
	}
	if err := copyPictures(filepath.Join(dir, "static"), filepath.Join(o.root, "docs")); err != nil {
		return err
	}
	library := filepath.Join(o.tools, miniSearchPart, "package")
	for to, from := range map[string]string{"minisearch.js": "dist/es/index.js", "minisearch-license.txt": "LICENSE.txt"} {
		if err := copyFile(filepath.Join(dir, "static", "assets", to), filepath.Join(library, from)); err != nil {
			return err
		}
	}
	return nil
}

// copyPictures copies the pictures in the directories of docs/, such as docs/diagrams.
func copyPictures(to, docs string) error {
	for _, pattern := range []string{"*/*.svg", "*/*.png"} {
		pictures, err := filepath.Glob(filepath.Join(docs, pattern))
		if err != nil {
			return err
		}
		for _, picture := range pictures {
			name, err := filepath.Rel(docs, picture)
			if err != nil {
				return err
			}
			if err := copyFile(filepath.Join(to, name), picture); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyFile(to, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return write(to, content)
}

// replace makes a directory beside the one that it replaces. If that fails, the last valid one stays.
func replace(dir string, makeIn func(dir string) error) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	beside, err := os.MkdirTemp(parent, ".site-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(beside)
	made := filepath.Join(beside, filepath.Base(dir))
	if err := makeIn(made); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(made, dir)
}

// hugo makes the site of what is in the directory. A warning is an error.
func hugo(ctx context.Context, dir, out string, o options) error {
	cmd := exec.CommandContext(ctx, filepath.Join(o.tools, hugoPart, "hugo"), "--panicOnWarning", "--noBuildLock",
		"--source", dir, "--destination", out, "--cacheDir", filepath.Join(dir, "cache"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir} // any HUGO_ variable would be a setting of the site
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("hugo: %w\n%s", err, output)
	}
	return nil
}
