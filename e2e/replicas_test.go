//go:build e2e

package e2e

import (
	"errors"
	"regexp"
	"slices"
	"syscall"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestReplicasEndUnderLoad has two Ushers behind one address. Under load, it ends the one that an Envoy is connected to, and
// starts it again: by SIGKILL, by SIGTERM, and after it has stood still (SIGSTOP) during a change. No request fails. The Envoy
// comes to the other Usher, which sends it nothing if it is up to date, and else what has changed.
func TestReplicasEndUnderLoad(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	l.HAProxy.SetHeader(t, lab.SendV2)
	l.SetMode(t, "permissive")
	r := startReplicas(t, l)
	gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: "http://" + replicasAddress})
	l.WantClientAddress(t, gateway)
	load := lab.StartLoad(t, l.Request("/"))

	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		moved := r.end(t, func(u *lab.Usher) { u.Signal(t, signal) })
		load.WaitMore(t)
		moved.wantSent(t)
	}
	l.SetMode(t, "strict")
	l.WaitMode(t, l.Gateway, "strict")
	moved := r.end(t, func(u *lab.Usher) {
		u.Signal(t, syscall.SIGSTOP)
		l.SetMode(t, "permissive")
		load.WaitMore(t)
		u.Kill()
	})
	l.WaitMode(t, l.Gateway, "permissive")
	load.WaitMore(t)
	moved.wantSent(t, "listener", "route")
	load.WantNoFailures(t)
}

const replicasAddress = "127.0.0.1:18002"

// replicas are two Ushers behind one address.
type replicas struct {
	service *readyService
	options []lab.UsherOptions
	ushers  []*lab.Usher
	current int // the one that the Envoy is connected to
}

func startReplicas(t *testing.T, l *lab.Lab) *replicas {
	t.Helper()
	r := &replicas{service: &readyService{}}
	for _, h := range []*lab.Host{l.Gateway, l.Service} {
		o := lab.UsherOptions{Host: h, Consul: l.Consul, XDSAddr: h.Addr(18000), Args: []string{"--insecure-plaintext", "--gateway", "ingress-gateway"}}
		u := lab.StartUsher(t, o)
		r.options, r.ushers = append(r.options, o), append(r.ushers, u)
		r.service.add(u, h)
	}
	r.service.start(t, l.Gateway, replicasAddress)
	return r
}

// moved is an Envoy that has come to an Usher.
type moved struct {
	usher  *lab.Usher
	before map[string]string // what the Usher had sent before
}

// end ends the Usher that has the Envoy, waits for the Envoy at the other one, and replaces the one that has ended.
func (r *replicas) end(t *testing.T, end func(*lab.Usher)) moved {
	t.Helper()
	from, other := r.current, 1-r.current
	if n := r.ushers[from].MetricSum(t, "usher_xds_streams"); n != 1 {
		t.Fatalf("the Usher that is to end has %v streams, want the Envoy's", n)
	}
	m := moved{usher: r.ushers[other], before: sentBytes(t, r.ushers[other])}
	acks := m.usher.MetricSum(t, "usher_xds_acks_total")
	end(r.ushers[from])
	r.ushers[from].Wait(t)
	testprocess.Eventually(t, "the Envoy is connected to the other Usher", testprocess.ChangeDeadline, func() error {
		if m.usher.MetricSum(t, "usher_xds_streams") != 1 || m.usher.MetricSum(t, "usher_xds_acks_total") < acks+2 {
			return errors.New("it has not acknowledged clusters and listeners there")
		}
		return nil
	})
	r.ushers[from] = lab.StartUsher(t, r.options[from])
	r.service.replace(from, r.ushers[from])
	r.current = other
	return m
}

// wantSent wants bytes of these types sent to the Envoy, and of no others.
func (m moved) wantSent(t *testing.T, types ...string) {
	t.Helper()
	for typ, bytes := range sentBytes(t, m.usher) {
		if sent := bytes != m.before[typ]; sent != slices.Contains(types, typ) {
			t.Errorf("of the type %s, the Envoy that came was sent resources: %v (bytes %s, before %s), want only %v", typ, sent, bytes, m.before[typ], types)
		}
	}
}

// sentBytes returns the bytes of resources that an Usher has sent, by type.
func sentBytes(t *testing.T, u *lab.Usher) map[string]string {
	t.Helper()
	sent := map[string]string{}
	for _, series := range regexp.MustCompile(`(?m)^`+resourceBytes+`\{type="(\w+)"\} (\S+)$`).FindAllStringSubmatch(u.Metrics(t), -1) {
		sent[series[1]] = series[2]
	}
	return sent
}
