//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The deadlines of a wait, generous because a machine may be slow, and met at
// once when all is well.
const (
	startDeadline  = 60 * time.Second
	changeDeadline = 20 * time.Second
	pollInterval   = 10 * time.Millisecond
)

// command describes a process of the lab.
type command struct {
	Name string // in the test's log
	Path string
	Args []string
	Env  []string // besides PATH and HOME, all that it gets
	Host *host
}

// process is a running command. The test's end kills it, and prints the ends
// of its outputs when the test has failed.
type process struct {
	Name   string
	Dir    string // its HOME, removed with it
	Stdout string // path
	Stderr string // path

	cmd  *exec.Cmd
	done chan struct{}
}

func startProcess(t *testing.T, c command) *process {
	t.Helper()
	p := &process{Name: c.Name, Dir: newDir(t), done: make(chan struct{})}
	p.Stdout = filepath.Join(p.Dir, "stdout")
	p.Stderr = filepath.Join(p.Dir, "stderr")
	p.cmd = newCommand(context.Background(), c, p.Dir)
	stdout, stderr := create(t, p.Stdout), create(t, p.Stderr)
	defer stdout.Close()
	defer stderr.Close()
	p.cmd.Stdout, p.cmd.Stderr = stdout, stderr
	if err := c.Host.do(p.cmd.Start); err != nil {
		t.Fatalf("start %s: %v", c.Name, err)
	}
	go func() {
		_ = p.cmd.Wait() // ProcessState says how it ended
		close(p.done)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("end of %s:\n%s%s", p.Name, tail(p.Stdout), tail(p.Stderr))
		}
	})
	return p
}

// runProcess runs a command to its end and returns what it printed.
func runProcess(t *testing.T, c command, stdin string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startDeadline)
	defer cancel()
	cmd := newCommand(ctx, c, newDir(t))
	cmd.Stdin = strings.NewReader(stdin)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := c.Host.do(cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return output.String(), err
}

func newCommand(ctx context.Context, c command, dir string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}, c.Env...)
	// A test binary that is killed takes its processes along, and a process its
	// children.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// kill ends the process without giving it time, as a crash would, and waits.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended by itself
	<-p.done
}

// stop asks the process to end and waits until it has.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(startDeadline):
		t.Fatalf("%s did not end within %v of SIGTERM", p.Name, startDeadline)
	}
}

// signal sends the process a signal.
func (p *process) signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatalf("%s: %v: %v", p.Name, signal, err)
	}
}

// alive is nil while the process runs; a wait ends at the error it gives.
func (p *process) alive() error {
	select {
	case <-p.done:
		return hopeless{fmt.Errorf("%s ended: %v", p.Name, p.cmd.ProcessState)}
	default:
		return nil
	}
}

// output is all that the process has written so far.
func (p *process) output(t *testing.T) string {
	t.Helper()
	return readFile(t, p.Stdout) + readFile(t, p.Stderr)
}

// waitOutput waits until the process has written the text.
func (p *process) waitOutput(t *testing.T, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s writes %q", p.Name, text), startDeadline, func() error {
		if strings.Contains(p.output(t), text) {
			return nil
		}
		return errors.Join(errors.New("not yet"), p.alive())
	})
}

// hopeless is an error that waiting longer cannot cure.
type hopeless struct{ error }

func (h hopeless) Unwrap() error { return h.error }

// eventually waits for what to become true: until f returns nil. It fails the
// test when the deadline has passed or f returns an error that is hopeless.
func eventually(t *testing.T, what string, deadline time.Duration, f func() error) {
	t.Helper()
	end := time.After(deadline)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		if errors.As(err, new(hopeless)) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-end:
			t.Fatalf("%s: not within %v: %v", what, deadline, err)
		case <-tick.C:
		}
	}
}

func create(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// tail is the end of a file, for the log of a test that has failed.
func tail(path string) string {
	const lines = 40
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error() + "\n"
	}
	all := strings.SplitAfter(string(content), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}
