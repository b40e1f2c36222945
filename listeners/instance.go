package listeners

import (
	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// instance is what of one instance of a gateway goes into its listeners.
type instance struct {
	registered   *gateway.Instance
	addresses    []string // bound by each listener, without duplicates
	maxHeadersKB uint32   // 0: Envoy's default
}

func instanceOf(s *gateway.Snapshot, in *gateway.Instance) instance {
	return instance{
		registered:   in,
		addresses:    addressesOf(in, s.DualStack),
		maxHeadersKB: in.Config.MaxRequestHeadersKB,
	}
}

// fetchTimeoutOf reads xds_fetch_timeout_ms; Consul ignores a negative one.
func fetchTimeoutOf(in *gateway.Instance) envoy.FetchTimeout {
	if t := in.Config.FetchTimeout; t != nil && *t >= 0 {
		return envoy.FetchTimeout{IsSet: true, Duration: *t}
	}
	return envoy.FetchTimeout{}
}
