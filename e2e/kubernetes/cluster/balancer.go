//go:build kubernetes

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// proxyProtocol is the annotation of AWS for PROXY protocol v2 on a Service of
// the type LoadBalancer.
const proxyProtocol = "service.beta.kubernetes.io/aws-load-balancer-proxy-protocol"

// balancerTargets is how many pods a balancer can have at once, those included
// that still serve connections from before.
const balancerTargets = 20

// balancers are the cloud's load balancers, by Service ("namespace/name").
type balancers struct {
	mu sync.Mutex
	of map[string]*Balancer
}

// Balancer is the load balancer of a Service, as a network load balancer with IP
// targets is: an HAProxy on a host outside of the cluster that sends TCP
// connections to the ready pods.
type Balancer struct {
	Host *lab.Host

	cluster *Cluster
	process *process
	socket  string // HAProxy's admin socket
	header  lab.ProxyHeader
	slots   []string // address of the pod in each slot of HAProxy; "" for none
	next    int      // the slot for the next pod
	// pending is when the header becomes what the annotation says; zero: it is.
	pending time.Time
}

// Balancer waits until a Service has a load balancer with a pod, and returns it.
func (c *Cluster) Balancer(t *testing.T, namespace, service string) *Balancer {
	t.Helper()
	var b *Balancer
	testprocess.Eventually(t, "a load balancer for "+service, testprocess.StartDeadline, func() error {
		c.balancers.mu.Lock()
		defer c.balancers.mu.Unlock()
		b = c.balancers.of[namespace+"/"+service]
		if b == nil {
			return errors.New("there is none")
		}
		return nil
	})
	return b
}

// reconcileBalancers gives each Service of the type LoadBalancer a balancer and
// its address, and tells the balancers about pods and annotations.
func (c *Cluster) reconcileBalancers(ctx context.Context) error {
	services, err := c.API.CoreV1().Services("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	c.balancers.mu.Lock()
	defer c.balancers.mu.Unlock()
	for _, service := range services.Items {
		if service.Spec.Type != corev1.ServiceTypeLoadBalancer {
			continue
		}
		b := c.balancers.of[service.Namespace+"/"+service.Name]
		if b == nil {
			if b, err = c.startBalancer(ctx, service); err != nil {
				return err
			}
			c.balancers.of[service.Namespace+"/"+service.Name] = b
		}
		if err := c.writeBalancerAddress(ctx, service, b); err != nil {
			return err
		}
		if err := b.follow(ctx, service); err != nil {
			return fmt.Errorf("the load balancer of %s: %w", service.Name, err)
		}
	}
	return nil
}

func (c *Cluster) writeBalancerAddress(ctx context.Context, service corev1.Service, b *Balancer) error {
	if len(service.Status.LoadBalancer.Ingress) > 0 {
		return nil
	}
	service.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: b.Host.IP.String()}}
	_, err := c.API.CoreV1().Services(service.Namespace).UpdateStatus(ctx, &service, metav1.UpdateOptions{})
	return err
}

