//go:build e2e

package lab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The parts that the stories are told with; `make tools` brings them.
const (
	ConsulNew = "1.22.0"
	ConsulOld = "1.15.1" // the lab's
	EnvoyNew  = "1.40.0"
	EnvoyOld  = "1.36.2"
)

func consulBinary(t *testing.T, version string) string {
	t.Helper()
	return testprocess.Tool(t, "consul-"+version, "consul")
}

// EnvoyBinary is the path of an Envoy.
func EnvoyBinary(t *testing.T, version string) string {
	t.Helper()
	return testprocess.Tool(t, "envoy-"+version, "envoy")
}

// UsherBinary is the path of the Usher under test: USHER_BIN, or bin/usher.
func UsherBinary(t *testing.T) string {
	t.Helper()
	return testprocess.Binary(t, EnvOr("USHER_BIN", filepath.Join("..", "bin", "usher")), "make build")
}

// EnvOr is the value of an environment variable, or otherwise if it is not set.
func EnvOr(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// WriteFile writes a file below a directory and gives its path.
func WriteFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
