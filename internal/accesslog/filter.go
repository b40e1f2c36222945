package accesslog

import (
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

type logFilter = *accesslogv3.AccessLogFilter

// entryFilter says which entries of a chain for some peers are logged; nil: all
// of them.
func (k Params) entryFilter(untrusted bool) (logFilter, error) {
	wanted, err := k.wanted()
	if err != nil {
		return nil, err
	}
	checks, err := k.noHealthCheck(untrusted)
	if err != nil {
		return nil, err
	}
	return allOf(wanted, k.sampled(), checks), nil
}

// wanted selects what has any one of the things that the policy asks for.
func (k Params) wanted() (logFilter, error) {
	p := k.Settings
	var any []logFilter
	if p.StatusAtLeast != settings.AnyStatus {
		any = append(any, statusAtLeast(p.StatusAtLeast))
	}
	if p.DurationAtLeast != settings.AnyDuration {
		any = append(any, &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_DurationFilter{
			DurationFilter: &accesslogv3.DurationFilter{Comparison: atLeast("duration_at_least", uint32(p.DurationAtLeast.Milliseconds()))},
		}})
	}
	if len(p.ResponseFlags) > 0 {
		any = append(any, flagged(p.ResponseFlags...))
	}
	if p.RequestHeader.Name != settings.AnyHeader {
		any = append(any, withHeader(p.RequestHeader))
	}
	if p.Expression != settings.AnyExpression {
		if !k.Envoy.Expressions {
			return nil, envoy.Requires("access_log.expression", "this one has no expressions", "1.32", `use "any"`)
		}
		if err := checkExpression(p.Expression); err != nil {
			return nil, err
		}
		matches, err := expressionFilter(p.Expression)
		if err != nil {
			return nil, err
		}
		any = append(any, matches)
	}
	return anyOf(any...), nil
}

// sampled selects a share by chance, and every error.
func (k Params) sampled() logFilter {
	if k.Settings.SamplePerMille == settings.SampleAll {
		return nil
	}
	return anyOf(statusAtLeast(500), flagged(), chance("sample_per_mille", int(k.Settings.SamplePerMille)))
}

// omitsHealthChecks says whether a chain's connections with which a balancer
// looks for the gateway are left out. It needs directAddressState to be set.
func (k Params) omitsHealthChecks(untrusted bool) bool {
	omit := k.Settings.HealthChecks == settings.HealthChecksOmit || k.Settings.HealthChecks == settings.HealthChecksDefault && k.ProxyProtocol
	return omit && !k.HTTP && !untrusted && k.Envoy.Expressions
}

// noHealthCheck selects all connections but those that name no client and send
// nothing. A header with the command LOCAL leaves the address of whoever
// connected.
func (k Params) noHealthCheck(untrusted bool) (logFilter, error) {
	if !k.omitsHealthChecks(untrusted) {
		return nil, nil
	}
	return expressionFilter("!(request.size == 0 && bytes(source.address) == filter_state['" + envoy.DirectAddressState + "'])")
}

// runtimeKey names a value that Envoy lets be overridden at run time, as it
// must.
func runtimeKey(setting string) string { return "usher.access_log." + setting }

func atLeast(setting string, value uint32) *accesslogv3.ComparisonFilter {
	return &accesslogv3.ComparisonFilter{
		Op:    accesslogv3.ComparisonFilter_GE,
		Value: &corev3.RuntimeUInt32{DefaultValue: value, RuntimeKey: runtimeKey(setting)},
	}
}

func statusAtLeast(status int) logFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: atLeast("status_at_least", uint32(status))},
	}}
}

// flagged selects what has one of the response flags; of none, any flag.
func flagged(flags ...string) logFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: flags},
	}}
}

func withHeader(h settings.HeaderFilter) logFilter {
	matcher := &routev3.HeaderMatcher{Name: h.Name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	if h.Value != "" {
		matcher.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{
			StringMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: h.Value}},
		}
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_HeaderFilter{
		HeaderFilter: &accesslogv3.HeaderFilter{Header: matcher},
	}}
}

// chance selects some of a thousand. It does not look at the request's id, which
// the client can choose.
func chance(setting string, perMille int) logFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_RuntimeFilter{
		RuntimeFilter: &accesslogv3.RuntimeFilter{
			RuntimeKey:               runtimeKey(setting),
			PercentSampled:           &typev3.FractionalPercent{Numerator: uint32(perMille) * 10, Denominator: typev3.FractionalPercent_TEN_THOUSAND},
			UseIndependentRandomness: true,
		},
	}}
}

