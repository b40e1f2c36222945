package testprocess

import (
	"os"
	"path/filepath"
	"testing"
)

// Root is the directory of the repository: a test runs in that of its package.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "docs", "architecture.md")); err == nil {
			return dir
		}
	}
	t.Fatal("the directory of the repository is not above the test's")
	return ""
}
