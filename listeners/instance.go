package listeners

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

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

// fetchTimeout is how long Envoy waits for a resource that another one refers
// to. The zero value leaves Envoy's default.
type fetchTimeout struct {
	set  bool
	span time.Duration
}

// fetchTimeoutOf reads xds_fetch_timeout_ms; Consul ignores a negative one.
func fetchTimeoutOf(in *gateway.Instance) fetchTimeout {
	if t := in.Config.FetchTimeout; t != nil && *t >= 0 {
		return fetchTimeout{set: true, span: *t}
	}
	return fetchTimeout{}
}

func (t fetchTimeout) proto() *durationpb.Duration {
	if !t.set {
		return nil
	}
	return durationpb.New(t.span)
}
