package kubernetes

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/gateway"
)

// Metrics are what a Watcher counts. Use NewMetrics.
type Metrics struct {
	failing prometheus.Gauge
	ends    *prometheus.GaugeVec
}

// NewMetrics registers a watcher's metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		failing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "usher_kubernetes_watches_failing",
			Help: "Services of which nobody knows at the moment what they say; listeners behind them stay what they are.",
		}),
		ends: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_kubernetes_grace_end_timestamp_seconds",
			Help: "When a listener stops taking connections both with and without a PROXY header, because its load balancer has had the time to follow its Service.",
		}, []string{"namespace", "service", "port"}),
	}
	r.MustRegister(m.failing, m.ends)
	return m
}

// report is what a Watch has said in the metrics.
type report struct {
	metrics *Metrics
	id      gateway.KubernetesService
	failing bool
	ports   map[int]bool
}

// update says whether the watch fails, and when each grace ends.
func (r *report) update(failing bool, ends map[int]time.Time) {
	switch {
	case failing && !r.failing:
		r.metrics.failing.Inc()
	case !failing && r.failing:
		r.metrics.failing.Dec()
	}
	r.failing = failing
	for port := range r.ports {
		if _, still := ends[port]; !still {
			r.metrics.ends.DeleteLabelValues(r.id.Namespace, r.id.Name, strconv.Itoa(port))
		}
	}
	r.ports = map[int]bool{}
	for port, end := range ends {
		r.ports[port] = true
		r.metrics.ends.WithLabelValues(r.id.Namespace, r.id.Name, strconv.Itoa(port)).Set(float64(end.Unix()))
	}
}
