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
	for name, o := range cases(t) {
		t.Run(name, func(t *testing.T) { wantAccepted(t, write(t, o)) })
	}
}

func TestEnvoyAcceptsEveryFilledTemplate(t *testing.T) {
	for name, o := range dataplaneCases(t) {
		if o.CAFile != "" {
			o.CAFile, _ = filepath.Abs("testdata/ca.pem")
		}
		text := dataplaneTemplate(t, o)
		for gateway, v := range map[string]variables{"without settings": ofPlainGateway(), "with all settings": ofFullGateway()} {
			v.StaticSecretsJSON = "" // its files do not exist
			t.Run(name+", gateway "+gateway, func(t *testing.T) {
				filled, _ := v.fill(t, text)
				wantAccepted(t, filled)
			})
		}
	}
}

// wantAccepted wants that all Envoys accept a bootstrap.
func wantAccepted(t *testing.T, config string) {
	t.Helper()
	for _, version := range []string{"envoy-1.36.2", "envoy-1.37.0", "envoy-1.38.3", "envoy-1.39.3", "envoy-1.40.0"} {
		file := filepath.Join(t.TempDir(), "bootstrap.json")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(testprocess.Tool(t, version, "envoy"), "--mode", "validate", "--log-level", "warn", "-c", file).CombinedOutput()
		if err != nil {
			t.Errorf("%s refuses it: %v\n%s", version, err, out)
		}
	}
}
