//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// apiServerFaults are what the API server does to all requests, and what the problem says of it. TestFaultsOfAnAPIServer in
// internal/loadbalancer has more of them.
var apiServerFaults = []struct{ fault, problem string }{
	{"503", "the API server answers with an error"},
	{"hang", "the API server does not answer in time"},
	{"slow body", "the API server does not answer in time"},
	{"reset before the answer", "cannot be reached"},
	{"half of the JSON", "the API server answers with an error"},
}

// TestFaultsOfTheAPIServer lets every request for the Service meet with each fault, while a gateway's listener is strict. The
// listener stays strict and no request fails. One problem is in the log and in /readyz, and is over when the fault is. At the
// end, Usher restarts with its state directory while the API server is away: the listener is strict, and later it follows its
// Service.
func TestFaultsOfTheAPIServer(t *testing.T) {
	t.Parallel()
	l := lab.StartKubernetesLab(t)
	l.ApplyChart(t, "../internal/loadbalancer/testdata/consul-values-ppv2.yaml", false)
	proxy := lab.StartFaultProxy(t, l.Gateway.Listen(t, "127.0.0.1:0"), l.API.Address(), asUsher{l.API.Transport(t)})
	pod := l.StartPod(t, l.Gateway, time.Second, "--kubeconfig", l.API.KubeconfigAt(t, apiserver.Usher, proxy.URL), "--state-dir", testprocess.NewDir(t))
	pod.WaitMode(t, "strict", testprocess.StartDeadline)
	l.HAProxy.SetHeader(t, lab.SendV2)
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	load := lab.StartLoadAt(t, l.Request("/"), 20)
	everything := lab.Query{Name: "everything", Path: "/api/"}

	meet := func(f lab.Fault, problem string) {
		waitForWatch(t, proxy)
		before := len(pod.Usher.Errors(t))
		fault := proxy.Inject(everything, f)
		waitForProblem(t, pod.Usher, f.Name, problem)
		fault.Clear()
		waitForProblem(t, pod.Usher, "the end of "+f.Name, "")
		logged := pod.Usher.Errors(t)[before:]
		logged = slices.DeleteFunc(logged, func(line string) bool {
			// The faults follow each other faster than a watch counts as calm, and each of them ends one.
			return !strings.Contains(line, "Kubernetes Service") || strings.Contains(line, "it ends each watch at once")
		})
		if len(logged) != 1 || !strings.Contains(logged[0], problem) {
			t.Errorf("%s: the log has the problems\n%s\nwant one with %q", f, strings.Join(logged, "\n"), problem)
		}
	}
	for _, c := range apiServerFaults {
		meet(lab.FaultNamed(t, c.fault), c.problem)
	}
	meet(lab.Unauthorized, "the API server does not accept Usher's credentials")
	if last := lab.LastMode(pod.Usher.Output(t)); !slices.Contains(last, "mode=strict") {
		t.Errorf("after the faults, the listener is %q", last)
	}

	waitForWatch(t, proxy)
	down := proxy.Inject(everything, lab.FaultNamed(t, "hang"))
	pod.Restart(t)
	waitForProblem(t, pod.Usher, "a restart", "the API server does not answer in time")
	l.Request("/").MustDo(t).WantHello(t)
	if last := lab.LastMode(pod.Usher.Output(t)); !slices.Contains(last, "mode=strict") {
		t.Errorf("the restarted Usher says %q", last)
	}
	down.Clear()
	waitForProblem(t, pod.Usher, "the end", "")
	load.WantNoFailures(t)
	l.API.Annotate(t, "service.beta.kubernetes.io/aws-load-balancer-proxy-protocol", nil)
	pod.WaitMode(t, "off", testprocess.ChangeDeadline)
}

// asUsher adds Usher's token to requests, because client-go sends none without TLS.
type asUsher struct{ http.RoundTripper }

func (a asUsher) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(apiserver.Usher))
	return a.RoundTripper.RoundTrip(r)
}

// waitForWatch waits until Usher watches through the proxy.
func waitForWatch(t *testing.T, proxy *lab.FaultProxy) {
	t.Helper()
	testprocess.Eventually(t, "Usher watches the Service", testprocess.StartDeadline, func() error {
		proxy.Mu.Lock()
		defer proxy.Mu.Unlock()
		for r := range proxy.Waiting {
			if r.URL.Query().Has("watch") {
				return nil
			}
		}
		return errors.New("not yet")
	})
}

// waitForProblem waits until /readyz has a problem of the Service with this text, or, with "", none, and the metric of
// failing watches says the same.
func waitForProblem(t *testing.T, u *lab.Usher, when, text string) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%s: /readyz has the problem %q", when, text), 2*time.Minute, func() error {
		ready, err := u.Admin("/readyz")
		if err != nil {
			return err
		}
		failing := u.MetricSum(t, "usher_kubernetes_watches_failing") > 0
		has := strings.Contains(ready, "Kubernetes Service")
		if has != (text != "") || failing != has || !strings.Contains(ready, text) {
			return errors.New(ready)
		}
		return nil
	})
}
