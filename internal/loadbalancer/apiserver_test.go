//go:build e2e

package loadbalancer

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/kubeapi"
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

// The rights that the documentation gives Usher.
const (
	serviceRole = "../../docs/kubernetes-role.yaml"
	recordRole  = "../../docs/kubernetes-record.yaml"
)

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{Server: apiserver.Start(t, apiserver.Options{})}
	c.Grant(t, serviceRole)
	client, err := kubeapi.Connect(c.Kubeconfig(t, apiserver.Usher))
	if err != nil {
		t.Fatal(err)
	}
	c.usher = client
	return c
}

// create creates a Service, and returns it as the API server has it.
func (c *cluster) create(t *testing.T, name string, annotations map[string]string) *corev1.Service {
	t.Helper()
	s := balanced(annotations)
	s.Name = name
	return c.Create(t, s)
}

// watch is a Watch of the lab's Service with Usher's own rights, until stop.
func (c *cluster) watch(t *testing.T, grace time.Duration) (published <-chan *gateway.Balancer, stop func()) {
	t.Helper()
	return c.watchWith(t, Options{Grace: grace, Metrics: NewMetrics(prometheus.NewRegistry())})
}

func (c *cluster) watchWith(t *testing.T, o Options) (published <-chan *gateway.Balancer, stop func()) {
	t.Helper()
	o.Client, o.Logger = c.usher, slog.New(slog.DiscardHandler)
	return run(t, o, labService)
}

func TestOnAnAPIServer(t *testing.T) {
	c := newCluster(t)
	t.Run("every annotation of the table, on a real Service", func(t *testing.T) { c.everyAnnotation(t) })
	t.Run("the documented role suffices, and gives nothing else", func(t *testing.T) { c.leastRights(t) })
	t.Run("headers are switched on and off, and an Usher is restarted", func(t *testing.T) { c.switchOnAndOff(t) })
	t.Run("Ushers with a record agree on grace periods", func(t *testing.T) { c.agreeByRecord(t) })
	t.Run("an Usher that starts knows what the connections to another one have shown", func(t *testing.T) { c.shareFindings(t) })
	t.Run("a connection dies in silence", func(t *testing.T) { c.deadConnection(t) })
	t.Run("etcd is restored", func(sub *testing.T) { c.restoreEtcd(sub, t) })
	t.Run("the API server is down, or refuses, or the Service is deleted", func(t *testing.T) { c.outages(t) })
}

