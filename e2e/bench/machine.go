//go:build e2e

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopDeadline is how long a part may take to end after it was asked to.
const stopDeadline = 20 * time.Second

// machine is what the numbers depend on besides the code.
type machine struct {
	Cores  int    `json:"cores"`
	Model  string `json:"model"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Consul string `json:"consul"`
	Usher  string `json:"usher"`
	Load   string `json:"load"` // of other processes when the run began
}

func describeMachine(o options) machine {
	return machine{
		Cores:  runtime.NumCPU(),
		Model:  field("/proc/cpuinfo", "model name"),
		Kernel: strings.TrimSpace(content("/proc/sys/kernel/osrelease")),
		Go:     runtime.Version(),
		Consul: consulVersion,
		Usher:  fmt.Sprintf("%s, sha256 %.12s", filepath.Base(o.usherBin), fmt.Sprintf("%x", sha256.Sum256([]byte(content(o.usherBin))))),
		Load:   strings.Join(strings.Fields(content("/proc/loadavg"))[:3], " "),
	}
}

func (m machine) String() string {
	return fmt.Sprintf("%d cores (%s), Linux %s, %s, load %s\nConsul %s; Usher %s", m.Cores, m.Model, m.Kernel, m.Go, m.Load, m.Consul, m.Usher)
}

// content returns a file's content, "" where it cannot be read.
func content(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(text)
}

// field returns what stands behind the colon after a name in a file of /proc.
func field(path, name string) string {
	for line := range strings.Lines(content(path)) {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// process is a part that the bench has started.
type process struct {
	name string
	log  string // path
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// launch starts a part that ends with the context at the latest. Its output goes
// to a file in the directory.
func launch(ctx context.Context, dir, name string, cmdline, env []string) (*process, error) {
	log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, cmdline[0], cmdline[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The kernel takes the end of the thread that started a process for the end
	// of the bench. Every process is started by the main goroutine, which init
	// locks to a thread that stays.
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, log: log.Name(), cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // alive says how it ended
		close(p.done)
	}()
	return p, nil
}

// stop asks the part to end and waits until it has.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-p.done:
		return nil
	case <-time.After(stopDeadline):
		p.kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.name, stopDeadline)
	}
}

// kill ends the part without giving it time, and waits until it has ended.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.done
}

// alive is nil while the part runs.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended: %v; its output is in %s", p.name, p.cmd.ProcessState, p.log)
	default:
		return nil
	}
}

// cpu returns the CPU time of all threads that the process ever had: the sum of
// utime and stime of /proc/<pid>/stat, in nanoseconds instead of ticks.
func (p *process) cpu() time.Duration { return cpuOf(p.cmd.Process.Pid) }

// cpuOf reads the clock that the kernel keeps for a process. Its number is made
// of the pid, as clock_getcpuclockid(3) does it.
func cpuOf(pid int) time.Duration {
	const scheduled = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|scheduled, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// resident returns the process's VmRSS in bytes.
func (p *process) resident() float64 {
	value := field(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid), "VmRSS")
	kib, err := strconv.ParseFloat(strings.TrimSuffix(value, " kB"), 64)
	if err != nil {
		return none
	}
	return kib * 1024
}

// poll waits until f returns nil, or the part has ended.
func poll(ctx context.Context, p *process, what string, f func() error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		if dead := p.alive(); dead != nil {
			return dead
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, errors.Join(context.Cause(ctx), err))
		case <-tick.C:
		}
	}
}
