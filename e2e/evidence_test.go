//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestHeadersStopAndBeginAgain lets a load balancer stop its PROXY headers without any
// change of its Service, and begin again, under load through two pods. Requests fail
// only until the listeners are permissive. One of the Ushers is killed then, and the
// record tells the next one why they are. They become strict again with the headers.
func TestHeadersStopAndBeginAgain(t *testing.T) {
	t.Parallel()
	s := startSwitchedApart(t, 150)
	s.stay(t, "off")
	s.annotate(t, true)
	s.stay(t, "permissive")
	s.setHeader(t, lab.SendV2)
	s.stay(t, "strict")

	stopped := time.Now()
	s.setHeader(t, lab.SendNone)
	s.waitBoth(t, "permissive", time.Minute) // a minute is the longest
	permissive := time.Now()
	const why = "connections come without the PROXY header that they had until "
	s.second.Usher.WaitOutput(t, why)
	s.first.Restart(t)
	s.first.Usher.WaitOutput(t, why)
	s.waitBoth(t, "permissive", 0)

	s.setHeader(t, lab.SendV2)
	s.waitBoth(t, "strict", time.Minute) // each replica may object for a minute
	s.load.WaitMore(t)
	s.load.Stop()
	t.Logf("load: %d of %d requests fail, in %.1fs without headers on strict listeners",
		len(s.load.Failures), len(s.load.Failures)+len(s.load.Answered), permissive.Sub(stopped).Seconds())
	for _, f := range s.load.Failures {
		if begun := s.load.Started.Add(f.After); begun.Before(stopped) || begun.After(permissive) {
			t.Errorf("load: %v", f)
		}
	}
	s.wantAddresses(t)
}

// waitBoth waits until both pods are in a mode, with so much time more than for a
// change of the Service.
func (s *switchedApart) waitBoth(t *testing.T, mode string, more time.Duration) {
	t.Helper()
	for _, p := range []*lab.Pod{s.first, s.second} {
		p.WaitMode(t, mode, s.grace+testprocess.ChangeDeadline+more)
	}
}

// TestConnectionsThatAStrictListenerWouldRefuse lets a grace period end without
// any traffic, so that nothing speaks against the Service. The first connections
// without a PROXY header are refused, and bring the listener back.
func TestConnectionsThatAStrictListenerWouldRefuse(t *testing.T) {
	t.Parallel()
	l := lab.StartKubernetesLab(t)
	l.ApplyChart(t, "../internal/loadbalancer/testdata/consul-values.yaml", false)
	l.API.Annotate(t, awsHeaders, new("*"))
	// With a record, an Usher that has just started waits for a minute: the record would say what connections showed before.
	p := l.StartPod(t, l.Gateway, time.Second, "--balancer-record=")
	p.Usher.WaitOutput(t, "port=8080 mode=strict")

	testprocess.Eventually(t, "the listener is permissive again", 2*testprocess.ChangeDeadline, func() error {
		_, err := l.Request("/").Do(t.Context())
		if !strings.Contains(p.Usher.Output(t), "port=8080 from=strict to=permissive") {
			return errors.Join(err, errors.New("not yet"), p.Usher.Alive())
		}
		return nil
	})
	p.WaitMode(t, "permissive", testprocess.ChangeDeadline)
}

// TestTheKeyOfReportsComesLater starts Usher without any right to the Secret with
// the key. The gateway is served all the same, and a problem says what is missing.
// When the right is there, connections are reported without a restart.
func TestTheKeyOfReportsComesLater(t *testing.T) {
	t.Parallel()
	l := lab.StartKubernetesLab(t)
	l.ApplyChart(t, "../internal/loadbalancer/testdata/consul-values.yaml", false)
	p := l.StartPod(t, l.Gateway, time.Second, "--connection-report-key-secret", "consul/usher-report-key")
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	p.Usher.WaitOutput(t, "give Usher get and update on this Secret (docs/kubernetes-report-key.yaml)")

	l.API.Grant(t, "../docs/kubernetes-report-key.yaml")
	p.Usher.WaitOutput(t, `msg="problem over" where="Kubernetes Secret consul/usher-report-key"`)
	testprocess.Eventually(t, "connections are reported", testprocess.ChangeDeadline, func() error {
		l.Request("/").MustDo(t).WantHello(t)
		if lab.Reported(t, p.Usher.Metrics(t), 8080, "no_header") == 0 {
			return errors.New("none is")
		}
		return nil
	})
}