func (c *cluster) everyAnnotation(t *testing.T) {
	for i, row := range valueCases {
		before := time.Now().Add(-2 * time.Second) // times are in seconds
		name := fmt.Sprintf("row-%d", i)
		s := withValue(row.key, row.value)
		s.Name = name
		s = c.Create(t, s)
		c.Delete(t, name) // its nodePorts are wanted again
		got := readIntent(s)
		for i := range got.problems {
			got.problems[i].Where = "Kubernetes Service consul/edge"
		}
		checkIntent(t, row, got)
		for port, intent := range got.ports {
			if intent.State == proxyOn && (intent.since.Before(before) || intent.since.After(time.Now().Add(time.Second))) {
				t.Errorf("%s: listener %d is on since %s, and the Service was created at %s", row.key, port, intent.since, before)
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
	published, stop := c.watch(t, time.Hour)
	await(t, published, settings.Off, "")
	stop()
}

func (c *cluster) switchOnAndOff(t *testing.T) {
	published, stop := c.watch(t, time.Hour)
	await(t, published, settings.Off, "")
	on := c.Annotate(t, awsAll, new("*"))
	await(t, published, settings.Permissive, "")
	restarted, stopRestarted := c.watch(t, time.Hour)
	await(t, restarted, settings.Permissive, "")
	stopRestarted()
	first, second := readIntent(on).ports[8080].since, readIntent(c.Annotate(t, "example.com/other", new("x"))).ports[8080].since
	if first.IsZero() || second.Before(first) {
		t.Errorf("since %s, and after another change since %s", first, second)
	}
	stop()
	published, stop = c.watch(t, 3*time.Second)
	await(t, published, settings.Strict, "")
	removed := c.Annotate(t, awsAll, nil)
	if modified := readIntent(removed).modified; modified.After(second) {
		t.Errorf("the removal has left the time %s; then the history is not needed", modified)
	}
	restarted, stopRestarted = c.watch(t, time.Hour)
	await(t, restarted, settings.Permissive, "") // the API server still has the history
	stopRestarted()
	await(t, published, settings.Permissive, "")
	await(t, published, settings.Off, "")
	stop()
}

// agreeByRecord watches a removal, which leaves no time in the Service, with two Ushers,
// and with one that starts after it.
func (c *cluster) agreeByRecord(t *testing.T) {
	c.Grant(t, recordRole)
	configMaps := func() *rest.Request { return c.usher.Get().Namespace("consul").Resource("configmaps") }
	if err := configMaps().Name("another").Do(t.Context()).Error(); !apierrors.IsForbidden(err) {
		t.Errorf("another ConfigMap: %v, want Forbidden", err)
	}
	watchRecorded := func(name string) (Options, <-chan *gateway.Balancer, func()) {
		o := Options{Grace: time.Hour, Metrics: NewMetrics(prometheus.NewRegistry()), Record: types.NamespacedName{Namespace: "consul", Name: name}}
		published, stop := c.watchWith(t, o)
		return o, published, stop
	}
	first, publishedFirst, stopFirst := watchRecorded("usher-balancers")
	second, publishedSecond, stopSecond := watchRecorded("usher-balancers")
	await(t, publishedFirst, settings.Permissive, "") // it has sent headers a moment ago
	await(t, publishedSecond, settings.Permissive, "")
	for _, value := range []*string{new("*"), nil} {
		c.Annotate(t, awsAll, value)
	}
	removed := c.Annotate(t, "example.com/other", nil).ResourceVersion
	recorded := func() error {
		var m corev1.ConfigMap
		if err := configMaps().Name("usher-balancers").Do(t.Context()).Into(&m); err != nil {
			return err
		}
		if now := decodeState(m.Data["consul.consul-ingress-gateway"]); now.ResourceVersion != removed {
			return fmt.Errorf("the recorded state is of version %s, and the Service has %s", now.ResourceVersion, removed)
		}
		return nil
	}
	testprocess.Eventually(t, "the last revision is recorded", testprocess.StartDeadline, recorded)
	third, publishedThird, stopThird := watchRecorded("usher-balancers")
	await(t, publishedThird, settings.Permissive, "")
	for name, o := range map[string]Options{"second": second, "restarted": third} {
		testprocess.Eventually(t, name+" has the grace periods of the first", testprocess.StartDeadline, func() error {
			if diff := cmp.Diff(gracePeriods(first), gracePeriods(o)); diff != "" {
				return fmt.Errorf("first -, %s +:\n%s", name, diff)
			}
			return nil
		})
	}
	_, refused, stopRefused := watchRecorded("another")
	await(t, refused, settings.Permissive, "give Usher get and update on this ConfigMap (docs/kubernetes-record.yaml)")
	for _, stop := range []func(){stopFirst, stopSecond, stopThird, stopRefused} {
		stop()
	}
}

// shareFindings lets one Usher find that connections have no header, with the rights of agreeByRecord.
func (c *cluster) shareFindings(t *testing.T) {
	c.Annotate(t, awsAll, new("*"))
	watchReports := func() (reports, <-chan *gateway.Balancer, func()) {
		r := make(reports)
		o := Options{
			Metrics: NewMetrics(prometheus.NewRegistry()), Evidence: r,
			Record: types.NamespacedName{Namespace: "consul", Name: "usher-balancers"},
		}
		published, stop := c.watchWith(t, o)
		return r, published, stop
	}
	first, published, stop := watchReports()
	await(t, published, settings.Strict, "")
	first <- reported(evidence.Summary{WithoutHeader: tally(1240)})
	await(t, published, settings.Permissive, "1240 of 1240")
	testprocess.Eventually(t, "the finding is recorded", testprocess.StartDeadline, func() error {
		var m corev1.ConfigMap
		if err := c.usher.Get().Namespace("consul").Resource("configmaps").Name("usher-balancers").Do(t.Context()).Into(&m); err != nil {
			return err
		}
		if l := decodeState(m.Data["consul.consul-ingress-gateway"]).Ports[8080]; !l.Finding.found(foundNone) {
			return fmt.Errorf("recorded is %+v", l)
		}
		return nil
	})
	stop()
	_, published, stop = watchReports()
	await(t, published, settings.Permissive, "1240 of 1240")
	stop()
}

// deadConnection lets the connection of a watch die without a sign. New connections work.
func (c *cluster) deadConnection(t *testing.T) {
	c.Annotate(t, awsAll, new("*"))
	relay := newRelay(t, strings.TrimPrefix(c.Address(), "https://"))
	client, err := kubeapi.Connect(c.KubeconfigAt(t, apiserver.Usher, "https://"+relay.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Client: client, Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry())}
	published, stop := run(t, o, labService)
	defer stop()
	await(t, published, settings.Strict, "")
	relay.silence()
	c.Annotate(t, awsAll, nil)
	await(t, published, settings.Off, "")
	c.Annotate(t, awsAll, new("*"))
	await(t, published, settings.Strict, "")
}

// relay passes connections on to an address.
type relay struct {
	net.Listener
	mu    sync.Mutex
	conns []*relayed
}

// relayed is one connection.
type relayed struct {
	client net.Conn
	silent atomic.Bool
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l}
	var running sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		for _, c := range r.conns {
			c.client.Close() // the client would keep an idle one for 90 seconds
		}
		r.mu.Unlock()
		running.Wait()
	})
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				client.Close()
				continue
			}
			conn := &relayed{client: client}
			r.mu.Lock()
			r.conns = append(r.conns, conn)
			r.mu.Unlock()
			for from, to := range map[net.Conn]net.Conn{client: server, server: client} {
				running.Go(func() {
					defer client.Close()
					defer server.Close()
					_, _ = io.Copy(conn.writer(to), from)
				})
			}
		}
	})
	return r
}

