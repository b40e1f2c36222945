//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/parts"
)

// What internal/parts has for every test on real parts, in the stories' words.
type (
	command = parts.Command
	process = parts.Process
	ending  = parts.Ending
)

var (
	startProcess = parts.Start
	eventually   = parts.Eventually
	readFile     = parts.ReadFile
	newDir       = parts.NewDir
	binary       = parts.Binary
	tool         = parts.Debian
)

const (
	startDeadline  = parts.StartDeadline
	changeDeadline = parts.ChangeDeadline
	pollInterval   = 10 * time.Millisecond
)

// runToEnd runs a command to its end.
func runToEnd(t *testing.T, c command) ending {
	t.Helper()
	return parts.Run(t, c, "")
}

// runProcess runs a command that should succeed, and returns what it printed.
func runProcess(t *testing.T, c command, stdin string) (string, error) {
	t.Helper()
	end := parts.Run(t, c, stdin)
	output := end.Stdout + end.Stderr
	if end.Code != 0 {
		return output, fmt.Errorf("exit %d", end.Code)
	}
	return output, nil
}
