package listeners

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/accesslog"
	"github.com/usherproxy/usher/internal/envoy"
)

// Headers in Consul's config entries have operators, and some of these show what a PROXY header claims. Where untrusted
// downstreams are served, their filter chains get their own route configurations, in which no header shows a claim. A
// route configuration without such headers is for all downstreams.

// untrustedRoutesOf returns the route configurations for untrusted downstreams, each by the name of the one for all
// others.
func untrustedRoutesOf(can envoy.Capabilities, configs []*routev3.RouteConfiguration) map[string]*routev3.RouteConfiguration {
	var untrusted map[string]*routev3.RouteConfiguration
	for _, config := range configs {
		if !slices.ContainsFunc(config.VirtualHosts, func(host *routev3.VirtualHost) bool { return showsClaims(can, host) }) {
			continue
		}
		without := proto.CloneOf(config)
		// No name of routes for all downstreams begins like this: theirs begin with the port.
		without.Name = "usher-untrusted:" + config.Name
		for _, host := range without.VirtualHosts {
			for headers := range headersOf(host) {
				headers.hideClaims(can)
			}
		}
		if untrusted == nil {
			untrusted = map[string]*routev3.RouteConfiguration{}
		}
		untrusted[config.Name] = without
	}
	return untrusted
}

// showsClaims reports whether a header of a virtual host can show what a PROXY header claims.
func showsClaims(can envoy.Capabilities, host *routev3.VirtualHost) bool {
	for headers := range headersOf(host) {
		for _, option := range *headers.add {
			if accesslog.HeaderWithoutClaims(option.Header.Value, can) != option.Header.Value {
				return true
			}
		}
	}
	return false
}

// hideClaims changes headers so that they show nothing that a PROXY header claims. A header of which nothing is left is not
// added. If it would replace one, that one is removed: it would be the client's or the service's own, which must not take
// its place.
func (h placedHeaders) hideClaims(can envoy.Capabilities) {
	var left []*corev3.HeaderValueOption
	for _, option := range *h.add {
		value := accesslog.HeaderWithoutClaims(option.Header.Value, can)
		switch {
		case value != "" || value == option.Header.Value:
			option.Header.Value = value
			left = append(left, option)
		case overwrites(option) && !slices.Contains(*h.remove, option.Header.Key):
			*h.remove = append(*h.remove, option.Header.Key)
		}
	}
	*h.add = left
}

// overwrites reports whether an option replaces a header, as headerOption writes it for each release of Envoy.
func overwrites(option *corev3.HeaderValueOption) bool {
	return option.AppendAction == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD ||
		option.Append != nil && !option.Append.Value //nolint:staticcheck // Envoy before 1.24 knows no other way to overwrite.
}

// routesFor returns the name of the route configuration of the chains for some downstreams, given the name of the one
// for all others.
func (l *listenerParams) routesFor(from downstreams, name string) string {
	if own := l.untrustedRoutes[name]; from.untrusted() && own != nil {
		return own.Name
	}
	return name
}
