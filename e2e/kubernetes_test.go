//go:build e2e

package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// awsHeaders is the annotation that the second lab adds.
const awsHeaders = "service.beta.kubernetes.io/aws-load-balancer-proxy-protocol"

// TestLabInKubernetes makes the Services of the lab's values files, with nothing
// about PROXY protocol told to Usher: off with the first, strict with the second,
// and the client's address in the access log. The values file with TABs ends
// before it gets to Usher, wherever it is tried.
func TestLabInKubernetes(t *testing.T) {
	t.Parallel()
	l := startKubernetesLab(t)
	l.chart(t, "../internal/loadbalancer/testdata/consul-values.yaml", false)
	p := l.startPod(t, l.Gateway, 6*time.Second)

	p.follows(t, "off", changeDeadline)
	l.wantBalancersAddress(t, p.envoy)
	l.HAProxy.setHeader(t, v2Header)
	l.wantBadRequest(t)
	l.HAProxy.setHeader(t, noHeader)

	l.wantTabsRefused(t)
	l.wantNearMissExplained(t, p)
	p.follows(t, "off", changeDeadline)
	l.wantBalancersAddress(t, p.envoy)

	l.chart(t, "../internal/loadbalancer/testdata/consul-values-ppv2.yaml", true)
	p.usher.WaitOutput(t, "port=8080 mode=permissive until=")
	l.HAProxy.setHeader(t, v2Header)
	p.follows(t, "strict", changeDeadline)
	l.wantClientsAddress(t, p.envoy)
	l.HAProxy.setHeader(t, noHeader)
	l.wantRefused(t)
}

// wantTabsRefused: Helm does not read the file, and the API server takes no
// annotation whose name begins with TABs.
func (l *kubernetesLab) wantTabsRefused(t *testing.T) {
	t.Helper()
	_, err := serviceOf(readFile(t, "testdata/lab/consul-values-ppv2-tab.yaml"))
	if err == nil || !strings.Contains(err.Error(), "found a tab character where an indentation space is expected") {
		t.Errorf("the values file with TABs: %v", err)
	}
	on := "*"
	if _, err := l.API.TryAnnotate(t, "\t\t    "+awsHeaders, &on); !apierrors.IsInvalid(err) {
		t.Errorf("an annotation whose name begins with TABs: %v, want Invalid", err)
	}
}

// wantNearMissExplained: a TAB gets to Usher in a value only. AWS refuses it, and
// so it is unknown what the balancer does; the listener stays what it is.
func (l *kubernetesLab) wantNearMissExplained(t *testing.T, p *pod) {
	t.Helper()
	near := "*\t"
	trouble := p.usher.wantTrouble(t,
		`msg="bad configuration" gateway=ingress-gateway `+asLogged("Kubernetes Service consul/consul-ingress-gateway: "+awsHeaders,
			`"*\t" is refused and leaves the load balancer as it is; use "*", or remove the annotation`),
		func() { l.API.Annotate(t, awsHeaders, &near) })
	waitStatus(t, l.call("/"), http.StatusOK)
	trouble.mended(t, func() { l.API.Annotate(t, awsHeaders, nil) })
}
