package xds

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Metrics counts what a server does. No label depends on who connects. An Observer can count NACKs.
type Metrics struct {
	responses, acks, bytes, denied, limited *prometheus.CounterVec
	streams, connections, limits            *prometheus.GaugeVec
	pendingStreams, requestBytes            prometheus.Gauge
}

// NewMetrics registers the metrics, unless r is nil. Every series exists from the start, with the value zero.
func NewMetrics(r prometheus.Registerer) *Metrics {
	f := promauto.With(r)
	gauge := func(name, help, label string, values ...string) *prometheus.GaugeVec {
		g := f.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{label})
		for _, v := range values {
			g.WithLabelValues(v)
		}
		return g
	}
	counter := func(name, help, label string, values ...string) *prometheus.CounterVec {
		c := f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		for _, v := range values {
			c.WithLabelValues(v)
		}
		return c
	}
	return &Metrics{
		streams:   gauge("usher_xds_streams", "Open streams.", "protocol", delta.name, stateOfTheWorld.name),
		responses: counter("usher_xds_responses_total", "Responses sent.", "type", typeNames[:]...),
		acks:      counter("usher_xds_acks_total", "Responses that Envoy accepted (ACK).", "type", typeNames[:]...),
		bytes:     counter("usher_xds_resource_bytes_total", "Bytes of the resources sent.", "type", typeNames[:]...),
		denied: counter("usher_xds_denied_streams_total",
			"Streams that ended because their token was denied, or (unavailable) because Consul could not be asked.",
			"reason", slices.Collect(maps.Values(denialReasons))...),
		connections: gauge("usher_xds_connections",
			"Open connections. A connection is pending while none of its streams is authorized.", "state", "pending", "authorized"),
		pendingStreams: f.NewGauge(prometheus.GaugeOpts{
			Name: "usher_xds_pending_streams", Help: "Open streams that are not authorized yet.",
		}),
		requestBytes: f.NewGauge(prometheus.GaugeOpts{
			Name: "usher_xds_request_bytes", Help: "Bytes of requests that have arrived and are not handled yet.",
		}),
		limited: counter("usher_xds_limited_total",
			"Connections, streams and requests that were refused or ended because a limit was reached. usher_xds_limit has the limits, SECURITY.md what they mean.",
			"limit", slices.Collect(maps.Keys(limitValues(Limits{})))...),
		limits: gauge("usher_xds_limit",
			"Limits for callers. The unit is a number, a number per second (rates), bytes, or seconds (times).", "limit"),
	}
}

// denialReasons are the labels of the status codes that end a stream. Unavailable stands for all others.
var denialReasons = map[codes.Code]string{
	codes.PermissionDenied: "permission_denied",
	codes.Unauthenticated:  "unauthenticated",
	codes.InvalidArgument:  "invalid_argument",
	codes.Unavailable:      "unavailable",
}

// countDenial counts a stream that an Authorizer's error ends. It reports whether asking again is no use.
func (m *Metrics) countDenial(err error) (denied bool) {
	code := status.Code(err)
	if denialReasons[code] == "" {
		code = codes.Unavailable
	}
	m.denied.WithLabelValues(denialReasons[code]).Inc()
	return code != codes.Unavailable
}

// limitValues returns the limits by their labels.
func limitValues(l Limits) map[string]float64 {
	return map[string]float64{
		"connections":              float64(l.Connections),
		"connections_per_peer":     float64(l.ConnectionsPerPeer),
		"streams":                  float64(l.Streams),
		"streams_per_peer":         float64(l.StreamsPerPeer),
		"stream_rate":              float64(l.StreamRate),
		"stream_rate_per_peer":     float64(l.StreamRatePerPeer),
		"denied_rate_per_peer":     maxDeniedRate,
		"pending_streams":          maxPendingStreams,
		"pending_streams_per_peer": maxPendingStreamsPerPeer,
		"pending_time":             pendingTime.Seconds(),
		"first_request_time":       firstRequestTime.Seconds(),
		"send_time":                sendTime.Seconds(),
		"answer_time":              answerTime.Seconds(),
		"request_size":             maxRequest,
		"request_bytes":            maxRequestBytes,
		"names":                    maxUnknownNames,
	}
}
