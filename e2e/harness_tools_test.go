//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The parts that the stories are told with; `make tools` brings them.
const (
	consulNew = "1.22.0"
	consulOld = "1.15.1" // the lab's
	envoyNew  = "1.40.0"
	envoyOld  = "1.36.2"
)

// toolsDir is where `make tools` puts the parts.
func toolsDir() string {
	return envOr("USHER_TOOLS", filepath.Join("..", ".tools"))
}

func consulBinary(t *testing.T, version string) string {
	t.Helper()
	return binary(t, filepath.Join(toolsDir(), "consul-"+version, "consul"), "make tools")
}

func envoyBinary(t *testing.T, version string) string {
	t.Helper()
	return binary(t, filepath.Join(toolsDir(), "envoy-"+version, "envoy"), "make tools")
}

func usherBinary(t *testing.T) string {
	t.Helper()
	return binary(t, envOr("USHER_BIN", filepath.Join("..", "bin", "usher")), "make build")
}

// binary is the absolute path of a part that the command cure makes.
func binary(t *testing.T, path, cure string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing: run %q", path, cure)
	}
	return path
}

// tool is the path of a command that a Debian package brings.
func tool(t *testing.T, name, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("the command %s is missing: run \"make tools\" or install Debian's %s", name, debianPackage)
	}
	return path
}

func envOr(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// newDir is a directory for one process's files until the test ends. Its path
// is short enough for unix sockets, and other users can read it.
func newDir(t *testing.T) string {
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

// writeFile writes a file below a directory and gives its path.
func writeFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
