//go:build e2e

package testprocess

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Parts that `make tools` brings, by their directories below .tools. The Makefile has them, too; lab.ConsulNew and its
// neighbours are the versions that the stories compare.
const (
	AxeCore    = "axe-core-4.14.1"
	Consul     = "consul-1.22.7"
	Envoy      = "envoy-1.40.0"
	Helm       = "helm-3.22.0"
	Kubectl    = "kubectl-1.34.0"
	Kubernetes = "kubernetes-1.34.0"
	Machine    = "debian-12" // the file system of a clean machine
)

// Tool is the absolute path of a program that `make tools` brings, by its path
// below .tools, or below USHER_TOOLS.
func Tool(t *testing.T, path ...string) string {
	t.Helper()
	dir := os.Getenv("USHER_TOOLS")
	if dir == "" {
		dir = filepath.Join(Root(t), ".tools")
	}
	return Binary(t, filepath.Join(append([]string{dir}, path...)...), "make tools")
}

// Binary is the absolute path of a program that the command builds.
func Binary(t *testing.T, path, command string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing: run %q", path, command)
	}
	return path
}

// Usher is the absolute path of the Usher under test: USHER_BIN, or bin/usher.
func Usher(t *testing.T) string {
	t.Helper()
	return Binary(t, cmp.Or(os.Getenv("USHER_BIN"), filepath.Join(Root(t), "bin", "usher")), "make build")
}

// Debian is the path of a command that a Debian package brings.
func Debian(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("the command %s is missing: run \"make tools\" or install Debian's %s", name, debianPackage)
	}
	return path
}

// NewDir is a directory for one process's files until the test ends. Its path
// is short enough for unix sockets, and other users can read it.
func NewDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "usher-e2e-") //nolint:usetesting // t.TempDir is long and private
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
