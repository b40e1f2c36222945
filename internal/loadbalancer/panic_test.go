package loadbalancer

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/settings"
)

// fragile is a client that panics when the test tells it to.
type fragile struct {
	rest.Interface
	get, put atomic.Bool
}

func (f *fragile) Get() *rest.Request {
	if f.get.Load() {
		panic("a bug in Get")
	}
	return f.Interface.Get()
}

func (f *fragile) Put() *rest.Request {
	if f.put.Load() {
		panic("a bug in Put")
	}
	return f.Interface.Put()
}

// counting returns a function that returns how many panics were counted since then.
func counting() func() float64 {
	before := testutil.ToFloat64(guard.Panics.WithLabelValues("kubernetes"))
	return func() float64 { return testutil.ToFloat64(guard.Panics.WithLabelValues("kubernetes")) - before }
}

func TestAPanicWhileListeningLeavesListenersWhatTheyAre(t *testing.T) {
	a := newAPIServer(t)
	a.set(service("true", -60))
	o, panics := a.options(t, ""), counting()
	client := &fragile{Interface: o.Client}
	o.Client = client
	said, _ := run(t, o, edge)
	await(t, said, settings.Strict, "")
	client.get.Store(true)
	a.refuse(true) // which ends the watch
	await(t, said, settings.Strict, "bug in Usher: panic in kubernetes at panic_test.go:")
	if panics() == 0 {
		t.Error("usher_panics_total did not grow")
	}
	client.get.Store(false)
	a.refuse(false)
	a.set(service("false", 1))
	await(t, said, settings.Off, "")
}

func TestAPanicWhileAServiceIsReadLeavesListenersWhatTheyAre(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.record = &corev1.ConfigMap{}
	a.set(service("true", 0))
	o := a.options(t, "record")
	client := &fragile{Interface: o.Client}
	o.Client = client
	said, _ := run(t, o, edge)
	await(t, said, settings.Strict, "")
	a.noted(t, "1")
	client.put.Store(true)
	a.set(service("", 0))
	await(t, said, settings.Permissive, "bug in Usher: panic in kubernetes at panic_test.go:")
	client.put.Store(false)
	await(t, said, settings.Permissive, "")
	a.noted(t, "2")
}

func TestAPanicInAWatchIsAProblemUntilTheNextStepSucceeds(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(service("true", 0))
	said := make(chan *gateway.Balancer, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	w := NewWatcher(a.options(t, ""))
	panicked := false
	go func() {
		defer close(ended)
		w.Watch(ctx, edge, func(b *gateway.Balancer) {
			if !panicked {
				panicked = true
				panic("a bug")
			}
			said <- b
		})
	}()
	await(t, said, settings.Strict, "Kubernetes Service consul/edge: bug in Usher: panic in kubernetes at panic_test.go:")
	await(t, said, settings.Strict, "")
	cancel()
	<-ended
}

// client-go would end the process.
func TestAPanicInAGoroutineOfTheClientIsCounted(t *testing.T) {
	panics := counting()
	func() {
		defer utilruntime.HandleCrash()
		panic("a bug in client-go, which is logged here")
	}()
	if n := panics(); n == 0 {
		t.Error("usher_panics_total did not grow")
	}
}
