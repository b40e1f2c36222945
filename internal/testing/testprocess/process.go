//go:build e2e

package testprocess

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

// Host is a machine that processes run on.
type Host interface {
	// Do calls f there: a process that f starts runs there, and a socket that it
	// opens is there.
	Do(f func() error) error
}

// Command describes a process.
type Command struct {
	Name string // in the test's log
	Path string
	Args []string
	Env  []string // besides PATH and HOME, all that it gets
	Host Host     // nil: where the test runs
	// Stdin is what Start gives it as its input; nil is an empty one.
	Stdin *os.File
}

// Process is a running command. The test's end kills it, and prints the ends
// of its outputs when the test has failed.
type Process struct {
	Name   string
	Dir    string // its HOME, removed with it
	Stdout string // path
	Stderr string // path

	command Command
	cmd     *exec.Cmd
	done    chan struct{}
}

// Start starts a command.
func Start(t *testing.T, c Command) *Process {
	t.Helper()
	p := &Process{Name: c.Name, Dir: NewDir(t), command: c, done: make(chan struct{})}
	p.Stdout = filepath.Join(p.Dir, "stdout")
	p.Stderr = filepath.Join(p.Dir, "stderr")
	p.cmd = c.in(context.Background(), p.Dir)
	stdout, stderr := create(t, p.Stdout), create(t, p.Stderr)
	defer stdout.Close()
	defer stderr.Close()
	p.cmd.Stdout, p.cmd.Stderr = stdout, stderr
	if c.Stdin != nil {
		p.cmd.Stdin = c.Stdin
	}
	if err := onHost(c.Host, p.cmd.Start); err != nil {
		t.Fatalf("start %s: %v", c.Name, err)
	}
	go func() {
		_ = p.cmd.Wait() // ProcessState says how it ended
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("end of %s:\n%s%s", p.Name, tail(p.Stdout), tail(p.Stderr))
		}
	})
	return p
}

// Result is what came of a command.
type Result struct {
	Code           int // -1 after a signal
	Stdout, Stderr string
}

// Run runs a command to its end.
func Run(t *testing.T, c Command, stdin string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), StartDeadline)
	defer cancel()
	cmd := c.in(ctx, NewDir(t))
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Second // for a child of it that holds its outputs open
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := onHost(c.Host, cmd.Start); err != nil {
		t.Fatalf("start %s: %v", c.Path, err)
	}
	err := cmd.Wait()
	if ctx.Err() != nil || (err != nil && !errors.As(err, new(*exec.ExitError))) {
		t.Fatalf("%s %q: %v: %s%s", c.Path, c.Args, err, stdout.String(), stderr.String())
	}
	return Result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
}

// RunOutput runs a command that should succeed, and returns what it printed.
func RunOutput(t *testing.T, c Command, stdin string) (string, error) {
	t.Helper()
	end := Run(t, c, stdin)
	output := end.Stdout + end.Stderr
	if end.Code != 0 {
		return output, fmt.Errorf("exit %d", end.Code)
	}
	return output, nil
}

func (c Command) in(ctx context.Context, dir string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}, c.Env...)
	// A test binary that is killed takes its processes along, and a process its
	// children.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// onHost calls f on a host; nil is where the test runs.
func onHost(h Host, f func() error) error {
	if h == nil {
		return f()
	}
	return h.Do(f)
}

// Again starts the same command once more, when this process has ended. Its HOME and its outputs are new.
func (p *Process) Again(t *testing.T) *Process {
	t.Helper()
	return Start(t, p.command)
}

// Pid is the process's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Kill ends the process without giving it time, as a crash would, and waits.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.Pid(), syscall.SIGKILL) // it may have ended by itself
	<-p.done
}

// Stop asks the process to end and waits until it has.
func (p *Process) Stop(t *testing.T) {
	t.Helper()
	p.Signal(t, syscall.SIGTERM)
	p.Wait(t)
}

// Signal sends the process a signal.
func (p *Process) Signal(t *testing.T, signal os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatalf("%s: %v: %v", p.Name, signal, err)
	}
}

// Wait waits until the process has ended, and gives its exit code, or -1 after a
// signal.
func (p *Process) Wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(StartDeadline):
		t.Fatalf("%s has not ended after %v", p.Name, StartDeadline)
		return 0
	}
}

// Alive is nil while the process runs; a wait ends at the error it gives.
func (p *Process) Alive() error {
	select {
	case <-p.done:
		return Permanent(fmt.Errorf("%s ended: %v", p.Name, p.cmd.ProcessState))
	default:
		return nil
	}
}

// Output is all that the process has written so far.
func (p *Process) Output(t *testing.T) string {
	t.Helper()
	return ReadFile(t, p.Stdout) + ReadFile(t, p.Stderr)
}

// WaitOutput waits until the process has written the text.
func (p *Process) WaitOutput(t *testing.T, text string) {
	t.Helper()
	Eventually(t, fmt.Sprintf("%s writes %q", p.Name, text), StartDeadline, func() error {
		if strings.Contains(p.Output(t), text) {
			return nil
		}
		return errors.Join(errors.New("not yet"), p.Alive())
	})
}

func create(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// ReadFile is what a file has in it now.
func ReadFile(t *testing.T, path string) string {
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
