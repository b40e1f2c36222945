//go:build kubernetes

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/usherproxy/usher/e2e/lab"
)

// Pod is a pod on the cluster's node. One goroutine runs it and owns what it has,
// from the network to the deletion.
type Pod struct {
	Host *lab.Host // its network namespace

	cluster *Cluster
	object  *corev1.Pod // as the API server had it when the pod was bound to the node
	ctx     context.Context
	dir     string
	volumes map[string]volume
	tokens  map[string][]byte

	inits, containers []*container
	phase             corev1.PodPhase
	message           string // why it does not run

	deletion chan struct{} // closed by delete
	grace    time.Duration // written before deletion is closed
	changed  chan struct{} // a Secret or a ConfigMap, one that the pod uses or another
	rotate   chan struct{} // service account tokens
	probed   chan probeResult
	exited   chan *container
	again    chan *container // containers that ended, and whose pause is over
	done     chan struct{}   // closed when nothing of the pod is left
}

func newPod(ctx context.Context, c *Cluster, object *corev1.Pod) *Pod {
	p := &Pod{
		Host: c.addPodHost(), cluster: c, object: object, ctx: ctx, tokens: map[string][]byte{}, phase: corev1.PodPending,
		dir:      filepath.Join(c.dir, "pods", string(object.UID)),
		deletion: make(chan struct{}), changed: make(chan struct{}, 1), rotate: make(chan struct{}, 1),
		probed: make(chan probeResult), exited: make(chan *container), again: make(chan *container), done: make(chan struct{}),
	}
	for _, spec := range object.Spec.InitContainers {
		p.inits = append(p.inits, &container{spec: spec})
	}
	for _, spec := range object.Spec.Containers {
		p.containers = append(p.containers, &container{spec: spec})
	}
	return p
}

func (p *Pod) name() string      { return p.object.Name }
func (p *Pod) namespace() string { return p.object.Namespace }
func (p *Pod) ip() string        { return p.Host.IP.String() }

// run is the pod's life.
func (p *Pod) run() {
	defer close(p.done)
	ctx, stopProbes := context.WithCancel(p.ctx)
	defer stopProbes()
	p.report()
	if p.waitVolumes() && p.runInits() && p.startContainers(ctx) {
		p.watch(ctx)
	}
	p.waitDeletion()
	p.terminate()
	stopProbes()
	p.cluster.removePodHost(p.Host)
	p.removeObject()
	_ = os.RemoveAll(p.dir) // the cluster's directory is removed in the end
}

// delete asks the pod to end; once.
func (p *Pod) delete(grace time.Duration) {
	select {
	case <-p.deletion:
	default:
		p.grace = grace
		close(p.deletion)
	}
}

// over reports whether the pod or the test is to end.
func (p *Pod) over() bool {
	select {
	case <-p.deletion:
		return true
	default:
		return p.ctx.Err() != nil
	}
}

// waitVolumes mounts the volumes as soon as all that they show is there.
func (p *Pod) waitVolumes() bool {
	for !p.over() {
		err := p.mountVolumes()
		if err == nil {
			p.message = ""
			return true
		}
		p.wait(err.Error())
		select {
		case <-p.changed:
		case <-p.deletion:
		case <-p.ctx.Done():
		}
	}
	return false
}

// runInits runs the init containers one after the other. Each has to succeed.
func (p *Pod) runInits() bool {
	for _, c := range p.inits {
		if p.over() || !p.start(c) {
			return false
		}
		p.report()
		select {
		case <-c.process.done:
		case <-p.deletion:
			return false
		case <-p.ctx.Done():
			return false
		}
		if code := c.process.exitCode(); code != 0 {
			p.fail(fmt.Sprintf("the init container %s ended with %d", c.spec.Name, code))
			return false
		}
	}
	return true
}

// startContainers starts the pod's containers and their probes.
func (p *Pod) startContainers(ctx context.Context) bool {
	for _, c := range p.containers {
		if p.over() || !p.start(c) {
			return false
		}
		p.awaitExit(ctx, c)
		p.startProbes(ctx, c)
	}
	p.phase = corev1.PodRunning
	p.report()
	return true
}

