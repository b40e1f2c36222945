package loadbalancer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/gateway"
)

// Metrics are the metrics of a Watcher. Use NewMetrics. The methods may be called from any goroutine.
type Metrics struct {
	failing  prometheus.Gauge
	graceEnd *prometheus.GaugeVec

	mu             sync.Mutex
	failingWatches map[gateway.KubernetesService]bool
	grace          map[gracePort]time.Time // when each grace period ends
}

// gracePort is a listener in a grace period.
type gracePort struct {
	service gateway.KubernetesService
	port    int // 0: all listeners that no port of the Service leads to
}

// NewMetrics registers a watcher's metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		failing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "usher_kubernetes_watches_failing",
			Help: "Services that Usher cannot read at the moment. Their listeners keep their last mode.",
		}),
		graceEnd: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_kubernetes_grace_end_timestamp_seconds",
			Help: "End of a listener's grace period. Until then it accepts connections with and without a PROXY header.",
		}, []string{"namespace", "service", "port"}),
		failingWatches: map[gateway.KubernetesService]bool{},
		grace:          map[gracePort]time.Time{},
	}
	r.MustRegister(m.failing, m.graceEnd)
	return m
}

// update sets whether the watch of a Service fails, and when the grace periods of its listeners end, by port.
func (m *Metrics) update(service gateway.KubernetesService, failing bool, ends map[int]time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.failingWatches, service)
	if failing {
		m.failingWatches[service] = true
	}
	m.failing.Set(float64(len(m.failingWatches)))
	for g := range m.grace {
		if _, lasts := ends[g.port]; g.service == service && !lasts {
			delete(m.grace, g)
			m.graceEnd.DeleteLabelValues(service.Namespace, service.Name, strconv.Itoa(g.port))
		}
	}
	for port, end := range ends {
		m.grace[gracePort{service, port}] = end
		m.graceEnd.WithLabelValues(service.Namespace, service.Name, strconv.Itoa(port)).Set(float64(end.Unix()))
	}
}

// warning returns the listeners in a grace period and how long each lasts, in one line; empty if there is none.
func (m *Metrics) warning(now time.Time) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.grace) == 0 {
		return ""
	}
	var out []string
	for g, end := range m.grace {
		listener := "listener " + strconv.Itoa(g.port)
		if g.port == 0 {
			listener = "other listeners"
		}
		out = append(out, fmt.Sprintf("Service %s/%s, %s, for another %s, until %s",
			g.service.Namespace, g.service.Name, listener, end.Sub(now).Round(time.Second), end.UTC().Format(time.RFC3339)))
	}
	slices.Sort(out)
	return "in a grace period, and open to connections with and without a PROXY header: " + strings.Join(out, "; ")
}
