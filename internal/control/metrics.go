package control

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are what a Plane counts. Use NewMetrics.
type Metrics struct {
	compile prometheus.Histogram
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
	r.MustRegister(m.compile)
	return m
}

// compileTime starts a clock; the result stops it.
func (m *Metrics) compileTime() func() {
	t := prometheus.NewTimer(m.compile)
	return func() { t.ObserveDuration() }
}
