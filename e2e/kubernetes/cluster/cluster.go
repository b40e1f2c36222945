//go:build kubernetes

package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The cluster's only node, and the cluster address of the API server. The node is
// the host that etcd and the API server run on.
const (
	nodeName     = "node-1"
	nodeIP       = lab.ControlIP
	apiServiceIP = "10.96.0.1"
)

// RolloutDeadline is the longest that a roll-out may take. A connect-injector that
// ends without giving up its leader lease blocks the registration of gateways for
// up to 110 s.
const RolloutDeadline = 150 * time.Second

// The addresses of pods and of load balancers, in the lab's network.
var (
	firstPod      = netip.MustParseAddr("198.18.1.1")
	firstBalancer = netip.MustParseAddr("198.18.64.1")
)

// Options describe a cluster.
type Options struct {
	Consul string // version in the image hashicorp/consul
	Envoy  string // version in the image hashicorp/consul-dataplane
	// CloudDelay is the time that the cloud takes to follow an annotation of a
	// Service that has a load balancer.
	CloudDelay time.Duration
}

// Cluster is a running cluster with one node.
type Cluster struct {
	*lab.Network
	API kubernetes.Interface // an administrator's

	t          *testing.T
	options    Options
	started    time.Time
	dir        string // for all files
	executable string // of the test
	images     map[string]image
	dns        *dns
	kubelet    *kubelet
	balancers  balancers

	config  *rest.Config
	dynamic dynamic.Interface
	mapper  *restmapper.DeferredDiscoveryRESTMapper

	work      sync.WaitGroup // every goroutine
	hosts     atomic.Uint32  // numbers of pods' hosts
	addresses sync.Mutex     // a host is made
}

// Start starts a cluster with the namespaces that each cluster has. Everything in
// it ends with the test.
func Start(t *testing.T, o Options) *Cluster {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{Network: lab.NewNetwork(t), t: t, options: o, started: time.Now(), dir: testprocess.NewDir(t), executable: executable}
	for _, directory := range []string{"logs", "dns", "pods"} {
		if err := os.Mkdir(filepath.Join(c.dir, directory), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c.images = images(t, c.dir, o)
	c.dns = &dns{directory: filepath.Join(c.dir, "dns")}
	c.kubelet = &kubelet{cluster: c, pods: map[podUID]*Pod{}}
	c.balancers.of = map[string]*Balancer{}
	c.startAPIServer(t)
	c.createNode(t)
	for _, namespace := range []string{"default", "kube-system"} {
		c.fillNamespace(t, namespace)
	}
	c.startControllers(t)
	c.logf("the cluster is ready")
	return c
}

// startControllers starts the control loops and the kubelet. They end with the
// test, before what they work on.
func (c *Cluster) startControllers(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		c.work.Wait()
		if t.Failed() {
			c.printLogs(t)
		}
	})
	// The namespaces of hosts are closed before: they are younger. What runs in
	// them has ended by then.
	context.AfterFunc(t.Context(), cancel)
	factory := informers.NewSharedInformerFactory(c.API, 0)
	core, apps, batch := factory.Core().V1(), factory.Apps().V1(), factory.Batch().V1()
	pods, services := core.Pods().Informer(), core.Services().Informer()
	loop := func(name string, reconcile func(context.Context) error, watched ...informer) {
		c.runLoop(ctx, name, reconcile, watched...)
	}
	loop("kubelet", c.kubelet.reconcile, pods)
	loop("volumes", func(context.Context) error { c.kubelet.volumesChanged(); return nil },
		core.Secrets().Informer(), core.ConfigMaps().Informer())
	loop("deployments", c.reconcileDeployments, apps.Deployments().Informer(), pods)
	loop("statefulsets", c.reconcileStatefulSets, apps.StatefulSets().Informer(), pods)
	loop("jobs", c.reconcileJobs, batch.Jobs().Informer(), pods)
	loop("endpoints", c.reconcileEndpoints, services, pods)
	loop("names", c.reconcileNames, services, core.Endpoints().Informer())
	loop("service account tokens", c.reconcileTokens, core.Secrets().Informer())
	loop("load balancers", c.reconcileBalancers, services, core.Endpoints().Informer())
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	t.Cleanup(func() { cancel(); factory.Shutdown() })
}

// logf prints a line with the time since the start.
func (c *Cluster) logf(format string, args ...any) {
	c.t.Helper()
	c.t.Logf("%6.1fs %s", time.Since(c.started).Seconds(), fmt.Sprintf(format, args...))
}

// printLogs prints the end of each container's log.
func (c *Cluster) printLogs(t *testing.T) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(c.dir, "logs", "*"))
	if err != nil {
		t.Log(err)
	}
	for _, log := range logs {
		const lines = 25
		text, err := os.ReadFile(log)
		if err != nil {
			t.Log(err)
		}
		all := strings.SplitAfter(string(text), "\n")
		t.Logf("end of %s:\n%s", filepath.Base(log), strings.Join(all[max(0, len(all)-lines):], ""))
	}
}

func (c *Cluster) createNode(t *testing.T) {
	t.Helper()
	node, err := c.API.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{"kubernetes.io/hostname": nodeName}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: nodeIP}}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if _, err := c.API.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// addPodHost makes the network namespace of a pod. Addresses are not used again,
// so that neighbours never know an old hardware address for one.
func (c *Cluster) addPodHost() *lab.Host {
	c.addresses.Lock()
	defer c.addresses.Unlock()
	n := c.hosts.Add(1)
	h := c.AddHost(c.t, fmt.Sprintf("pod%d", n), nth(firstPod, n).String())
	h.RunIP(c.t, fmt.Sprintf("route add 10.96.0.0/16 via %s", nodeIP))
	return h
}

// removePodHost unplugs a pod's namespace. The namespace itself goes with its last
// process and the test.
func (c *Cluster) removePodHost(h *lab.Host) {
	if c.t.Context().Err() == nil {
		c.Switch.RunIP(c.t, "link delete "+h.Name)
	}
}

// nth is the address n-1 after the first, leaving out those that end in 0 or 255.
func nth(first netip.Addr, n uint32) netip.Addr {
	bytes := first.As4()
	bytes[2] += byte((n - 1) / 254)
	bytes[3] = byte((n-1)%254 + 1)
	return netip.AddrFrom4(bytes)
}
