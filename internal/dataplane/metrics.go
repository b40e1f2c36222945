package dataplane

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Metrics counts what a server does. No label depends on who connects.
type Metrics struct {
	calls, streams, limited *prometheus.CounterVec
	openStreams             *prometheus.GaugeVec
	connections, bytes      prometheus.Gauge
}

// NewMetrics registers the metrics, unless r is nil. Every series exists from the start, with the value zero.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	counter := func(name, help, label string, values ...string) *prometheus.CounterVec {
		c := f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		for _, v := range values {
			c.WithLabelValues(v)
		}
		return c
	}
	m := &Metrics{
		calls: counter("usher_dataplane_calls_total",
			"Calls of consul-dataplane that were passed on to Consul, by outcome: ok, error (Consul's answer), unreachable, "+
				"canceled (by the caller, or by Usher while it was open), refused (by Usher) or limited.",
			"outcome", "ok", "error", "unreachable", "canceled", "refused", "limited"),
		streams: counter("usher_dataplane_ads_streams_total",
			"Discovery streams of consul-dataplane by who answers them: usher (ingress gateways) or consul. "+
				"If it is unknown whether it is a gateway's, the stream ends.",
			"destination", "usher", "consul", "unknown"),
		openStreams: f.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_dataplane_ads_streams", Help: "Open discovery streams of consul-dataplane by who answers them.",
		}, []string{"destination"}),
		limited: counter("usher_dataplane_limited_total",
			"Connections and calls of consul-dataplane that were refused or ended because a limit was reached.",
			"limit", "connections", "connections_per_peer", "calls", "calls_per_peer",
			"unproven_calls", "unproven_calls_per_peer", "message_bytes", "send_time"),
		connections: f.NewGauge(prometheus.GaugeOpts{
			Name: "usher_dataplane_connections", Help: "Open connections of consul-dataplane.",
		}),
		bytes: f.NewGauge(prometheus.GaugeOpts{
			Name: "usher_dataplane_message_bytes",
			Help: "Bytes of messages of consul-dataplane that have arrived and are not passed on yet.",
		}),
	}
	for _, destination := range []string{"usher", "consul"} {
		m.openStreams.WithLabelValues(destination)
	}
	return m
}

// countStream counts a discovery stream. Its end calls the function that countStream returns.
func (m *Metrics) countStream(destination string) (end func()) {
	m.streams.WithLabelValues(destination).Inc()
	open := m.openStreams.WithLabelValues(destination)
	open.Inc()
	return open.Dec
}
