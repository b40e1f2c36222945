//go:build e2e

package loadbalancer

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// labService is the Service of docs/kubernetes-role.yaml.
var labService = gateway.KubernetesService{Namespace: apiserver.Namespace, Name: apiserver.Service}

// cluster is a real API server, and a client of it with Usher's own rights.
type cluster struct {
	*apiserver.Server
	usher rest.Interface
}

// What the documents tell operators to give Usher.
const (
	role     = "../../docs/kubernetes-role.yaml"
	noteRole = "../../docs/kubernetes-record.yaml"
)

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{Server: apiserver.Start(t, apiserver.Options{})}
	c.Grant(t, role)
	client, err := Connect(c.Kubeconfig(t, apiserver.Usher))
	if err != nil {
		t.Fatal(err)
	}
	c.usher = client
	return c
}

// create makes a Service, and gives it as the API server has it.
func (c *cluster) create(t *testing.T, name string, annotations map[string]string) *corev1.Service {
	t.Helper()
	s := balanced(annotations)
	s.Name = name
	return c.Create(t, s)
}

// watch is a Watch of the lab's Service with Usher's own rights, until stop.
func (c *cluster) watch(t *testing.T, grace time.Duration) (said <-chan *gateway.Balancer, stop func()) {
	t.Helper()
	return c.watchWith(t, Options{Grace: grace, Metrics: NewMetrics(prometheus.NewRegistry())})
}

func (c *cluster) watchWith(t *testing.T, o Options) (said <-chan *gateway.Balancer, stop func()) {
	t.Helper()
	o.Client, o.Logger = c.usher, slog.New(slog.DiscardHandler)
	return run(t, o, labService)
}

func TestOnAnAPIServer(t *testing.T) {
	c := newCluster(t)
	t.Run("every annotation of the table, on a real Service", func(t *testing.T) { c.everyAnnotation(t) })
	t.Run("the role of the documents suffices, and gives nothing else", func(t *testing.T) { c.leastRights(t) })
	t.Run("a header is switched on and off, and an Usher is restarted", func(t *testing.T) { c.switchOnAndOff(t) })
	t.Run("those that note graces count them alike", func(t *testing.T) { c.agreeByRecord(t) })
	t.Run("nobody answers, or refuses, or the Service is gone", func(t *testing.T) { c.outages(t) })
}

func (c *cluster) everyAnnotation(t *testing.T) {
	for i, row := range valueCases {
		before := time.Now().Add(-2 * time.Second) // times are in seconds
		name := fmt.Sprintf("row-%d", i)
		s := c.create(t, name, map[string]string{row.key: row.value})
		c.Delete(t, name) // its nodePorts are wanted again
		got := readIntent(s)
		for i := range got.problems {
			got.problems[i].Where = "Kubernetes Service consul/edge"
		}
		checkTold(t, row, got)
		for port, of := range got.listeners {
			if of.state == proxyOn && (of.since.Before(before) || of.since.After(time.Now().Add(time.Second))) {
				t.Errorf("%s: listener %d is on since %s, and the Service was made at %s", row.key, port, of.since, before)
			}
		}
	}
}

func (c *cluster) leastRights(t *testing.T) {
	c.create(t, labService.Name, nil)
	services := func() *rest.Request { return c.usher.Get().Namespace("consul").Resource("services") }
	if err := services().Name(labService.Name).Do(t.Context()).Error(); err != nil {
		t.Errorf("its own Service: %v", err)
	}
	for what, err := range map[string]error{
		"another Service": services().Name("row-0").Do(t.Context()).Error(),
		"all Services":    services().Do(t.Context()).Error(),
		"the Secrets":     c.usher.Get().Namespace("consul").Resource("secrets").Do(t.Context()).Error(),
		"to delete":       c.usher.Delete().Namespace("consul").Resource("services").Name(labService.Name).Do(t.Context()).Error(),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want Forbidden", what, err)
		}
	}
	said, stop := c.watch(t, time.Hour)
	await(t, said, settings.Off, "")
	stop()
}

