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
	}
	m.streams.WithLabelValues("delta")
	m.streams.WithLabelValues("sotw")
	if r != nil {
		r.MustRegister(m.streams, m.responses, m.acks, m.nacks, m.bytes, m.denied)
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
