//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// What internal/parts has for every test on real parts, in the stories' words.
type (
	command = testprocess.Command
	process = testprocess.Process
	ending  = testprocess.Ending
)

var (
	startProcess = testprocess.Start
	eventually   = testprocess.Eventually
	readFile     = testprocess.ReadFile
	newDir       = testprocess.NewDir
	binary       = testprocess.Binary
	tool         = testprocess.Debian
)

const (
	startDeadline  = testprocess.StartDeadline
	changeDeadline = testprocess.ChangeDeadline
	pollInterval   = 10 * time.Millisecond
)

// runToEnd runs a command to its end.
func runToEnd(t *testing.T, c command) ending {
	t.Helper()
	return testprocess.Run(t, c, "")
}

// runProcess runs a command that should succeed, and returns what it printed.
func runProcess(t *testing.T, c command, stdin string) (string, error) {
	t.Helper()
	end := testprocess.Run(t, c, stdin)
	output := end.Stdout + end.Stderr
	if end.Code != 0 {
		return output, fmt.Errorf("exit %d", end.Code)
	}
	return output, nil
}
