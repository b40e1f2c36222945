//go:build kubernetes

package kubernetes

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// saveValues is the user's command that saves the values of the Consul chart, as the quickstart has it.
const saveValues = "helm get values consul --namespace consul --output yaml >consul-values.yaml"

// newReader returns a user of the cluster who follows pages, with helm, kubectl and usher, and with Usher's chart as a
// release has it.
//
// The cluster has no ReplicaSets, which "helm --wait" asks for: what the user does next waits. Usher gives the cloud less
// time to follow a Service than by default. fails are those of pages.Options.
func (r *consulRelease) newReader(t *testing.T, fails map[string]int, replace ...string) *pages.Reader {
	t.Helper()
	path := lab.Path(testprocess.Tool(t, testprocess.Helm, "helm"), testprocess.Tool(t, testprocess.Kubectl, "kubectl"), testprocess.Usher(t))
	reader := pages.NewReader(t, pages.Options{
		Shell: testprocess.Command{Host: r.Control, Env: []string{
			path, "KUBECONFIG=" + r.Kubeconfig(t), "HELM_QPS=1000", "HELM_BURST_LIMIT=1000",
		}},
		Replace: append(replace,
			"hashicorp/consul ", r.chart+" ",
			" --wait", "",
			"--drain-time 180s", "--drain-time 4s",
			"registry.example.com/usher", "registry.example.com/usherproxy/usher",
			"consul.aclSetup.enabled=true", "consul.aclSetup.enabled=true --set balancerGrace="+r.grace().String(),
			"<your service>", "static-server",
			"<the load balancer>", r.balancer.Host.IP.String(),
			"# Here come your own lines.", "service.beta.kubernetes.io/aws-load-balancer-scheme: internet-facing",
			"10.0.16.0/20", r.balancer.Host.IP.String()+"/32",
		),
		Fails: fails,
	})
	chart, err := filepath.Abs("../../charts/usher")
	if err != nil {
		t.Fatal(err)
	}
	reader.Type(t, "helm package "+chart)
	return reader
}

// followQuickstart follows the page for Kubernetes: the gateway moves to Usher, its load balancer begins to send PROXY
// headers, and all of it is undone.
func (r *consulRelease) followQuickstart(t *testing.T) {
	t.Helper()
	reader := r.newReader(t, map[string]int{ // grep counts none
		"kubectl --namespace consul get pods --selector component=ingress-gateway --output yaml | grep --count envoy_bootstrap_json_tpl": 1,
	})
	reader.Follow(t, pages.Section(t, "docs/quickstart-kubernetes.md", "Before you begin"))
	reader.Follow(t, pages.Find(t, "docs/quickstart-kubernetes.md", "helm get values"))
	r.WaitRolledOut(t, namespace, "usher")
	own := r.gateway(t)
	reader.Follow(t, pages.Find(t, "docs/quickstart-kubernetes.md", "usher helm-values -f consul-values.yaml --chart-version 1.9.11 --drain-time 180s >"))
	gateway := r.gateway(t)
	if gateway == own {
		t.Errorf("the gateway's pod %s was not replaced", own.Name())
	}
	reader.Follow(t, pages.Find(t, "docs/quickstart-kubernetes.md", "$ usher helm-values -f consul-values.yaml --chart-version 1.9.11 --drain-time 180s --check"))
	r.wantBalancerAddress(t)

	reader.Follow(t, pages.Section(t, "docs/quickstart-kubernetes.md", "Switch on PROXY protocol"))
	r.balancer.WaitHeader(t, lab.SendV2)
	r.waitAuto(t, gateway, "strict")
	reader.Follow(t, pages.Find(t, "docs/quickstart-kubernetes.md", "kubectl --namespace consul get service consul-consul-ingress-gateway\ncurl"))
	r.wantClientAddress(t)

	// New streams with new tokens, as after the kubelet's rotation.
	gateway.RotateTokens()
	ushers := r.restartUsher(t)
	r.waitConnected(t, gateway, ushers)

	r.waitHeaderOfClient(t, gateway, true)
	reader.Follow(t, pages.Section(t, "docs/quickstart-kubernetes.md", "Trust only the load balancer"))
	r.waitHeaderOfClient(t, gateway, false)
	r.wantClientAddress(t)
	r.wantSamePod(t, gateway)
	if now := r.WaitRolledOut(t, namespace, "usher"); !slices.Equal(now, ushers) {
		t.Errorf("the settings replaced Usher's pods %v by %v", ushers, now)
	}

	reader.Follow(t, pages.Find(t, "docs/quickstart-kubernetes.md", "helm upgrade consul hashicorp/consul --namespace consul --version 1.9.11 -f consul-values.yaml -f usher-values.yaml"))
	r.balancer.WaitHeader(t, lab.SendNone)
	r.waitAuto(t, gateway, "off")
	r.wantSamePod(t, gateway)
	reader.Follow(t, pages.Find(t, "docs/quickstart-kubernetes.md", "helm upgrade consul hashicorp/consul --namespace consul --version 1.9.11 -f consul-values.yaml --wait"))
	if now := r.gateway(t); now == gateway {
		t.Errorf("the gateway's pod %s was not replaced", gateway.Name())
	}
	reader.Follow(t, pages.Section(t, "docs/quickstart-kubernetes.md", "Uninstall"))
	r.wantBalancerAddress(t)
	testprocess.Eventually(t, "nothing of Usher is left in the cluster", testprocess.StartDeadline, func() error {
		left := reader.Type(t, "kubectl --namespace consul get all,secrets,configmaps,serviceaccounts,roles,poddisruptionbudgets --output name")
		if strings.Contains(left, "usher") {
			return errors.New(left)
		}
		return nil
	})
	reader.Type(t, "mkdir manifests")
	reader.Follow(t, pages.Find(t, "docs/kubernetes.md", "helm template consul hashicorp/consul"))
}

// waitHeaderOfClient waits until the gateway believes a PROXY header of a client that bypasses the load balancer, or closes
// its connections.
func (r *consulRelease) waitHeaderOfClient(t *testing.T, gateway *cluster.Pod, believed bool) {
	t.Helper()
	request := lab.Request{From: r.Client, To: gateway.Host.Addr(8080), Path: "/"}
	what := fmt.Sprintf("the gateway believes a client's own header (%v)", believed)
	testprocess.Eventually(t, what, testprocess.StartDeadline, func() error {
		request.Proxy = strings.NewReader("PROXY TCP4 192.0.2.99 192.0.2.1 1234 8080\r\n")
		got, err := request.Do(t.Context())
		switch {
		case believed:
			return err
		case err == nil:
			return fmt.Errorf("the client got %d", got.Status)
		}
		return nil
	})
}