// awaitExit has the pod's goroutine know when the container's process ends.
func (p *Pod) awaitExit(ctx context.Context, c *container) {
	process := c.process
	p.cluster.work.Go(func() {
		select {
		case <-process.done:
			send(ctx, p.exited, c)
		case <-ctx.Done():
		}
	})
}

func send(ctx context.Context, to chan<- *container, c *container) {
	select {
	case to <- c:
	case <-ctx.Done():
	}
}

func (p *Pod) start(c *container) bool {
	started, err := p.startContainer(c.spec)
	if err != nil {
		p.wait(err.Error())
		p.cluster.logf("pod %s/%s: container %s: %v", p.namespace(), p.name(), c.spec.Name, err)
		return false
	}
	c.process, c.log, c.started = started.process, started.log, started.started
	c.pid.Store(int64(c.process.cmd.Process.Pid))
	return true
}

// watch follows the containers until the pod is over.
func (p *Pod) watch(ctx context.Context) {
	for !p.over() {
		select {
		case <-p.deletion:
		case <-p.ctx.Done():
		case <-p.changed:
			p.refresh()
		case <-p.rotate:
			clear(p.tokens)
			p.refresh()
		case result := <-p.probed:
			p.takeProbe(result)
		case c := <-p.exited:
			if !p.startLater(ctx, c) {
				p.takeExit(c)
			}
		case c := <-p.again:
			if p.start(c) {
				p.awaitExit(ctx, c)
			}
		}
	}
}

func (p *Pod) refresh() {
	if err := p.updateVolumes(); err != nil && p.ctx.Err() == nil {
		p.cluster.logf("pod %s/%s: %v", p.namespace(), p.name(), err)
	}
}

// maxRestarts is how often each container, by its name, may end before it is ready. That of the connect-injector ends if the
// API server does not serve its custom resource definitions yet, and a later one finds them. Every other one that ends is a
// failure that a test wants to see.
var maxRestarts = map[string]int{"sidecar-injector": 5}

// firstPause is the time before a container's first restart. It doubles with each, as the kubelet's, which begins with ten
// seconds.
const firstPause = 500 * time.Millisecond

// startLater has a container start again that may end before it is ready.
func (p *Pod) startLater(ctx context.Context, c *container) bool {
	if c.ready || c.restarts == maxRestarts[c.spec.Name] {
		return false
	}
	pause := firstPause << c.restarts
	c.restarts++
	p.cluster.logf("pod %s/%s: the container %s ended with %d and starts again in %v", p.namespace(), p.name(), c.spec.Name, c.process.exitCode(), pause)
	p.cluster.work.Go(func() {
		select {
		case <-time.After(pause):
			send(ctx, p.again, c)
		case <-ctx.Done():
		}
	})
	return true
}

// takeExit follows from a container that has ended.
func (p *Pod) takeExit(c *container) {
	code := c.process.exitCode()
	running := 0
	for _, other := range p.containers {
		if !other.process.ended() {
			running++
		}
	}
	switch {
	case code != 0 || p.object.Spec.RestartPolicy == corev1.RestartPolicyAlways:
		p.fail(fmt.Sprintf("the container %s ended with %d", c.spec.Name, code))
	case running == 0:
		p.phase = corev1.PodSucceeded
		p.report()
	}
}

func (p *Pod) fail(message string) {
	p.phase, p.message = corev1.PodFailed, message
	p.cluster.logf("pod %s/%s failed: %s", p.namespace(), p.name(), message)
	p.report()
}

// wait says in the pod's status why it does not run yet.
func (p *Pod) wait(message string) {
	if message == p.message {
		return
	}
	p.message = message
	p.report()
}

func (p *Pod) waitDeletion() {
	select {
	case <-p.deletion:
	case <-p.ctx.Done():
	}
}

