//go:build kubernetes

package cluster

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// helmDeadline is the longest that a helm command may take. It waits for the
// chart's hooks.
const helmDeadline = 4 * time.Minute

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
	ctx, cancel := context.WithTimeout(t.Context(), helmDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, testprocess.Tool(t, testprocess.Helm, "helm"), args...)
	// Helm limits its requests by default, which only makes a test wait.
	cmd.Env = []string{"HOME=" + c.dir, "KUBECONFIG=" + c.Kubeconfig(t), "HELM_QPS=1000", "HELM_BURST_LIMIT=1000"}
	cmd.Stdin = strings.NewReader(stdin)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := c.Control.Do(cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return output.String(), err
}
