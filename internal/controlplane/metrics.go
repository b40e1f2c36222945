package controlplane

import "github.com/prometheus/client_golang/prometheus"

// Metrics are what a Plane counts. Use NewMetrics.
type Metrics struct {
	compile         prometheus.Histogram
	refusedGateways prometheus.Counter
}

// NewMetrics registers a plane's metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		compile: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "usher_compile_seconds",
			Help:    "Time to compile and encode the resources of one kind of Envoy.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8),
		}),
	}
	m.refusedGateways = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "usher_refused_gateways_total",
		Help: "Streams refused because too many gateways are served; see --max-gateways.",
	})
	r.MustRegister(m.compile, m.refusedGateways)
	return m
}

// compileTime starts a clock; the result stops it.
func (m *Metrics) compileTime() func() {
	t := prometheus.NewTimer(m.compile)
	return func() { t.ObserveDuration() }
}
