//go:build kubernetes

package kubernetes

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// installUsher installs Usher's own chart beside Consul's, with the values of the
// Consul chart as they are. With ACLs, its Job gives Usher the rights in Consul.
func (r *consulRelease) installUsher(t *testing.T, more ...string) []*cluster.Pod {
	t.Helper()
	return r.helmUsher(t, "install", "xds.tls.mode="+r.xdsTLS(), more...)
}

// helmUsher installs or upgrades Usher's own chart, with further values to set.
func (r *consulRelease) helmUsher(t *testing.T, command, set string, more ...string) []*cluster.Pod {
	t.Helper()
	chart, err := filepath.Abs("../../charts/usher")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		command, "usher", chart, "--namespace", namespace, "--set", set,
		"--set", fmt.Sprintf("consul.aclSetup.enabled=%t", !slices.Contains(r.own, withoutACLs)),
		"--set", "connectionReports.enabled=true", "--set", fmt.Sprintf("balancerGrace=%v", r.grace()),
	}
	for _, file := range r.values(t, more...) {
		args = append(args, "-f", file)
	}
	r.Helm(t, "", args...)
	return r.WaitRolledOut(t, namespace, "usher")
}

// grace is longer than the cloud takes, and than the five seconds after that in which each connection has to have a header.
func (r *consulRelease) grace() time.Duration { return max(8*time.Second, 5*r.cloudDelay) }

// waitAuto waits until the mode auto of listener 8080 is another one: all pods of Usher say so, and then the gateway does
// it. Before that, connections without a header would keep the listener permissive.
func (r *consulRelease) waitAuto(t *testing.T, gateway *cluster.Pod, mode string) {
	t.Helper()
	for _, usher := range r.WaitRolledOut(t, namespace, "usher") {
		testprocess.Eventually(t, usher.Name()+" says that the listener is "+mode, r.grace()+testprocess.ChangeDeadline, func() error {
			if last := lab.LastMode(usher.Log(t, "usher")); !slices.Contains(last, "mode="+mode) {
				return fmt.Errorf("it says %q", last)
			}
			return nil
		})
	}
	r.WaitMode(t, gateway.Host, mode)
}

// xdsTLS is what signs Usher's certificate: Consul's CA, which the gateways' pods
// have if Consul has TLS, else a CA of the chart where Envoys send their tokens.
func (r *consulRelease) xdsTLS() string {
	switch {
	case !slices.Contains(r.own, withoutTLS):
		return "consul-ca"
	case !slices.Contains(r.own, withoutACLs):
		return "chart"
	}
	return "none"
}

// xdsFlags are the flags of "usher helm-values" that follow from xdsTLS.
func (r *consulRelease) xdsFlags(t *testing.T) []string {
	t.Helper()
	switch r.xdsTLS() {
	case "chart":
		reader := r.newReader(t, nil)
		reader.Type(t, saveValues)
		reader.Follow(t, pages.Find(t, "docs/kubernetes.md", "kubectl --namespace consul get secret usher-xds-tls"))
		return []string{"--ca-file", reader.Type(t, "printf %s $PWD/usher-ca.pem")}
	case "none":
		return []string{"--xds-addr", "usher." + namespace + ".svc:18000"}
	}
	return nil
}

// move moves the gateway to Usher, or keeps it there, as the documentation has it: the values of
// the release, and then what "usher helm-values" prints for them. More files have
// more values of the user.
func (r *consulRelease) move(t *testing.T, files ...string) {
	t.Helper()
	args := append(r.helmValues(t, files...), r.xdsFlags(t)...)
	got := testprocess.Run(t, testprocess.Command{Name: "usher helm-values", Path: testprocess.Usher(t), Args: args}, "")
	if got.Code != 0 {
		t.Fatalf("usher %q: exit %d: %s", args, got.Code, got.Stderr)
	}
	r.helm(t, "upgrade", got.Stdout, files...)
}

// helmValues are the arguments of "usher helm-values" for the release, with more files of the user.
func (r *consulRelease) helmValues(t *testing.T, files ...string) []string {
	t.Helper()
	args := []string{"helm-values", "--chart-version", r.version, "--release", release, "--namespace", namespace}
	for _, file := range r.values(t, files...) {
		args = append(args, "-f", file)
	}
	return args
}

// waitConnected waits until the gateway's Envoy is connected to one of the pods of
// Usher. This cluster has no cluster addresses: Usher's name leads to its pods, and
// gRPC in Envoy looks a name up again after five seconds at the earliest.
func (r *consulRelease) waitConnected(t *testing.T, gateway *cluster.Pod, ushers []*cluster.Pod) {
	t.Helper()
	testprocess.Eventually(t, gateway.Name()+" is connected to Usher", testprocess.StartDeadline, func() error {
		for _, usher := range ushers {
			if strings.Contains(usher.Log(t, "usher"), `msg="envoy connected" envoy=`+gateway.Name()) {
				return nil
			}
		}
		return errors.New("not yet")
	})
}

// restartUsher rolls Usher out as "kubectl rollout restart" does, and returns its
// new pods.
func (r *consulRelease) restartUsher(t *testing.T) []*cluster.Pod {
	t.Helper()
	return r.restart(t, namespace, "usher")
}

// restart rolls a Deployment out as "kubectl rollout restart" does, and returns
// its new pods.
func (r *consulRelease) restart(t *testing.T, namespace, deployment string) []*cluster.Pod {
	t.Helper()
	patch := fmt.Sprintf(`{"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": %q}}}}}`, time.Now())
	_, err := r.API.AppsV1().Deployments(namespace).
		Patch(t.Context(), deployment, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r.WaitRolledOut(t, namespace, deployment)
}

// waitReported makes connections until the gateway's Envoy has reported some of a type to one of the pods of Usher.
func (r *consulRelease) waitReported(t *testing.T, ushers []*cluster.Pod, connection string) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("Usher counts reported connections of the type %q", connection), testprocess.StartDeadline, func() error {
		for range 10 { // an Envoy that is too old to limit the rate reports a fifth of them
			r.request("/").MustDo(t)
		}
		for _, usher := range ushers {
			if lab.Reported(t, r.usherMetrics(t, usher), 8080, connection) > 0 {
				return nil
			}
		}
		return errors.New("they count none")
	})
}

// usherMetrics are the metrics of a pod of Usher.
func (r *consulRelease) usherMetrics(t *testing.T, usher *cluster.Pod) string {
	t.Helper()
	return lab.Request{From: r.Client, To: usher.Host.Addr(18001), Path: "/metrics"}.MustDo(t).Body
}

// waitUnserved waits until the metrics of all pods of Usher say that a gateway's
// instance is behind a load balancer that sends headers, and has no Envoy.
func (r *consulRelease) waitUnserved(t *testing.T, ushers []*cluster.Pod, gateway string) {
	t.Helper()
	for _, usher := range ushers {
		testprocess.Eventually(t, usher.Name()+" counts the gateway's Envoys", testprocess.StartDeadline, func() error {
			metrics := r.usherMetrics(t, usher)
			for _, line := range []string{
				fmt.Sprintf("usher_gateway_proxy_protocol_instances{gateway=%q} 1\n", gateway),
				fmt.Sprintf("usher_gateway_envoys{gateway=%q} 0\n", gateway),
			} {
				if !strings.Contains(metrics, line) {
					return fmt.Errorf("there is no %q", line)
				}
			}
			return nil
		})
	}
}
