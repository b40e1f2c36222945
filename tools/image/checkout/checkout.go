// Package checkout copies Usher's source into a git repository with one commit, from which tests build what they compare.
package checkout

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Time is the time of the commit. East of Greenwich, it is in the next month.
const Time = "2026-01-31T22:05:06Z"

// WorkDir makes an empty directory for copies of a source, below its dist. It removes what a test that was killed has left.
func WorkDir(source, name string) (string, error) {
	dir, err := filepath.Abs(filepath.Join(source, "dist", "."+name))
	if err != nil {
		return "", err
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// Copy copies the source to a directory and commits it there. It returns the commit, which is the same for all copies.
func Copy(source, dir string) (commit string, err error) {
	if err := CopyWithoutGit(source, dir); err != nil {
		return "", err
	}
	for _, args := range []string{"init -q", "add -A", "commit -q -m usher"} {
		if _, err := git(dir, strings.Fields(args)...); err != nil {
			return "", err
		}
	}
	return git(dir, "rev-parse", "HEAD")
}

// CopyWithoutGit copies the source without what tools and builds leave in it, as an archive of it would have it.
func CopyWithoutGit(source, dir string) error {
	return filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		if name != "." && strings.HasPrefix(name, ".") && name != ".gitignore" || name == "bin" || name == "dist" {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(dir, name), 0o755)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), content, 0o644)
	})
}

// git runs a command whose commits depend on nothing but the files.
func git(dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(context.Background(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@usher.test", "GIT_AUTHOR_DATE="+Time,
		"GIT_COMMITTER_NAME=test", "GIT_COMMITTER_EMAIL=test@usher.test", "GIT_COMMITTER_DATE="+Time)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("git %v: %w: %s", args, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}
