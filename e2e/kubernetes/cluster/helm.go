//go:build kubernetes

package cluster

import (
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Helm runs the real Helm with the arguments, with stdin for "-f -". It runs the
// chart's hooks, and waits for them, as for a user.
func (c *Cluster) Helm(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	output, err := c.TryHelm(t, stdin, args...)
	if err != nil {
		t.Fatalf("helm %q: %v: %s", args, err, output)
	}
	c.logf("helm %s is done", args[0])
	return output
}

// TryHelm is Helm for a command that may fail.
func (c *Cluster) TryHelm(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	return testprocess.RunOutput(t, testprocess.Command{
		Name: "helm", Path: testprocess.Tool(t, "helm-3.22.0", "helm"), Args: args, Host: c.Control,
		Env: []string{"KUBECONFIG=" + c.kubeconfig(t)},
	}, stdin)
}
