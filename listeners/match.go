package listeners

import (
	"errors"
	"fmt"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// matchAll matches every request.
func matchAll() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// routeMatch translates which requests a route takes
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/service-router#routes-match). A condition that
// is not understood is an error: without it the route would take requests that are meant for others.
func routeMatch(can envoy.Capabilities, m *gateway.RouteMatch) (*routev3.RouteMatch, error) {
	out := matchAll()
	if m == nil || m.HTTP == nil {
		return out, nil
	}
	h := m.HTTP
	switch {
	case h.PathExact != "":
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: h.PathExact}
	case h.PathPrefix != "":
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: h.PathPrefix}
	case h.PathRegex != "":
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: regex(can, h.PathRegex)}
	}
	if h.CaseInsensitive {
		out.CaseSensitive = wrapperspb.Bool(false)
	}
	for _, header := range h.Header {
		matcher, err := headerMatch(can, header)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", header.Name, err)
		}
		out.Headers = append(out.Headers, matcher)
	}
	if len(h.Methods) > 0 {
		methods := matchRegex(can, strings.Join(h.Methods, "|"))
		out.Headers = append(out.Headers, &routev3.HeaderMatcher{
			Name: ":method", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: methods},
		})
	}
	for _, param := range h.QueryParam {
		matcher, err := queryMatch(can, param)
		if err != nil {
			return nil, fmt.Errorf("query parameter %q: %w", param.Name, err)
		}
		out.QueryParameters = append(out.QueryParameters, matcher)
	}
	return out, nil
}

func headerMatch(can envoy.Capabilities, h gateway.HeaderMatch) (*routev3.HeaderMatcher, error) {
	out := &routev3.HeaderMatcher{Name: h.Name, InvertMatch: h.Invert}
	var pattern *matcherv3.StringMatcher
	switch {
	case h.Exact != "":
		pattern = envoy.Exactly(h.Exact)
	case h.Regex != "":
		pattern = matchRegex(can, h.Regex)
	case h.Prefix != "":
		pattern = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: h.Prefix}}
	case h.Suffix != "":
		pattern = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: h.Suffix}}
	case h.Present:
		out.HeaderMatchSpecifier = &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}
		return out, nil
	default:
		return nil, errors.New("it has no match type that Usher knows; use Exact, Regex, Prefix, Suffix or Present")
	}
	out.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: pattern}
	return out, nil
}

func queryMatch(can envoy.Capabilities, q gateway.QueryMatch) (*routev3.QueryParameterMatcher, error) {
	out := &routev3.QueryParameterMatcher{Name: q.Name}
	switch {
	case q.Exact != "":
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: envoy.Exactly(q.Exact)}
	case q.Regex != "":
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_StringMatch{StringMatch: matchRegex(can, q.Regex)}
	case q.Present:
		out.QueryParameterMatchSpecifier = &routev3.QueryParameterMatcher_PresentMatch{PresentMatch: true}
	default:
		return nil, errors.New("it has no match type that Usher knows; use Exact, Regex or Present")
	}
	return out, nil
}

func matchRegex(can envoy.Capabilities, pattern string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: regex(can, pattern)}}
}

func regex(can envoy.Capabilities, pattern string) *matcherv3.RegexMatcher {
	out := &matcherv3.RegexMatcher{Regex: pattern}
	if !can.DefaultRegexEngine {
		out.EngineType = &matcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &matcherv3.RegexMatcher_GoogleRE2{}} //nolint:staticcheck // for the Envoys that need it
	}
	return out
}
