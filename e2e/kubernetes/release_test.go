//go:build kubernetes

package kubernetes

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The names that the Consul chart gives with the lab's values: they have no
// global.name, so the prefix is made from the release's name.
const (
	namespace      = "consul"
	release        = "consul"
	prefix         = "consul-consul"
	gatewayObjects = prefix + "-ingress-gateway" // Service and Deployment
	gatewayName    = "ingress-gateway"           // in Consul, and of the container
)

// A chart of Consul under test. Its directory is below CONSUL_K8S.
const (
	chartNow  = "1.9.11"
	chartNext = "2.0.3"
	chartOld  = "1.1.18"
)

// consulRelease is the Consul chart as it is installed in a cluster, with the
// lab's custom resources and its service.
type consulRelease struct {
	*cluster.Cluster
	chart      string // directory
	balancer   *cluster.Balancer
	cloudDelay time.Duration
	version    string // of the chart
	service    *cluster.Pod
	own        []string // files with values that the release always has, after all others
}

// installConsul starts a cluster and does what the lab's user does in it. The
// release has its own files with values.
func installConsul(t *testing.T, chart string, o cluster.Options, own ...string) *consulRelease {
	t.Helper()
	r := &consulRelease{
		Cluster: cluster.Start(t, o), chart: chartDirectory(t, chart), version: chart, cloudDelay: o.CloudDelay, own: own,
	}
	r.CreateNamespace(t, namespace)
	if chart == chartOld {
		r.addNewerKinds(t)
	}
	r.helm(t, "install", "")
	// Pods that are made before it is ready would have no sidecar.
	r.WaitRolledOut(t, namespace, prefix+"-connect-injector")
	r.balancer = r.Balancer(t, namespace, gatewayObjects)
	for _, manifest := range []string{"custom-resources.yaml", "static-server.yaml"} {
		r.Apply(t, "default", testprocess.ReadFile(t, filepath.Join("testdata", "lab", manifest)))
	}
	r.service = r.WaitRolledOut(t, "default", "static-server")[0]
	r.gateway(t)
	return r
}

func chartDirectory(t *testing.T, version string) string {
	t.Helper()
	sources := os.Getenv("CONSUL_K8S")
	if sources == "" {
		t.Fatal("CONSUL_K8S is not set: run \"make kubernetes CONSUL_K8S=DIR\"; DIR has the charts and sources of consul-k8s")
	}
	return filepath.Join(sources, "charts", version, "consul")
}

// values are the paths of the release's values files, in Helm's order: those of
// the lab, what they need to run here, more, and the release's own. The lab's
// values for PROXY protocol have a list of gateways, which must not be the last.
func (r *consulRelease) values(t *testing.T, more ...string) []string {
	t.Helper()
	files := slices.Concat([]string{"testdata/lab/consul-values.yaml", "testdata/community.yaml"}, more, r.own)
	for i, file := range files {
		path, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		files[i] = path
	}
	return files
}

// helm installs or upgrades the chart with the release's values, and then the
// values on standard input if there are any.
func (r *consulRelease) helm(t *testing.T, command, stdin string, more ...string) {
	t.Helper()
	args := []string{command, release, r.chart, "--namespace", namespace}
	for _, file := range r.values(t, more...) {
		args = append(args, "-f", file)
	}
	if stdin != "" {
		args = append(args, "-f", "-")
	}
	r.Helm(t, stdin, args...)
}

// upgrade moves the gateway to Consul's own xDS, or keeps it there.
func (r *consulRelease) upgrade(t *testing.T, more ...string) {
	t.Helper()
	r.helm(t, "upgrade", "", more...)
}

// gateway waits for the roll-out of the ingress gateway, and returns its pod.
func (r *consulRelease) gateway(t *testing.T) *cluster.Pod {
	t.Helper()
	pods := r.WaitRolledOut(t, namespace, gatewayObjects)
	if len(pods) != 1 {
		t.Fatalf("the gateway has %d pods, want 1", len(pods))
	}
	return pods[0]
}

// request is the lab's request: from the client through the load balancer.
func (r *consulRelease) request(path string) lab.Request {
	return lab.Request{From: r.Client, To: r.balancer.Host.Addr(8080), Path: path}
}

// wantHello makes the lab's request and wants the service's answer; it returns
// the gateway's log entry. The lab's Deployment has quotes in the text.
func (r *consulRelease) wantHello(t *testing.T) (path string, entry lab.LogEntry) {
	t.Helper()
	path = lab.NewPath()
	gateway := r.gateway(t)
	lab.WaitStatus(t, r.request("/"), http.StatusOK)
	got := r.request(path).MustDo(t)
	if got.Status != http.StatusOK || got.Body != "\"hello world\"\n" {
		t.Fatalf("the client got %d %q, want 200 and the service's text", got.Status, got.Body)
	}
	r.fillLog(t)
	return path, gateway.AccessLog(gatewayName).WaitRequest(t, path)
}

// fillLog makes as many requests as Envoy keeps log entries before it writes them.
// Else it would write them after ten seconds.
func (r *consulRelease) fillLog(t *testing.T) {
	t.Helper()
	const envoyBuffer, entry = 64 << 10, 300 // bytes; entries are longer
	for range envoyBuffer / entry {
		r.request(lab.PollPath).MustDo(t)
	}
}

// wantBalancerAddress is lab 1: an answer, and the balancer's address in the log.
func (r *consulRelease) wantBalancerAddress(t *testing.T) {
	t.Helper()
	_, entry := r.wantHello(t)
	if got, want := entry.IP(t, "downstream_remote_address"), r.balancer.Host.IP.String(); got != want {
		t.Errorf("the access log has %s for the client, want the balancer's %s", got, want)
	}
}

// wantClientAddress is what the lab wants of PROXY protocol: the client's address
// in the log and at the service.
func (r *consulRelease) wantClientAddress(t *testing.T) {
	t.Helper()
	path, entry := r.wantHello(t)
	if got := entry.IP(t, "downstream_remote_address"); got != lab.ClientIP {
		t.Errorf("the access log has %s for the client, want %s", got, lab.ClientIP)
	}
	r.service.WaitLog(t, "static-server", fmt.Sprintf("%s for=%s\n", path, lab.ClientIP))
}

// sinceStart is for a test that says how long its story took.
func sinceStart(t *testing.T, what string, begin time.Time) {
	t.Helper()
	t.Logf("%s: %.1fs", what, time.Since(begin).Seconds())
}
