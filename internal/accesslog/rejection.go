package accesslog

import (
	"fmt"
	"strings"
	"time"

	processratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/process_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// rejections are the log entries of connections that end before they can send a request, each with its reason. Envoy
// has flags and statistics for them, but no words.
func (p Params) rejections(s sink, limit logFilter) ([]logEntry, error) {
	share := p.Settings.Rejected
	if share == settings.SampleNone || share == settings.SampleDefault && s.byConsul && p.Consul.DisableListenerLogs {
		return nil, nil
	}
	var some logFilter
	if share > 0 && share < settings.SampleAll {
		some = chance("rejected", int(share))
	}
	var all []logEntry
	add := func(name, reason string, trusted bool, filter logFilter) {
		format := s.format
		if p.logsReasons() {
			format = format.rejected(reason)
		}
		if !trusted {
			format = withoutClaims(format, p.Envoy)
		}
		all = append(all, logEntry{name: name, format: format, filter: allOf(filter, some, limit)})
	}
	add(s.names.noChain, p.noChainReason(), !p.HasUntrusted, flagged("NR"))
	if !p.Envoy.Expressions {
		return all, nil
	}
	if p.ProxyProtocol && (p.Strict || p.Settings.HealthChecks != settings.HealthChecksOmit) {
		filter, err := expressionFilter("xds.filter_chain_name == '' && response.flags == 0")
		if err != nil {
			return nil, err
		}
		add(s.names.rejected, p.noHeaderReason(), false, filter)
	}
	if p.TLS && p.logsReasons() {
		filter, err := expressionFilter("connection.transport_failure_reason != '' && response.flags == 0")
		if err != nil {
			return nil, err
		}
		add(s.names.rejected, "the TLS handshake failed: "+tlsFailure, !p.HasUntrusted, filter)
	}
	return all, nil
}

// tlsFailure is Envoy's reason why a TLS handshake failed.
const tlsFailure = "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"

// logsReasons reports whether rejected connections are logged with their reasons. They are not if the log is
// Consul's alone.
func (p Params) logsReasons() bool {
	return p.ProxyProtocol || p.Settings.IsCustom() || p.Settings.Rejected != settings.SampleDefault
}

// noChainReason is why Envoy has no filter chain for a connection.
func (p Params) noChainReason() string {
	var reasons []string
	if p.HasUntrusted && p.Strict {
		reasons = append(reasons, "the peer is not in trusted_cidrs")
	}
	if p.MatchesSNI {
		reasons = append(reasons, "no service has a certificate for the server name")
	}
	if len(reasons) == 0 {
		return "nothing is served for such connections"
	}
	return strings.Join(reasons, ", or ")
}

// noHeaderReason is why the PROXY filter, or the client itself, ends a connection before a filter chain is found.
// Envoy's log does not distinguish these.
func (p Params) noHeaderReason() string {
	reason := "the PROXY header is broken, or the client has sent nothing"
	if p.Strict {
		reason = "there was no PROXY header, or none that is allowed here"
	}
	if p.TLSInspector {
		reason += ", or no TLS handshake"
	}
	return reason
}

// rateLimit selects so many log entries of rejected connections in a sink a second, with a token bucket. All
// listeners of an Envoy with the same sink share the limit. An Envoy that is too old has none. The filter comes
// last, because every log entry that it is asked about counts.
//
// A listener waits forever for its token bucket, whatever the timeout of the source (tried on 1.40): a listener must
// never be sent without the bucket that it names.
func (p Params) rateLimit(s sink) (logFilter, map[string]*typev3.TokenBucket, error) {
	n := p.Settings.RejectedPerSecond
	if n == settings.NoRateLimit || !p.logsReasons() || !p.Envoy.LogRateLimit {
		return nil, nil, nil
	}
	return tokenBucket(fmt.Sprintf("usher-rejected-%d:%s", n, s.destination()), n)
}

// tokenBucket returns a filter that selects so many log entries a second, and the bucket that it names.
func tokenBucket(name string, perSecond int) (logFilter, map[string]*typev3.TokenBucket, error) {
	reference := &processratelimitv3.DynamicTokenBucket{ResourceName: name, ConfigSource: envoy.OverADS(envoy.FetchTimeout{})}
	filter, err := extensionFilter("process_ratelimit", &processratelimitv3.ProcessRateLimitFilter{DynamicConfig: reference})
	return filter, map[string]*typev3.TokenBucket{name: {
		MaxTokens: uint32(perSecond), TokensPerFill: wrapperspb.UInt32(uint32(perSecond)), FillInterval: durationpb.New(time.Second),
	}}, err
}

// destination names the place that log entries go to.
func (s sink) destination() string {
	switch {
	case s.Address.Port != 0:
		return collectorName(s.Sink)
	case s.Path != "":
		return s.Path
	}
	return string(s.Type)
}
