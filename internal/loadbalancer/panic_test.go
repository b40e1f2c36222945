package loadbalancer

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/settings"
)

// panickingClient is a client that panics when the test switches that on.
type panickingClient struct {
	rest.Interface
	get, put atomic.Bool
}

func (f *panickingClient) Get() *rest.Request {
	if f.get.Load() {
		panic("a bug in Get")
	}
	return f.Interface.Get()
}

func (f *panickingClient) Put() *rest.Request {
	if f.put.Load() {
		panic("a bug in Put")
	}
	return f.Interface.Put()
}

// countPanics returns a function that returns how many panics were counted since then.
func countPanics() func() float64 {
	before := testutil.ToFloat64(guard.Panics.WithLabelValues("kubernetes"))
	return func() float64 { return testutil.ToFloat64(guard.Panics.WithLabelValues("kubernetes")) - before }
}

func TestPanicInARequestKeepsTheMode(t *testing.T) {
	a := newAPIServer(t)
	a.set(service("true", -60))
	o, panics := a.options(t, ""), countPanics()
	client := &panickingClient{Interface: o.Client}
	o.Client = client
	published, _ := run(t, o, edge)
	await(t, published, settings.Strict, "")
	client.get.Store(true)
	a.refuse(true) // which ends the watch
	await(t, published, settings.Strict, "bug in Usher: panic in kubernetes at panic_test.go:")
	if panics() == 0 {
		t.Error("usher_panics_total did not grow")
	}
	client.get.Store(false)
	a.refuse(false)
	a.set(service("false", 1))
	await(t, published, settings.Off, "")
}

func TestPanicInAnUpdateKeepsTheMode(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.record = &corev1.ConfigMap{}
	a.set(service("true", 0))
	o := a.options(t, "record")
	client := &panickingClient{Interface: o.Client}
	o.Client = client
	published, _ := run(t, o, edge)
	await(t, published, settings.Strict, "")
	a.waitRecorded(t, "1")
	client.put.Store(true)
	a.set(service("", 0))
	await(t, published, settings.Permissive, "bug in Usher: panic in kubernetes at panic_test.go:")
	client.put.Store(false)
	await(t, published, settings.Permissive, "")
	a.waitRecorded(t, "2")
}

func TestPanicInAStepIsAProblemUntilTheNextStepSucceeds(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(service("true", 0))
	published := make(chan *gateway.Balancer, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	w := NewWatcher(a.options(t, ""))
	panicked := false
	go func() {
		defer close(ended)
		w.Watch(ctx, gateway.ID{Name: "edge"}, edge, func(b *gateway.Balancer) {
			if !panicked {
				panicked = true
				panic("a bug")
			}
			published <- b
		})
	}()
	await(t, published, settings.Strict, "Kubernetes Service consul/edge: bug in Usher: panic in kubernetes at panic_test.go:")
	await(t, published, settings.Strict, "")
	cancel()
	<-ended
}

// panickingReports panics when it is watched for the first time.
type panickingReports struct {
	reports
	watched atomic.Bool
}

func (p *panickingReports) Watch(ctx context.Context, of gateway.ID, id gateway.KubernetesService, put func(evidence.Ports)) {
	if !p.watched.Swap(true) {
		panic("a bug in Watch")
	}
	p.reports.Watch(ctx, of, id, put)
}

func TestReportsAreWatchedAgainAfterAPanic(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(service("true", 0))
	o, source := a.options(t, ""), &panickingReports{reports: make(reports)}
	o.Evidence = source
	published, _ := run(t, o, edge)
	await(t, published, settings.Strict, "")
	source.reports <- reported(evidence.Summary{WithoutHeader: tally(3)})
	await(t, published, settings.Permissive, "connections come without a PROXY header")
}
