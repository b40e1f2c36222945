package listeners

import (
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/gateway"
)

// limits are those of a service's clusters: the gateway's defaults, overridden by the service's own. The zero value
// limits nothing.
type limits struct {
	connections, pending, requests uint32 // 0: not set

	interval     gateway.Duration // 0: not set
	failures     uint32           // 0: not set
	enforcing    uint32           // 0: not set
	maxEjection  *uint32
	baseEjection *gateway.Duration
}

func limitsOf(defaults *gateway.Limits, svc *gateway.ListenerService) limits {
	var l limits
	if defaults != nil {
		l.apply(defaults)
	}
	if svc != nil {
		l.apply(&svc.Limits)
	}
	return l
}

// apply replaces limits with those that are set in over. Consul writes 0 for a limit that is not set, so a service
// cannot lift a default.
func (l *limits) apply(over *gateway.Limits) {
	apply(&l.connections, over.MaxConnections)
	apply(&l.pending, over.MaxPendingRequests)
	apply(&l.requests, over.MaxConcurrentRequests)
	check := over.PassiveHealthCheck
	if check == nil {
		return
	}
	if check.Interval != 0 {
		l.interval = check.Interval
	}
	apply(&l.failures, &check.MaxFailures)
	apply(&l.enforcing, check.EnforcingConsecutive5xx)
	if check.MaxEjectionPercent != nil {
		l.maxEjection = check.MaxEjectionPercent
	}
	if check.BaseEjectionTime != nil {
		l.baseEjection = check.BaseEjectionTime
	}
}

func apply(limit, over *uint32) {
	if over != nil && *over != 0 {
		*limit = *over
	}
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
		Consecutive_5Xx:          unlessZero(l.failures),
		EnforcingConsecutive_5Xx: unlessZero(l.enforcing),
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