// writer returns a writer that drops everything once the connection is silent.
func (c *relayed) writer(to io.Writer) io.Writer { return &silenced{to, c} }

type silenced struct {
	to   io.Writer
	conn *relayed
}

// Write implements io.Writer.
func (s *silenced) Write(p []byte) (int, error) {
	if s.conn.silent.Load() {
		return len(p), nil
	}
	return s.to.Write(p)
}

// silence makes all connections of this moment silent.
func (r *relay) silence() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.silent.Store(true)
	}
}

// restoreEtcd restores a backup from before the last changes, of which a watch would hear nothing. The API server then runs
// until the owner ends.
func (c *cluster) restoreEtcd(t, owner *testing.T) {
	c.Annotate(t, awsAll, new("*"))
	published, stop := c.watch(t, 0)
	defer stop()
	await(t, published, settings.Strict, "")
	c.Save(t)
	for i := range 5 {
		c.Annotate(t, "example.com/other", new(fmt.Sprint(i)))
	}
	c.Annotate(t, awsAll, nil)
	await(t, published, settings.Off, "")
	c.Restore(owner)
	await(t, published, settings.Strict, "")
	c.Annotate(t, awsAll, nil)
	await(t, published, settings.Off, "")
}

func (c *cluster) outages(t *testing.T) {
	c.Annotate(t, awsAll, new("*"))
	published, stop := c.watch(t, 0)
	await(t, published, settings.Strict, "")
	c.Stop()
	await(t, published, settings.Strict, "cannot be reached")
	cold, stopCold := c.watch(t, 0)
	await(t, cold, "", "cannot be reached")
	c.Resume(t)
	await(t, published, settings.Strict, "")
	await(t, cold, settings.Strict, "")
	stopCold()

	c.Delete(t, labService.Name)
	await(t, published, settings.Strict, "Consul's catalog names this Service")
	c.create(t, labService.Name, map[string]string{awsAll: "*"})
	await(t, published, settings.Strict, "")

	c.Revoke(t, "usher")
	cold, stopCold = c.watch(t, 0)
	await(t, cold, "", "give Usher get, list and watch on this Service")
	c.Grant(t, serviceRole)
	await(t, cold, settings.Strict, "")
	stopCold()
	stop()
}
