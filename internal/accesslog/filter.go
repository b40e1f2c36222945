package accesslog

import (
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

type logFilter = *accesslogv3.AccessLogFilter

// choosesByClaims reports whether the expression reads what a PROXY header can claim. For untrusted downstreams it then
// does not count, and all their log entries are selected: none can keep itself out of the log.
func (p Params) choosesByClaims() bool {
	_, ok := operator{name: "CEL", params: p.Settings.Expression}.withoutClaim(p.Envoy)
	return !ok
}

// selected selects log entries that meet any of the conditions in the settings.
func (p Params) selected() (logFilter, error) {
	s := p.Settings
	var conditions []logFilter
	if s.StatusAtLeast != settings.AnyStatus {
		conditions = append(conditions, statusAtLeast(s.StatusAtLeast))
	}
	if s.DurationAtLeast != settings.AnyDuration {
		conditions = append(conditions, &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_DurationFilter{
			DurationFilter: &accesslogv3.DurationFilter{
				Comparison: atLeast("duration_at_least", uint32(s.DurationAtLeast.Milliseconds())),
			},
		}})
	}
	if len(s.ResponseFlags) > 0 {
		conditions = append(conditions, flagged(s.ResponseFlags...))
	}
	if s.RequestHeader.Name != settings.AnyHeader {
		conditions = append(conditions, withHeader(s.RequestHeader))
	}
	if s.Expression != settings.AnyExpression {
		if !p.Envoy.Expressions {
			return nil, tooOldError{refuse("expression", `it uses CEL, which needs Envoy 1.32 or later; upgrade Envoy, or use "any"`)}
		}
		if err := checkExpression(s.Expression); err != nil {
			return nil, refuse("expression", err.Error())
		}
		matches, err := expressionFilter(s.Expression)
		if err != nil {
			return nil, err
		}
		conditions = append(conditions, matches)
	}
	return anyOf(conditions...), nil
}

// sampled selects a random share, and every error.
func (p Params) sampled() logFilter {
	if p.Settings.SamplePerMille == settings.SampleAll {
		return nil
	}
	return anyOf(statusAtLeast(500), flagged(), chance("sample_per_mille", int(p.Settings.SamplePerMille)))
}

// omitsHealthChecks reports whether the health checks of a load balancer are left out. This needs
// envoy.DirectAddressState.
func (p Params) omitsHealthChecks() bool {
	omit := p.Settings.HealthChecks == settings.HealthChecksOmit ||
		p.Settings.HealthChecks == settings.HealthChecksDefault && p.ProxyProtocol
	return omit && !p.HTTP && p.Envoy.Expressions
}

// noHealthCheck selects all connections but those that name no client and send nothing. A header with the command
// LOCAL leaves the downstream's address as it is.
func (p Params) noHealthCheck() (logFilter, error) {
	if !p.omitsHealthChecks() {
		return nil, nil
	}
	const state = "filter_state['" + envoy.DirectAddressState + "']"
	return expressionFilter("!(request.size == 0 && bytes(source.address) == " + state + ")")
}

// runtimeKey names a value that Envoy requires to be overridable at run time.
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

// flagged selects log entries with one of the response flags; without any, with any flag.
func flagged(flags ...string) logFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: flags},
	}}
}

func withHeader(h settings.HeaderFilter) logFilter {
	matcher := &routev3.HeaderMatcher{Name: h.Name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	if h.Value != "" {
		matcher.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: envoy.Exactly(h.Value)}
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_HeaderFilter{
		HeaderFilter: &accesslogv3.HeaderFilter{Header: matcher},
	}}
}

// chance selects some of a thousand, whatever the request's id, which the client can choose.
func chance(setting string, perMille int) logFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_RuntimeFilter{
		RuntimeFilter: &accesslogv3.RuntimeFilter{
			RuntimeKey: runtimeKey(setting),
			PercentSampled: &typev3.FractionalPercent{
				Numerator:   uint32(perMille) * 10,
				Denominator: typev3.FractionalPercent_TEN_THOUSAND,
			},
			UseIndependentRandomness: true,
		},
	}}
}

// expressionFilter selects log entries for which an expression is true.
func expressionFilter(expression string) (logFilter, error) {
	return extensionFilter("cel", &celv3.ExpressionFilter{Expression: expression})
}

func extensionFilter(name string, m envoy.Message) (logFilter, error) {
	extension, err := envoy.Extension(&accesslogv3.ExtensionFilter{}, "envoy.access_loggers.extension_filters."+name, m)
	return &accesslogv3.AccessLogFilter{
		FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{ExtensionFilter: extension},
	}, err
}

// allOf selects what all filters do; those that are nil select everything.
func allOf(filters ...logFilter) logFilter {
	filters = slices.DeleteFunc(filters, func(f logFilter) bool { return f == nil })
	switch len(filters) {
	case 0:
		return nil
	case 1:
		return filters[0]
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{
		AndFilter: &accesslogv3.AndFilter{Filters: filters},
	}}
}

// anyOf selects what any of the filters does; without any, everything.
func anyOf(filters ...logFilter) logFilter {
	switch len(filters) {
	case 0:
		return nil
	case 1:
		return filters[0]
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_OrFilter{
		OrFilter: &accesslogv3.OrFilter{Filters: filters},
	}}
}
