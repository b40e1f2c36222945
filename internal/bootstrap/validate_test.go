//go:build e2e

package bootstrap_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestEnvoyAcceptsEveryBootstrap(t *testing.T) {
	binary := envoy(t)
	for name, o := range cases(t) {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "bootstrap.json")
			if err := os.WriteFile(file, []byte(write(t, o)), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(binary, "--mode", "validate", "--log-level", "warn", "-c", file).CombinedOutput()
			if err != nil {
				t.Fatalf("Envoy refuses it: %v\n%s", err, out)
			}
		})
	}
}

// envoy gives the binary to test with: USHER_ENVOY, else the one that the
// Makefile installs.
func envoy(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("USHER_ENVOY")
	if binary == "" {
		binary = filepath.Join("..", "..", ".tools", "envoy-1.40.0", "envoy")
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("an Envoy is needed here: %v; set USHER_ENVOY or run make test", err)
	}
	return binary
}
