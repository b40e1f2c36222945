package cutover

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// Command is a command line that starts or ends an Envoy. It may end, as systemctl does, or become the Envoy.
type Command struct {
	Line   string   // for sh
	Output *os.File // gets its output; nil for none

	cmd    *exec.Cmd // nil: it has not been started
	ended  bool
	status syscall.WaitStatus
}

// start starts the command in another session, so that Ctrl-C and a closed terminal do not end the Envoy.
func (c *Command) start() error {
	c.cmd = exec.Command("sh", "-c", c.Line) //nolint:gosec,noctx // it is the operator's, and may outlive this process
	if c.Output != nil {
		c.cmd.Stdout, c.cmd.Stderr = c.Output, c.Output
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return c.cmd.Start()
}

// started reports whether the command has been started.
func (c *Command) started() bool { return c != nil && c.cmd != nil }

// failed returns an error if the command has ended with one.
func (c *Command) failed() error {
	if !c.started() {
		return nil
	}
	if !c.ended {
		pid, err := syscall.Wait4(c.cmd.Process.Pid, &c.status, syscall.WNOHANG, nil)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("wait for %q: %w", c.Line, err)
		}
		c.ended = pid == c.cmd.Process.Pid
	}
	if !c.ended || c.status == 0 {
		return nil
	}
	end := fmt.Sprintf("exit status %d", c.status.ExitStatus())
	if c.status.Signaled() {
		end = c.status.Signal().String()
	}
	return fmt.Errorf("%q has failed: %s", c.Line, end)
}