// TestHeadersThatTheServiceDoesNotSwitchOn lets a load balancer send PROXY
// headers whose Service has no annotation. Each request is answered 400, and a
// problem says why.
func TestHeadersThatTheServiceDoesNotSwitchOn(t *testing.T) {
	t.Parallel()
	l, p := startUnannotated(t, nil)
	const unexpected = "most connections begin with what looks like a PROXY header, from " + lab.BalancerIP
	testprocess.Eventually(t, "the problem names the load balancer", testprocess.ChangeDeadline, func() error {
		r, err := l.Request("/").Do(t.Context())
		switch {
		case err == nil && r.Status != http.StatusBadRequest:
			return testprocess.Permanent(fmt.Errorf("the answer is %d", r.Status))
		case !strings.Contains(p.Usher.Output(t), unexpected):
			return errors.Join(err, errors.New("not yet"), p.Usher.Alive())
		}
		return nil
	})
	lab.WaitStatus(t, l.Request("/"), http.StatusBadRequest)
}

// TestHeadersOfTrustedAddressesAreBelieved is the same, where trusted_cidrs names
// the load balancer: its headers are believed within seconds, also by the next
// Usher, and until the list is gone. Those of others never are.
func TestHeadersOfTrustedAddressesAreBelieved(t *testing.T) {
	t.Parallel()
	l, p := startUnannotated(t, []string{lab.BalancerIP + "/32"})
	begin, refused := time.Now(), 0
	testprocess.Eventually(t, "requests are answered", testprocess.ChangeDeadline, func() error {
		r, err := l.Request("/").Do(t.Context())
		if err == nil && r.Status == http.StatusBadRequest {
			refused++
			err = errors.New("the answer is 400")
		}
		return errors.Join(err, p.Usher.Alive())
	})
	t.Logf("%d requests in %s were answered 400", refused, time.Since(begin).Round(100*time.Millisecond))
	if refused == 0 {
		t.Error("no request was answered 400, so the listener was not off")
	}
	l.WantClientAddress(t, p.Envoy)
	p.Usher.WaitOutput(t, "it switches no PROXY headers on for listener 8080")
	p.Usher.WaitOutput(t, "from "+lab.BalancerIP+", and trusted_cidrs names these addresses")

	stranger := lab.Request{From: l.Client, To: l.Gateway.Addr(8080), Path: lab.NewPath(), Proxy: lab.ProxyHeaderFor("203.0.113.9")}
	stranger.MustDo(t).WantHello(t)
	if got := l.ForwardedFor(t, stranger.Path); got != lab.ClientIP {
		t.Errorf("the service got X-Forwarded-For %q of a client that writes a header, want its own address, %s", got, lab.ClientIP)
	}
	p.Restart(t)
	p.WaitMode(t, "permissive", testprocess.ChangeDeadline)
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)

	setTrustedCIDRs(t, l.Lab, nil)
	lab.WaitStatus(t, l.Request("/"), http.StatusBadRequest)
}

// startUnannotated starts a pod behind a load balancer that sends headers, though
// its Service has no annotation.
func startUnannotated(t *testing.T, trusted []string) (*lab.KubernetesLab, *lab.Pod) {
	t.Helper()
	l := lab.StartKubernetesLab(t)
	l.ApplyChart(t, "../internal/loadbalancer/testdata/consul-values.yaml", false)
	setTrustedCIDRs(t, l.Lab, trusted)
	p := l.StartPod(t, l.Gateway, 5*time.Second)
	p.Usher.WaitOutput(t, "port=8080 mode=off")
	l.HAProxy.SetHeader(t, lab.SendV2)
	return l, p
}