// startBalancer starts a balancer without pods. It ends with the test.
func (c *Cluster) startBalancer(ctx context.Context, service corev1.Service) (*Balancer, error) {
	n := uint32(len(c.balancers.of) + 1)
	b := &Balancer{
		cluster: c, header: lab.SendNone, slots: make([]string, balancerTargets),
		Host:   c.AddHost(c.t, fmt.Sprintf("balancer%d", n), nth(firstBalancer, n).String()),
		socket: filepath.Join(c.dir, fmt.Sprintf("balancer%d.sock", n)),
	}
	config := filepath.Join(c.dir, fmt.Sprintf("balancer%d.cfg", n))
	if err := os.WriteFile(config, []byte(b.config(service)), 0o644); err != nil {
		return nil, err
	}
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(haproxy, "-db", "-f", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if b.process, err = startProcess(cmd, filepath.Join(c.dir, "logs", b.Host.Name), b.Host.Do); err != nil {
		return nil, err
	}
	c.work.Go(func() {
		<-ctx.Done()
		b.process.kill()
	})
	if err := b.waitSocket(ctx); err != nil {
		return nil, err
	}
	c.logf("the Service %s/%s has the load balancer %s", service.Namespace, service.Name, b.Host.IP)
	return b, nil
}

// waitSocket waits until HAProxy answers on its admin socket.
func (b *Balancer) waitSocket(ctx context.Context) error {
	tick := time.NewTicker(testprocess.PollInterval)
	defer tick.Stop()
	for {
		if _, err := b.command("show info"); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-b.process.done:
			return fmt.Errorf("haproxy: exit %d", b.process.exitCode())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// config has slots for pods behind each port, once for each header: those with
// the wanted one are enabled, so that a change of the header ends no connection.
// A connection that a pod refuses is the client's loss, as with a network load
// balancer, which does not know of it.
func (b *Balancer) config(service corev1.Service) string {
	var c strings.Builder
	fmt.Fprintf(&c, `global
  stats socket %s level admin
defaults
  mode tcp
  retries 0
  timeout connect 5s
  timeout client 1m
  timeout server 1m
`, b.socket)
	for _, port := range service.Spec.Ports {
		fmt.Fprintf(&c, "listen port-%d\n  bind %s\n", port.Port, b.Host.Addr(int(port.Port)))
		for _, header := range []lab.ProxyHeader{lab.SendNone, lab.SendV2} {
			send := ""
			if header != lab.SendNone {
				send = string(header)
			}
			fmt.Fprintf(&c, "  server-template %s- %d 127.0.0.1:1 %s disabled\n", header, balancerTargets, send)
		}
	}
	return c.String()
}

// follow brings HAProxy to what the Service and its endpoints say. New pods come first: without a pod, HAProxy would
// close connections, and a change of all pods may be seen at once.
func (b *Balancer) follow(ctx context.Context, service corev1.Service) error {
	endpoints, err := b.cluster.API.CoreV1().Endpoints(service.Namespace).Get(ctx, service.Name, metav1.GetOptions{})
	if err != nil {
		return nil // not yet: an event follows
	}
	var addresses []string
	for _, subset := range endpoints.Subsets {
		for _, address := range subset.Addresses {
			addresses = append(addresses, address.IP)
		}
	}
	for _, address := range addresses {
		if slices.Contains(b.slots, address) {
			continue
		}
		if err := b.add(service, address); err != nil {
			return err
		}
	}
	for slot, address := range b.slots {
		if address != "" && !slices.Contains(addresses, address) {
			b.slots[slot] = ""
			if err := b.set(service, b.header, slot, "state drain"); err != nil {
				return err
			}
		}
	}
	return b.followAnnotation(ctx, service)
}

// add sends new connections to one more pod. Slots are used in turn: one that was
// left last may still have connections.
func (b *Balancer) add(service corev1.Service, address string) error {
	slot := b.next
	for range b.slots {
		if b.slots[slot] == "" {
			break
		}
		slot = (slot + 1) % balancerTargets
	}
	if b.slots[slot] != "" {
		return fmt.Errorf("more than %d pods", balancerTargets)
	}
	b.slots[slot], b.next = address, (slot+1)%balancerTargets
	for _, header := range []lab.ProxyHeader{lab.SendNone, lab.SendV2} {
		for _, port := range service.Spec.Ports {
			target := port.TargetPort.IntVal
			if target == 0 {
				target = port.Port
			}
			line := fmt.Sprintf("set server port-%d/%s-%d addr %s port %d", port.Port, header, slot+1, address, target)
			if answer, err := b.command(line); err != nil {
				return fmt.Errorf("%s: %w: %s", line, err, answer)
			}
		}
	}
	return b.set(service, b.header, slot, "state ready")
}

// set changes the servers of a slot.
func (b *Balancer) set(service corev1.Service, header lab.ProxyHeader, slot int, to string) error {
	for _, port := range service.Spec.Ports {
		answer, err := b.command(fmt.Sprintf("set server port-%d/%s-%d %s", port.Port, header, slot+1, to))
		if err != nil || strings.TrimSpace(answer) != "" {
			return fmt.Errorf("haproxy: server %s-%d %s: %w %s", header, slot+1, to, err, answer)
		}
	}
	return nil
}

// followAnnotation changes the header of new connections when the annotation has
// changed, after the time that the cloud takes.
func (b *Balancer) followAnnotation(ctx context.Context, service corev1.Service) error {
	wanted := lab.SendNone
	if service.Annotations[proxyProtocol] == "*" {
		wanted = lab.SendV2
	}
	switch {
	case wanted == b.header:
		b.pending = time.Time{}
		return nil
	case b.pending.IsZero():
		b.pending = time.Now().Add(b.cluster.options.CloudDelay)
		b.cluster.work.Go(func() { b.lookAgain(ctx) })
		return nil
	case time.Now().Before(b.pending):
		return nil
	}
	old := b.header
	b.header, b.pending = wanted, time.Time{}
	for slot, address := range b.slots {
		if address == "" {
			continue
		}
		if err := b.set(service, wanted, slot, "state ready"); err != nil {
			return err
		}
		if err := b.set(service, old, slot, "state drain"); err != nil {
			return err
		}
	}
	b.cluster.logf("the load balancer of %s sends the header %q", service.Name, wanted)
	return nil
}

// lookAgain looks at the annotation after the time that the cloud takes.
func (b *Balancer) lookAgain(ctx context.Context) {
	select {
	case <-time.After(b.cluster.options.CloudDelay):
	case <-ctx.Done():
		return
	}
	if err := b.cluster.reconcileBalancers(ctx); err != nil && ctx.Err() == nil {
		b.cluster.logf("load balancers: %v", err)
	}
}

// WaitHeader waits until new connections begin with the header.
func (b *Balancer) WaitHeader(t *testing.T, header lab.ProxyHeader) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("the load balancer sends the header %q", header), testprocess.StartDeadline, func() error {
		b.cluster.balancers.mu.Lock()
		defer b.cluster.balancers.mu.Unlock()
		if b.header != header {
			return fmt.Errorf("it sends %q", b.header)
		}
		return nil
	})
}

// command asks HAProxy on its admin socket.
func (b *Balancer) command(line string) (string, error) { return lab.AskHAProxy(b.socket, line) }
