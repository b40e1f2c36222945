//go:build kubernetes

package kubernetes

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// installUsher installs Usher's own chart beside Consul's, with the values of the
// Consul chart as they are. Its Job gives Usher the rights in Consul, and Consul's
// CA, which the gateways' pods have, signs its certificate.
func (r *consulRelease) installUsher(t *testing.T, more ...string) []*cluster.Pod {
	t.Helper()
	chart, err := filepath.Abs("../../charts/usher")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"install", "usher", chart, "--namespace", namespace,
		"--set", "consul.aclSetup.enabled=true,xds.tls.mode=consul-ca,balancerGrace=10s",
	}
	for _, file := range r.values(t, more...) {
		args = append(args, "-f", file)
	}
	r.Helm(t, "", args...)
	return r.WaitRolledOut(t, namespace, "usher")
}

// adopt puts the gateway under Usher, as the documentation has it: the values of
// the release, and then what "usher helm-values" prints for them. More files have
// more values of the user.
func (r *consulRelease) adopt(t *testing.T, files ...string) {
	t.Helper()
	r.adoptOnly(t, nil, files...)
}

// adoptOnly is adopt for some gateways.
func (r *consulRelease) adoptOnly(t *testing.T, gateways []string, files ...string) {
	t.Helper()
	args := []string{"helm-values", "--chart-version", r.version, "--release", release, "--namespace", namespace}
	for _, file := range r.values(t, files...) {
		args = append(args, "-f", file)
	}
	for _, gateway := range gateways {
		args = append(args, "--gateway", gateway)
	}
	got := testprocess.Run(t, testprocess.Command{Name: "usher helm-values", Path: testprocess.Usher(t), Args: args}, "")
	if got.Code != 0 {
		t.Fatalf("usher %q: exit %d: %s", args, got.Code, got.Stderr)
	}
	r.helm(t, "upgrade", got.Stdout, files...)
}

// waitConnected waits until the gateway's Envoy is connected to one of the pods of
// Usher. This cluster has no cluster addresses: Usher's name leads to its pods, and
// gRPC in Envoy looks a name up again after 30 seconds at the earliest.
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
	patch := fmt.Sprintf(`{"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": %q}}}}}`, time.Now())
	_, err := r.API.AppsV1().Deployments(namespace).
		Patch(t.Context(), "usher", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r.WaitRolledOut(t, namespace, "usher")
}

// waitUnserved waits until the metrics of all pods of Usher say that a gateway's
// instance is behind a load balancer that sends headers, and has no Envoy.
func (r *consulRelease) waitUnserved(t *testing.T, ushers []*cluster.Pod, gateway string) {
	t.Helper()
	for _, usher := range ushers {
		testprocess.Eventually(t, usher.Name()+" counts the gateway's Envoys", testprocess.StartDeadline, func() error {
			metrics := lab.Request{From: r.Client, To: usher.Host.Addr(18001), Path: "/metrics"}.MustDo(t).Body
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
