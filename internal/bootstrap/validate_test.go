//go:build e2e

package bootstrap_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

func TestEnvoyAcceptsEveryBootstrap(t *testing.T) {
	binary := testprocess.Tool(t, "envoy-1.40.0", "envoy")
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
