//go:build kubernetes

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The directories of containers that are not from this machine: an image's
// programs, and the hosts file that stands for a cluster DNS.
const (
	binDirectory   = "/usr/local/bin"
	hostsDirectory = "/etc/cluster-dns"
)

// container is one container of a pod. The pod's goroutine owns it; its process
// and its probes report to the pod.
type container struct {
	spec    corev1.Container
	log     string // path of what it prints
	process *process
	pid     atomic.Int64 // of process, for probes
	started metav1.Time
	ready   bool

	restarts int
}

// process is a program that runs until it ends or is killed.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// startProcess starts a program. Its outputs are appended to a file: Envoy
// opens /dev/stdout once more for its access log, and both have to write at the
// file's end.
func startProcess(cmd *exec.Cmd, log string, start func(f func() error) error) (*process, error) {
	output, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	if err := start(cmd.Start); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // ProcessState says how it ended
	}()
	return p, nil
}

// ended reports whether the process has ended.
func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// exitCode is that of a process that has ended. A signal counts as a shell
// counts it.
func (p *process) exitCode() int {
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// kill ends the process without giving it time, and waits. A container's process
// is the first of its process namespace, so the kernel ends all others with it.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	<-p.done
}

// startContainer starts a container in its pod's network.
func (p *Pod) startContainer(spec corev1.Container) (*container, error) {
	image, err := p.cluster.image(spec.Image)
	if err != nil {
		return nil, err
	}
	env, err := p.environment(spec)
	if err != nil {
		return nil, err
	}
	run := containerProcess{
		Root:   filepath.Join(p.dir, "roots", spec.Name),
		Mounts: append(image.mounts(), mount{Source: p.cluster.dns.directory, Target: hostsDirectory, ReadOnly: true}),
		Args:   env.expandAll(append(image.command(spec), spec.Args...)),
		Env:    env.list(),
		Dir:    "/",
	}
	if spec.WorkingDir != "" {
		run.Dir = spec.WorkingDir
	}
	for _, m := range spec.VolumeMounts {
		run.Mounts = append(run.Mounts, mount{
			Source: filepath.Join(p.volumes[m.Name].directory, m.SubPath), Target: m.MountPath, ReadOnly: m.ReadOnly,
		})
	}
	c := &container{spec: spec, log: p.logFile(spec.Name), started: metav1.Now()}
	c.process, err = p.cluster.startInNamespaces(run, c.log, p.Host.Do)
	return c, err
}

// startInNamespaces starts this test's binary in new namespaces, where it becomes
// the container's process.
func (c *Cluster) startInNamespaces(run containerProcess, log string, start func(func() error) error) (*process, error) {
	if err := os.MkdirAll(run.Root, 0o755); err != nil {
		return nil, err
	}
	text, err := json.Marshal(run)
	if err != nil {
		return nil, err
	}
	file := run.Root + ".json"
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{
		Path: c.executable, Args: []string{containerInit, file}, Dir: "/",
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
			// A test that is killed takes its containers along.
			Pdeathsig: syscall.SIGKILL,
			Setpgid:   true,
		},
	}
	return startProcess(cmd, log, start)
}

// exec runs a command in a container that runs, as a probe or a hook does.
func (c *container) exec(ctx context.Context, command []string) error {
	args := append([]string{
		"--target", fmt.Sprint(c.pid.Load()), "--mount", "--pid", "--net", "--root",
	}, command...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = []string{"PATH=" + binDirectory + ":/usr/sbin:/usr/bin"}
	cmd.WaitDelay = time.Second
	output, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%q: %w: %s", command, err, output)
	}
	return nil
}

// state is the container's state in its pod's status.
func (c *container) state() corev1.ContainerState {
	switch {
	case c.process == nil:
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}}
	case !c.process.ended():
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: c.started}}
	}
	code := c.process.exitCode()
	reason := "Completed"
	if code != 0 {
		reason = "Error"
	}
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: int32(code), Reason: reason, StartedAt: c.started, FinishedAt: metav1.Now(),
	}}
}

func (c *container) status() corev1.ContainerStatus {
	running := c.process != nil && !c.process.ended()
	ready := c.ready && running
	return corev1.ContainerStatus{
		Name: c.spec.Name, Image: c.spec.Image, State: c.state(), Ready: ready, Started: &running,
	}
}