// expressionFilter selects what an expression is true for.
func expressionFilter(expression string) (logFilter, error) {
	config, err := envoy.Pack(&celv3.ExpressionFilter{Expression: expression})
	if err != nil {
		return nil, err
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
		ExtensionFilter: &accesslogv3.ExtensionFilter{
			Name:       "envoy.access_loggers.extension_filters.cel",
			ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: config},
		},
	}}, nil
}

// allOf selects what all filters do; those that are nil select everything.
func allOf(filters ...logFilter) logFilter {
	filters = withoutNil(filters)
	switch len(filters) {
	case 0:
		return nil
	case 1:
		return filters[0]
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{AndFilter: &accesslogv3.AndFilter{Filters: filters}}}
}

// anyOf selects what any of the filters does; of none, everything.
func anyOf(filters ...logFilter) logFilter {
	switch len(filters) {
	case 0:
		return nil
	case 1:
		return filters[0]
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{OrFilter: &accesslogv3.OrFilter{Filters: filters}}}
}

func withoutNil(filters []logFilter) []logFilter {
	var out []logFilter
	for _, f := range filters {
		if f != nil {
			out = append(out, f)
		}
	}
	return out
}

// rejections are the kinds of connections that were closed before they could ask
// for anything, each with its reason. Envoy says it in one way or another, but
// not in words.
func (k Params) rejections(s sink, limit logFilter) ([]logEntry, error) {
	share := k.Settings.Rejected
	if share == settings.SampleNone || share == settings.SampleDefault && s.byConsul && k.Consul.DisableListenerLogs {
		return nil, nil
	}
	var some logFilter
	if share > 0 && share < settings.SampleAll {
		some = chance("rejected", int(share))
	}
	var all []logEntry
	add := func(name, reason string, believed bool, filter logFilter) {
		format := s.format
		if k.explains() {
			format = format.rejected(reason)
		}
		if !believed {
			format = withoutClaims(format, k.Envoy)
		}
		all = append(all, logEntry{name: name, format: format, filter: allOf(filter, some, limit)})
	}
	add(s.names.noChain, k.noChainReason(), !k.HasUntrusted, flagged("NR"))
	if !k.Envoy.Expressions {
		return all, nil
	}
	if k.ProxyProtocol && (k.Strict || k.Settings.HealthChecks != settings.HealthChecksOmit) {
		filter, err := expressionFilter("xds.filter_chain_name == '' && response.flags == 0")
		if err != nil {
			return nil, err
		}
		add(s.names.rejected, k.noHeaderReason(), false, filter)
	}
	if k.TLS && k.explains() {
		filter, err := expressionFilter("connection.transport_failure_reason != '' && response.flags == 0")
		if err != nil {
			return nil, err
		}
		add(s.names.rejected, "the TLS handshake failed: "+tlsFailure, !k.HasUntrusted, filter)
	}
	return all, nil
}

// tlsFailure says in Envoy's words why a TLS handshake failed.
const tlsFailure = "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"

// explains says whether reasons are told. They are not where the log is
// Consul's alone.
func (k Params) explains() bool {
	return k.ProxyProtocol || k.Settings.IsCustom() || k.Settings.Rejected != settings.SampleDefault
}

// noChainReason says why Envoy had no filter chain for a connection.
func (k Params) noChainReason() string {
	var reasons []string
	if k.HasUntrusted && k.Strict {
		reasons = append(reasons, "the peer is not in trusted_cidrs")
	}
	if k.MatchesSNI {
		reasons = append(reasons, "no service has a certificate for the server name")
	}
	if len(reasons) == 0 {
		return "nothing is served for such connections"
	}
	return strings.Join(reasons, ", or ")
}

// noHeaderReason says why the PROXY filter, or the client itself, has ended a
// connection before a filter chain was found. Envoy does not tell which.
func (k Params) noHeaderReason() string {
	reason := "the PROXY header is broken, or the client has sent nothing"
	if k.Strict {
		reason = "there was no PROXY header, or none that is allowed here"
	}
	if k.TLSInspector {
		reason += ", or no TLS handshake"
	}
	return reason
}
