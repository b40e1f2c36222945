//go:build kubernetes

package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// firstProbes is how often a probe runs until it succeeds for the first time. A
// kubelet waits for initialDelaySeconds and then for periodSeconds, which are
// chosen for slower machines; a test would wait for nothing.
const firstProbes = 100 * time.Millisecond

// probeResult is what a probe says about a container.
type probeResult struct {
	container *container
	ready     bool
	dead      error // of the liveness probe
}

// startProbes runs the container's probes until ctx ends. A container without a
// readiness probe is ready.
func (p *Pod) startProbes(ctx context.Context, c *container) {
	spec := c.spec
	c.ready = spec.ReadinessProbe == nil && spec.StartupProbe == nil
	if c.ready && spec.LivenessProbe == nil {
		return
	}
	p.cluster.work.Go(func() {
		if spec.StartupProbe != nil && !p.probeUntilSuccess(ctx, c, spec.StartupProbe) {
			return
		}
		if spec.LivenessProbe != nil {
			p.cluster.work.Go(func() { p.probeLiveness(ctx, c, spec.LivenessProbe) })
		}
		if spec.ReadinessProbe == nil {
			p.sendProbe(ctx, probeResult{container: c, ready: true})
			return
		}
		p.probeReadiness(ctx, c, spec.ReadinessProbe)
	})
}

// probeUntilSuccess is false if ctx ended before.
func (p *Pod) probeUntilSuccess(ctx context.Context, c *container, probe *corev1.Probe) bool {
	for p.probe(ctx, c, probe) != nil {
		select {
		case <-time.After(firstProbes):
		case <-ctx.Done():
			return false
		}
	}
	return ctx.Err() == nil
}

// probeReadiness reports each change: ready with the first success, not ready
// with the last of failureThreshold failures in a row.
func (p *Pod) probeReadiness(ctx context.Context, c *container, probe *corev1.Probe) {
	for p.probeUntilSuccess(ctx, c, probe) {
		p.sendProbe(ctx, probeResult{container: c, ready: true})
		err := p.probeUntilFailure(ctx, c, probe)
		if ctx.Err() == nil {
			p.cluster.logf("pod %s: %s is not ready any more: %v", p.name(), c.spec.Name, err)
		}
		p.sendProbe(ctx, probeResult{container: c})
	}
}

// probeLiveness reports the container dead after failureThreshold failures.
func (p *Pod) probeLiveness(ctx context.Context, c *container, probe *corev1.Probe) {
	select {
	case <-time.After(time.Duration(probe.InitialDelaySeconds) * time.Second):
	case <-ctx.Done():
		return
	}
	if err := p.probeUntilFailure(ctx, c, probe); ctx.Err() == nil {
		p.sendProbe(ctx, probeResult{container: c, dead: err})
	}
}

// probeUntilFailure returns the error of the last of failureThreshold failures.
func (p *Pod) probeUntilFailure(ctx context.Context, c *container, probe *corev1.Probe) error {
	failures := int32(0)
	for {
		select {
		case <-time.After(time.Duration(probe.PeriodSeconds) * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
		err := p.probe(ctx, c, probe)
		if err == nil {
			failures = 0
			continue
		}
		if failures++; failures >= probe.FailureThreshold {
			return err
		}
	}
}

func (p *Pod) sendProbe(ctx context.Context, result probeResult) {
	select {
	case p.probed <- result:
	case <-ctx.Done():
	}
}

// takeProbe follows from a probe's result.
func (p *Pod) takeProbe(result probeResult) {
	if result.dead != nil {
		p.cluster.logf("pod %s: liveness of %s: %v", p.name(), result.container.spec.Name, result.dead)
		result.container.process.kill()
		return
	}
	result.container.ready = result.ready
	p.report()
}

// probe is one attempt.
func (p *Pod) probe(ctx context.Context, c *container, probe *corev1.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(1, probe.TimeoutSeconds))*time.Second)
	defer cancel()
	switch {
	case probe.TCPSocket != nil:
		conn, err := p.cluster.Control.Dial(ctx, "tcp", p.address(c, probe.TCPSocket.Port))
		if err != nil {
			return err
		}
		return conn.Close()
	case probe.HTTPGet != nil:
		return p.httpGet(ctx, c, probe.HTTPGet)
	case probe.Exec != nil:
		return c.exec(ctx, probe.Exec.Command)
	}
	return fmt.Errorf("this kubelet does not know the probe %v", probe)
}

// address is a port of the pod, by its number or by its name in the container.
func (p *Pod) address(c *container, port intstr.IntOrString) string {
	number := port.IntValue()
	for _, known := range c.spec.Ports {
		if port.Type == intstr.String && known.Name == port.StrVal {
			number = int(known.ContainerPort)
		}
	}
	return net.JoinHostPort(p.ip(), fmt.Sprint(number))
}

// httpGet makes a request from the node, as the kubelet does.
func (p *Pod) httpGet(ctx context.Context, c *container, get *corev1.HTTPGetAction) error {
	scheme := "http"
	if get.Scheme == corev1.URISchemeHTTPS {
		scheme = "https"
	}
	address := p.address(c, get.Port)
	if get.Host == "127.0.0.1" || get.Host == "localhost" { // not the pod's: the node's
		address = net.JoinHostPort(get.Host, get.Port.String())
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+address+get.Path, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: p.cluster.Control.Dial, DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // as the kubelet's probes
	}}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s: %s", request.URL, answer.Status)
	}
	return nil
}
