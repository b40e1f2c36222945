//go:build e2e

package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// awsHeaders is the annotation that the second values file adds.
const awsHeaders = "service.beta.kubernetes.io/aws-load-balancer-proxy-protocol"

// TestLabInKubernetes creates the Services of the lab's values files, without any
// setting of Usher's: the listener is off with the first, and strict with the second, with
// the client's address in the access log. Helm and the API server reject the values file
// with TABs before Usher could see it.
func TestLabInKubernetes(t *testing.T) {
	t.Parallel()
	l := lab.StartKubernetesLab(t)
	l.ApplyChart(t, "../internal/loadbalancer/testdata/consul-values.yaml", false)
	p := l.StartPod(t, l.Gateway, 6*time.Second)

	p.WaitMode(t, "off", testprocess.ChangeDeadline)
	l.WantBalancerAddress(t, p.Envoy)
	l.HAProxy.SetHeader(t, lab.SendV2)
	l.WantBadRequest(t)
	l.HAProxy.SetHeader(t, lab.SendNone)

	wantTabsRefused(t, l)
	wantNearMissExplained(t, l, p)
	p.WaitMode(t, "off", testprocess.ChangeDeadline)
	l.WantBalancerAddress(t, p.Envoy)

	l.ApplyChart(t, "../internal/loadbalancer/testdata/consul-values-ppv2.yaml", true)
	p.Usher.WaitOutput(t, "port=8080 mode=permissive until=")
	l.HAProxy.SetHeader(t, lab.SendV2)
	p.WaitMode(t, "strict", testprocess.ChangeDeadline)
	l.WantClientAddress(t, p.Envoy)
	l.HAProxy.SetHeader(t, lab.SendNone)
	l.WantPlainRefused(t)
}

// wantTabsRefused checks that Helm does not read the file, and that the API server rejects
// an annotation whose name begins with TABs.
func wantTabsRefused(t *testing.T, l *lab.KubernetesLab) {
	t.Helper()
	_, err := lab.ServiceFromValues(testprocess.ReadFile(t, "testdata/lab/consul-values-ppv2-tab.yaml"))
	if err == nil || !strings.Contains(err.Error(), "found a tab character where an indentation space is expected") {
		t.Errorf("the values file with TABs: %v", err)
	}
	on := "*"
	if _, err := l.API.TryAnnotate(t, "\t\t    "+awsHeaders, &on); !apierrors.IsInvalid(err) {
		t.Errorf("an annotation whose name begins with TABs: %v, want Invalid", err)
	}
}

// wantNearMissExplained checks a TAB in a value, where it does reach Usher. AWS refuses the
// value, so the load balancer's state is unknown, and the listener keeps its mode.
func wantNearMissExplained(t *testing.T, l *lab.KubernetesLab, p *lab.Pod) {
	t.Helper()
	near := "*\t"
	problem := p.Usher.WantProblem(t,
		`msg=problem gateway=ingress-gateway `+lab.LoggedProblem("Kubernetes Service consul/consul-ingress-gateway: "+awsHeaders,
			`the cloud refuses "*\t" and does not change the load balancer; use "*", or remove the annotation`),
		func() { l.API.Annotate(t, awsHeaders, &near) })
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	problem.WantFixed(t, func() { l.API.Annotate(t, awsHeaders, nil) })
}
