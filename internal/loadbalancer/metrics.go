package loadbalancer

import "github.com/prometheus/client_golang/prometheus"

// Metrics are what a Watcher counts. Use NewMetrics.
type Metrics struct {
	failing prometheus.Gauge
	graces  *graces
}

// NewMetrics registers a watcher's metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		failing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "usher_kubernetes_watches_failing",
			Help: "Services of which nobody knows at the moment what they say; listeners behind them stay what they are.",
		}),
		graces: newGraces(),
	}
	r.MustRegister(m.failing, m.graces)
	return m
}