// terminate ends the containers: the preStop hook, SIGTERM, and SIGKILL for what
// is left when the grace period is over. The test's end leaves no time.
func (p *Pod) terminate() {
	ctx, cancel := context.WithTimeout(p.ctx, p.grace)
	defer cancel()
	for _, c := range append(p.inits, p.containers...) {
		if c.process == nil || c.process.ended() {
			continue
		}
		defer c.process.kill()
		p.cluster.work.Go(func() {
			p.preStop(ctx, c)
			_ = c.process.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		})
	}
	for _, c := range append(p.inits, p.containers...) {
		if c.process == nil {
			continue
		}
		select {
		case <-c.process.done:
		case <-ctx.Done():
			return
		}
	}
}

func (p *Pod) preStop(ctx context.Context, c *container) {
	if c.spec.Lifecycle == nil || c.spec.Lifecycle.PreStop == nil {
		return
	}
	hook := c.spec.Lifecycle.PreStop
	var err error
	switch {
	case hook.Exec != nil:
		err = c.exec(ctx, hook.Exec.Command)
	case hook.HTTPGet != nil:
		err = p.httpGet(ctx, c, hook.HTTPGet)
	case hook.Sleep != nil:
		select {
		case <-time.After(time.Duration(hook.Sleep.Seconds) * time.Second):
		case <-ctx.Done():
		}
	}
	if err != nil {
		p.cluster.logf("pod %s/%s: preStop of %s: %v", p.namespace(), p.name(), c.spec.Name, err)
	}
}

// removeObject removes the pod from the API server, where it was kept until its
// containers had ended.
func (p *Pod) removeObject() {
	if p.ctx.Err() != nil {
		return
	}
	now := int64(0)
	err := p.cluster.API.CoreV1().Pods(p.namespace()).Delete(p.ctx, p.name(), metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &p.object.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) && p.ctx.Err() == nil {
		p.cluster.logf("delete the pod %s: %v", p.name(), err)
	}
}

// report writes the pod's status.
func (p *Pod) report() {
	if p.ctx.Err() != nil {
		return
	}
	patch, err := json.Marshal(map[string]any{"status": statusPatch{p.status(), p.message}})
	if err != nil {
		p.cluster.logf("the status of the pod %s: %v", p.name(), err)
		return
	}
	_, err = p.cluster.API.CoreV1().Pods(p.namespace()).
		Patch(p.ctx, p.name(), types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) && p.ctx.Err() == nil {
		p.cluster.logf("the status of the pod %s: %v", p.name(), err)
	}
}

// statusPatch is a status with a message that can be taken back.
type statusPatch struct {
	corev1.PodStatus

	Message string `json:"message"`
}

func (p *Pod) status() corev1.PodStatus {
	status := corev1.PodStatus{
		Phase: p.phase, HostIP: nodeIP, HostIPs: []corev1.HostIP{{IP: nodeIP}},
		PodIP: p.ip(), PodIPs: []corev1.PodIP{{IP: p.ip()}}, StartTime: &p.object.CreationTimestamp,
	}
	initialized, ready := true, p.phase == corev1.PodRunning
	for _, c := range p.inits {
		done := c.process != nil && c.process.ended() && c.process.exitCode() == 0
		initialized = initialized && done
		state := c.status()
		state.Ready = done
		status.InitContainerStatuses = append(status.InitContainerStatuses, state)
	}
	for _, c := range p.containers {
		state := c.status()
		ready = ready && state.Ready
		status.ContainerStatuses = append(status.ContainerStatuses, state)
	}
	for condition, is := range map[corev1.PodConditionType]bool{
		corev1.PodScheduled: true, corev1.PodInitialized: initialized, corev1.ContainersReady: ready, corev1.PodReady: ready,
	} {
		value := corev1.ConditionFalse
		if is {
			value = corev1.ConditionTrue
		}
		status.Conditions = append(status.Conditions, corev1.PodCondition{
			Type: condition, Status: value, LastTransitionTime: metav1.Now(),
		})
	}
	return status
}
