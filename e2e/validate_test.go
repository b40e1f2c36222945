//go:build e2e

package e2e

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// runUsher runs a command that ends, on a host.
func runUsher(t *testing.T, h *lab.Host, env []string, args ...string) testprocess.Result {
	t.Helper()
	return testprocess.Run(t, testprocess.Command{Path: testprocess.Usher(t), Args: args, Env: env, Host: h}, "")
}

// TestValidateAgreesWithServe checks the directory of a running gateway: what `usher validate` accepts, Envoy serves, and
// what it finds is what Usher logs.
func TestValidateAgreesWithServe(t *testing.T) {
	t.Parallel()
	l := startFileLab(t, "")
	lab.WaitStatus(t, l.call("/"), http.StatusOK)
	if end := runUsher(t, l.Gateway.Host, nil, "validate", l.Dir); end.Code != 0 || end.Stdout != "1 checked, no problems\n" {
		t.Fatalf("Envoy serves the directory, and validate ends with %d: %s%s", end.Code, end.Stdout, end.Stderr)
	}

	l.writeResources(t, strictMode[0], strings.Replace(strictMode[1], "strict", "strcit", 1))
	var logged string
	testprocess.Eventually(t, "usher logs the mistake", testprocess.ChangeDeadline, func() error {
		if lines := l.Usher.Errors(t); len(lines) > 0 {
			logged = strings.ReplaceAll(lines[0], `\"`, `"`)
			return nil
		}
		return errors.New("nothing yet")
	})
	end := runUsher(t, l.Gateway.Host, nil, "validate", l.Dir)
	place, found := strings.CutSuffix(end.Stdout, `:9: usher.proxy_protocol.mode: "strcit" is not allowed (did you mean "strict"?); use "auto", "off", "permissive" or "strict"`+"\n")
	if end.Code != 1 || !found || !strings.HasPrefix(place, l.resources()+":") {
		t.Fatalf("validate ends with %d: %s%s", end.Code, end.Stdout, end.Stderr)
	}
	for _, text := range []string{place + ": usher.proxy_protocol.mode", `"strcit" is not allowed (did you mean "strict"?); use "auto"`} {
		if !strings.Contains(logged, text) {
			t.Errorf("usher has logged %s\nwant in it %s", logged, text)
		}
	}
}
