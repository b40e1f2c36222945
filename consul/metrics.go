package consul

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics count what is asked of Consul. A nil *Metrics counts nothing.
type Metrics struct {
	queries        *prometheus.CounterVec
	watches        *prometheus.GaugeVec
	failing        *prometheus.GaugeVec
	sharing        prometheus.Gauge
	up             prometheus.Gauge
	authorizations *prometheus.CounterVec
	snapshots      prometheus.Counter
	signatures     *prometheus.CounterVec
	expiries       *prometheus.GaugeVec
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
		sharing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "usher_consul_queries_taking_turns",
			Help: "Blocking queries that share too few connections, which delays changes: reach Consul over https://. 0 where each has one.",
		}),
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "usher_consul_up",
			Help: "1 while Consul answers a small question that is asked every few seconds; else 0. /readyz says why it does not.",
		}),
		authorizations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "usher_consul_authorizations_total",
			Help: "Questions to Consul's ACLs whether an Envoy's token may have a gateway, by outcome: allowed, denied or failed.",
		}, []string{"outcome"}),
		snapshots: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "usher_consul_snapshots_total",
			Help: "Snapshots of gateways that were handed on.",
		}),
		signatures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "usher_consul_signatures_total",
			Help: "Certificates for the clients of gateways that Consul was asked to sign, by outcome: ok, busy, refused or failed.",
		}, []string{"outcome"}),
		expiries: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_consul_certificate_expiry_timestamp_seconds",
			Help: "When the certificate expires that the clients of a gateway are shown, in seconds since 1970.",
		}, []string{"gateway"}),
	}
	if r != nil {
		r.MustRegister(m.queries, m.watches, m.failing, m.sharing, m.up, m.authorizations, m.snapshots, m.signatures, m.expiries)
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

func (m *Metrics) setSharing(queries int) {
	if m != nil {
		m.sharing.Set(float64(queries))
	}
}

func (m *Metrics) setUp(up bool) {
	if m == nil {
		return
	}
	m.up.Set(0)
	if up {
		m.up.Set(1)
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

func (m *Metrics) signature(err error) {
	if m == nil {
		return
	}
	outcome := "failed"
	switch {
	case err == nil:
		outcome = "ok"
	case errors.Is(err, errBusy):
		outcome = "busy"
	case errors.As(err, new(permanentError)):
		outcome = "refused"
	}
	m.signatures.WithLabelValues(outcome).Inc()
}

func (m *Metrics) expiry(gateway string, at time.Time) {
	if m != nil {
		m.expiries.WithLabelValues(gateway).Set(float64(at.Unix()))
	}
}

func (m *Metrics) forgetExpiry(gateway string) {
	if m != nil {
		m.expiries.DeleteLabelValues(gateway)
	}
}
