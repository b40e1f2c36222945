//go:build e2e

package lab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The versions of the real parts. `make tools` installs them.
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

// WriteFile writes a file below a directory and returns its path.
func WriteFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
