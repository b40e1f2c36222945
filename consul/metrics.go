package consul

import "github.com/prometheus/client_golang/prometheus"

// Metrics count what is asked of Consul. A nil *Metrics counts nothing.
type Metrics struct {
	queries        *prometheus.CounterVec
	watches        *prometheus.GaugeVec
	failing        *prometheus.GaugeVec
	authorizations *prometheus.CounterVec
	snapshots      prometheus.Counter
}

// NewMetrics registers the metrics with r; a nil r leaves them unregistered.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "usher_consul_queries_total",
			Help: "Answers to reads of Consul, by what was read and the outcome: ok, unreachable, denied, missing, limited or failed.",
		}, []string{"kind", "outcome"}),
		watches: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_consul_watches",
			Help: "Blocking queries that are open, by what they read.",
		}, []string{"kind"}),
		failing: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_consul_watches_failing",
			Help: "Blocking queries whose latest answer was an error, by what they read. Their last good answer counts.",
		}, []string{"kind"}),
		authorizations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "usher_consul_authorizations_total",
			Help: "Questions to Consul's ACLs whether an Envoy's token may have a gateway, by outcome: allowed, denied or failed.",
		}, []string{"outcome"}),
		snapshots: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "usher_consul_snapshots_total",
			Help: "Snapshots of gateways that were handed on.",
		}),
	}
	if r != nil {
		r.MustRegister(m.queries, m.watches, m.failing, m.authorizations, m.snapshots)
	}
	return m
}

func (m *Metrics) query(kind string, o outcome) {
	if m != nil {
		m.queries.WithLabelValues(kind, string(o)).Inc()
	}
}

func (m *Metrics) watch(kind string, delta float64) {
	if m != nil {
		m.watches.WithLabelValues(kind).Add(delta)
	}
}

func (m *Metrics) fail(kind string, delta float64) {
	if m != nil {
		m.failing.WithLabelValues(kind).Add(delta)
	}
}

func (m *Metrics) authorization(outcome string) {
	if m != nil {
		m.authorizations.WithLabelValues(outcome).Inc()
	}
}

func (m *Metrics) snapshot() {
	if m != nil {
		m.snapshots.Inc()
	}
}
