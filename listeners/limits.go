package listeners

import (
	"cmp"
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/gateway"
)

// limits are those of a service's clusters: the gateway's defaults, overridden by the service's own. A zero is not
// set.
type limits struct {
	connections, pending, requests uint32

	interval      gateway.Duration
	any5xx        ejection
	gatewayErrors ejection // 502, 503 and 504
	maxEjection   *uint32
	baseEjection  *gateway.Duration
}

// ejection is after how many consecutive failures an instance is ejected, and in how many percent of these cases.
type ejection struct{ failures, percent uint32 }

// limitsOf returns the limits of a service. Consul writes 0 for a limit that is not set, so a service cannot lift a
// default.
func limitsOf(defaults *gateway.Limits, service gateway.Limits) limits {
	var l limits
	if defaults != nil {
		l.override(*defaults)
	}
	l.override(service)
	return l
}

// override replaces the limits that are set in other.
func (l *limits) override(other gateway.Limits) {
	l.connections = cmp.Or(orZero(other.MaxConnections), l.connections)
	l.pending = cmp.Or(orZero(other.MaxPendingRequests), l.pending)
	l.requests = cmp.Or(orZero(other.MaxConcurrentRequests), l.requests)
	if check := other.PassiveHealthCheck; check != nil {
		l.interval = cmp.Or(check.Interval, l.interval)
		l.any5xx.override(cmp.Or(orZero(check.Consecutive5xx), check.MaxFailures), check.EnforcingConsecutive5xx)
		l.gatewayErrors.override(orZero(check.ConsecutiveGatewayFailure), check.EnforcingConsecutiveGatewayFailure)
		l.maxEjection = cmp.Or(check.MaxEjectionPercent, l.maxEjection)
		l.baseEjection = cmp.Or(check.BaseEjectionTime, l.baseEjection)
	}
}

func (e *ejection) override(failures uint32, percent *uint32) {
	e.failures = cmp.Or(failures, e.failures)
	e.percent = cmp.Or(orZero(percent), e.percent)
}

func orZero(n *uint32) uint32 {
	if n == nil {
		return 0
	}
	return *n
}

func (l limits) thresholds() []*clusterv3.CircuitBreakers_Thresholds {
	if l.connections == 0 && l.pending == 0 && l.requests == 0 {
		return nil
	}
	return []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     unlessZero(l.connections),
		MaxPendingRequests: unlessZero(l.pending),
		MaxRequests:        unlessZero(l.requests),
	}}
}

// outlierDetection is there even without any setting: Envoy then ejects by its own defaults, as it does with Consul.
func (l limits) outlierDetection() *clusterv3.OutlierDetection {
	o := &clusterv3.OutlierDetection{
		Consecutive_5Xx:                    unlessZero(l.any5xx.failures),
		EnforcingConsecutive_5Xx:           unlessZero(l.any5xx.percent),
		ConsecutiveGatewayFailure:          unlessZero(l.gatewayErrors.failures),
		EnforcingConsecutiveGatewayFailure: unlessZero(l.gatewayErrors.percent),
	}
	if l.interval != 0 {
		o.Interval = durationpb.New(time.Duration(l.interval))
	}
	if l.maxEjection != nil {
		o.MaxEjectionPercent = wrapperspb.UInt32(*l.maxEjection)
	}
	if l.baseEjection != nil {
		o.BaseEjectionTime = durationpb.New(time.Duration(*l.baseEjection))
	}
	return o
}

func unlessZero(n uint32) *wrapperspb.UInt32Value {
	if n == 0 {
		return nil
	}
	return wrapperspb.UInt32(n)
}

// unlimited lifts Envoy's own limits of a cluster.
func unlimited() *clusterv3.CircuitBreakers {
	all := wrapperspb.UInt32(math.MaxUint32)
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections: all, MaxPendingRequests: all, MaxRequests: all, MaxRetries: all,
	}}}
}
