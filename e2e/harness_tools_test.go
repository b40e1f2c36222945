//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The parts that the stories are told with; `make tools` brings them.
const (
	consulNew = "1.22.0"
	consulOld = "1.15.1" // the lab's
	envoyNew  = "1.40.0"
	envoyOld  = "1.36.2"
)

func consulBinary(t *testing.T, version string) string {
	t.Helper()
	return testprocess.Tool(t, "consul-"+version, "consul")
}

func envoyBinary(t *testing.T, version string) string {
	t.Helper()
	return testprocess.Tool(t, "envoy-"+version, "envoy")
}

func usherBinary(t *testing.T) string {
	t.Helper()
	return binary(t, envOr("USHER_BIN", filepath.Join("..", "bin", "usher")), "make build")
}

func envOr(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
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
