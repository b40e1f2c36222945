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
	// graceEnds are the ends of grace periods, by port. Listeners that no port of the Service leads to are port 0.
	graceEnds map[gateway.KubernetesService]map[int]time.Time
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
		}, []string{"kubernetes_namespace", "kubernetes_service", "port"}),
		failingWatches: map[gateway.KubernetesService]bool{},
		graceEnds:      map[gateway.KubernetesService]map[int]time.Time{},
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
	for port := range m.graceEnds[service] {
		if _, lasts := ends[port]; !lasts {
			m.graceEnd.DeleteLabelValues(service.Namespace, service.Name, strconv.Itoa(port))
		}
	}
	delete(m.graceEnds, service)
	if len(ends) > 0 {
		m.graceEnds[service] = ends
	}
	for port, end := range ends {
		m.graceEnd.WithLabelValues(service.Namespace, service.Name, strconv.Itoa(port)).Set(float64(end.Unix()))
	}
}

// warning returns a line for each listener in a grace period; empty if there is none.
func (m *Metrics) warning(now time.Time) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	for service, ends := range m.graceEnds {
		for port, end := range ends {
			listener := "listener " + strconv.Itoa(port)
			if port == 0 {
				listener = "other listeners"
			}
			lines = append(lines, fmt.Sprintf("Service %s/%s, %s: grace period until %s (%s left); "+
				"connections with and without a PROXY header are accepted", service.Namespace, service.Name, listener,
				end.UTC().Format("15:04Z"), end.Sub(now).Round(time.Second)))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
