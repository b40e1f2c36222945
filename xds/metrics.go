package xds

import (
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Metrics counts what a server does. No label depends on who connects.
type Metrics struct {
	streams   *prometheus.GaugeVec
	responses *prometheus.CounterVec
	acks      *prometheus.CounterVec
	nacks     *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	denied    *prometheus.CounterVec

	connections    *prometheus.GaugeVec
	pendingStreams prometheus.Gauge
	requestBytes   prometheus.Gauge
	limited        *prometheus.CounterVec
	limits         *prometheus.GaugeVec
}

// NewMetrics makes the metrics and registers them, unless r is nil. Every
// series exists from the start, with the value zero.
func NewMetrics(r prometheus.Registerer) *Metrics {
	types := make([]string, 0, NumTypes)
	for t := range Type(NumTypes) {
		types = append(types, t.String())
	}
	m := &Metrics{
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_xds_streams", Help: "Open streams.",
		}, []string{"protocol"}),
		responses: counter("usher_xds_responses_total", "Responses sent.", "type", types...),
		acks:      counter("usher_xds_acks_total", "Responses Envoy accepted.", "type", types...),
		nacks:     counter("usher_xds_nacks_total", "Responses Envoy rejected.", "type", types...),
		bytes:     counter("usher_xds_resource_bytes_total", "Bytes of the resources sent.", "type", types...),
		denied: counter("usher_xds_denied_streams_total", "Streams ended because the caller may not have them.",
			"reason", "permission_denied", "unauthenticated", "unavailable"),
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_xds_connections", Help: "Open connections: those with an authorized stream, and those that are pending.",
		}, []string{"state"}),
		pendingStreams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "usher_xds_pending_streams", Help: "Open streams that are not authorized yet.",
		}),
		requestBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "usher_xds_request_bytes", Help: "Bytes of requests that have arrived and are not handled yet.",
		}),
		limited: counter("usher_xds_limited_total", "What was refused or ended because a limit was reached. usher_xds_limit has the limits.",
			"limit", limitNames...),
		limits: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_xds_limit", Help: "The limits for callers: numbers, numbers a second for rates, bytes, or seconds for times.",
		}, []string{"limit"}),
	}
	m.connections.WithLabelValues("pending")
	m.connections.WithLabelValues("authorized")
	m.streams.WithLabelValues("delta")
	m.streams.WithLabelValues("sotw")
	if r != nil {
		r.MustRegister(m.streams, m.responses, m.acks, m.nacks, m.bytes, m.denied,
			m.connections, m.pendingStreams, m.requestBytes, m.limited, m.limits)
	}
	return m
}

// counter makes a counter with one label and its values.
func counter(name, help, label string, values ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	for _, v := range values {
		c.WithLabelValues(v)
	}
	return c
}

// deny counts a stream that an Authorizer's error ends.
func (m *Metrics) deny(err error) {
	reason := "unavailable"
	switch status.Code(err) {
	case codes.PermissionDenied:
		reason = "permission_denied"
	case codes.Unauthenticated:
		reason = "unauthenticated"
	case codes.InvalidArgument:
		reason = "invalid_argument"
	}
	m.denied.WithLabelValues(reason).Inc()
}

// limitNames are the labels of the limits.
var limitNames = []string{
	"connections", "connections_per_peer", "streams", "streams_per_peer", "stream_rate", "stream_rate_per_peer", "denied_rate_per_peer",
	"pending_streams", "pending_streams_per_peer", "pending_time", "first_request_time", "send_time", "answer_time", "request_size", "request_bytes", "names",
}

// showLimits shows what the limits are.
func (m *Metrics) setLimits(l Limits) {
	for name, value := range map[string]float64{
		"connections": float64(l.Connections), "connections_per_peer": float64(l.ConnectionsPerPeer),
		"streams": float64(l.Streams), "streams_per_peer": float64(l.StreamsPerPeer),
		"stream_rate": float64(l.StreamRate), "stream_rate_per_peer": float64(l.StreamRatePerPeer), "denied_rate_per_peer": maxDeniedRate,
		"pending_streams": maxPendingStreams, "pending_streams_per_peer": maxPendingStreamsPerPeer,
		"pending_time": pendingTime.Seconds(), "first_request_time": firstRequestTime.Seconds(), "send_time": sendTime.Seconds(), "answer_time": answerTime.Seconds(),
		"request_size": maxRequest, "request_bytes": maxRequestBytes, "names": maxUnknownNames,
	} {
		m.limits.WithLabelValues(name).Set(value)
	}
}
