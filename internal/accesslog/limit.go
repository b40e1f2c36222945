package accesslog

import (
	"fmt"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	processratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/process_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// logLimit selects so many entries a second, and drops those beyond. It comes
// last in a filter: what it is asked of counts. The zero value selects all.
//
// A listener waits for its bucket for ever, whatever the timeout of the source
// says (tried on 1.40): wherever the one goes, the other has to go, too.
type logLimit struct {
	filter  logFilter
	buckets map[string]*typev3.TokenBucket
}

// where names the place that entries go to.
func (s sink) where() string {
	switch {
	case s.Address.Port != 0:
		return collectorKey{address: s.Address, tls: s.TLS}.name()
	case s.Path != "":
		return s.Path
	}
	return string(s.Type)
}

// limitOf limits the entries of rejected connections in a sink. All listeners
// of an Envoy whose sinks are the same share it. An Envoy that has no limits for
// logs goes without.
func (k Params) limitOf(s sink) (logLimit, error) {
	n := k.Settings.RejectedPerSecond
	if n == settings.NoRateLimit || !k.explains() || !k.Envoy.LogRateLimit {
		return logLimit{}, nil
	}
	name := fmt.Sprintf("usher-rejected-%d:%s", n, s.where())
	config, err := envoy.Pack(&processratelimitv3.ProcessRateLimitFilter{DynamicConfig: &processratelimitv3.DynamicTokenBucket{
		ResourceName: name, ConfigSource: envoy.OverADS(envoy.FetchTimeout{}),
	}})
	if err != nil {
		return logLimit{}, err
	}
	return logLimit{
		filter: &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
			ExtensionFilter: &accesslogv3.ExtensionFilter{
				Name:       "envoy.access_loggers.extension_filters.process_ratelimit",
				ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: config},
			},
		}},
		buckets: map[string]*typev3.TokenBucket{name: {
			MaxTokens: uint32(n), TokensPerFill: wrapperspb.UInt32(uint32(n)), FillInterval: durationpb.New(time.Second),
		}},
	}, nil
}