func (c *cluster) switchOnAndOff(t *testing.T) {
	said, stop := c.watch(t, time.Hour)
	await(t, said, settings.Off, "")
	on := c.Annotate(t, awsAll, new("*"))
	await(t, said, settings.Permissive, "")
	restarted, stopRestarted := c.watch(t, time.Hour)
	await(t, restarted, settings.Permissive, "")
	stopRestarted()
	first, second := readIntent(on).listeners[8080].since, readIntent(c.Annotate(t, "example.com/other", new("x"))).listeners[8080].since
	if first.IsZero() || second.Before(first) {
		t.Errorf("since %s, and after another change since %s", first, second)
	}
	stop()
	said, stop = c.watch(t, 3*time.Second)
	await(t, said, settings.Strict, "")
	removed := c.Annotate(t, awsAll, nil)
	if newest := readIntent(removed).modified; newest.After(second) {
		t.Errorf("the removal has left the time %s; then nobody has to recall anything", newest)
	}
	restarted, stopRestarted = c.watch(t, time.Hour)
	await(t, restarted, settings.Permissive, "") // the API server still knows what was
	stopRestarted()
	await(t, said, settings.Permissive, "")
	await(t, said, settings.Off, "")
	stop()
}

// agreeByRecord follows a removal, which leaves no time in the Service, with two
// Ushers, and with one that is started after it.
func (c *cluster) agreeByRecord(t *testing.T) {
	c.Grant(t, noteRole)
	configMaps := func() *rest.Request { return c.usher.Get().Namespace("consul").Resource("configmaps") }
	if err := configMaps().Name("another").Do(t.Context()).Error(); !apierrors.IsForbidden(err) {
		t.Errorf("another ConfigMap: %v, want Forbidden", err)
	}
	noting := func(name string) (Options, <-chan *gateway.Balancer, func()) {
		o := Options{Grace: time.Hour, Metrics: NewMetrics(prometheus.NewRegistry()), Record: types.NamespacedName{Namespace: "consul", Name: name}}
		said, stop := c.watchWith(t, o)
		return o, said, stop
	}
	first, saidFirst, stopFirst := noting("usher-balancers")
	second, saidSecond, stopSecond := noting("usher-balancers")
	await(t, saidFirst, settings.Permissive, "") // it has sent headers a moment ago
	await(t, saidSecond, settings.Permissive, "")
	for _, value := range []*string{new("*"), nil} {
		c.Annotate(t, awsAll, value)
	}
	removed := c.Annotate(t, "example.com/other", nil).ResourceVersion
	noted := func() error {
		var m corev1.ConfigMap
		if err := configMaps().Name("usher-balancers").Do(t.Context()).Into(&m); err != nil {
			return err
		}
		if now := decodeState(m.Data["consul.consul-ingress-gateway"]); now.resourceVersion != removed {
			return fmt.Errorf("the note is of version %s, and the Service has %s", now.resourceVersion, removed)
		}
		return nil
	}
	testprocess.Eventually(t, "all is noted", testprocess.StartDeadline, noted)
	third, saidThird, stopThird := noting("usher-balancers")
	await(t, saidThird, settings.Permissive, "")
	for name, o := range map[string]Options{"second": second, "restarted": third} {
		testprocess.Eventually(t, name+" counts as the first does", testprocess.StartDeadline, func() error {
			if diff := cmp.Diff(first.Metrics.graces.list(), o.Metrics.graces.list(), cmp.AllowUnexported(grace{})); diff != "" {
				return fmt.Errorf("first -, %s +:\n%s", name, diff)
			}
			return nil
		})
	}
	_, refused, stopRefused := noting("another")
	await(t, refused, settings.Permissive, "give Usher get and update on it (docs/kubernetes-record.yaml)")
	for _, stop := range []func(){stopFirst, stopSecond, stopThird, stopRefused} {
		stop()
	}
}

func (c *cluster) outages(t *testing.T) {
	c.Annotate(t, awsAll, new("*"))
	said, stop := c.watch(t, 0)
	await(t, said, settings.Strict, "")
	c.Stop()
	await(t, said, settings.Strict, "cannot be reached")
	cold, stopCold := c.watch(t, 0)
	await(t, cold, "", "cannot be reached")
	c.Resume(t)
	await(t, said, settings.Strict, "")
	await(t, cold, settings.Strict, "")
	stopCold()

	c.Delete(t, labService.Name)
	await(t, said, settings.Strict, "there is no such Service")
	c.create(t, labService.Name, map[string]string{awsAll: "*"})
	await(t, said, settings.Strict, "")

	c.Revoke(t, "usher")
	cold, stopCold = c.watch(t, 0)
	await(t, cold, "", "give Usher get, list and watch on it")
	c.Grant(t, role)
	await(t, cold, settings.Strict, "")
	stopCold()
	stop()
}
