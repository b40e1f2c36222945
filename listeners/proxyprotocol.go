package listeners

import (
	"fmt"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

const proxyProtocolName = "envoy.filters.listener.proxy_protocol"

// proxyProtocolFilter gives the listener filter that reads PROXY headers, or nil
// when the mode is off
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/listeners/listener_filters/proxy_protocol).
//
// A listener with this filter never sets continue_on_listener_filters_timeout:
// with it, a client that stays silent until the timeout is served without a
// header, which makes a strict listener permissive.
func proxyProtocolFilter(k listenerFilterKey) (*listenerv3.ListenerFilter, error) {
	config := &proxyv3.ProxyProtocol{
		DisallowedVersions: disallowed(k.policy.Versions),
		Rules:              tlvRules(k.policy.TLVs, k.envoy),
	}
	switch k.policy.Mode {
	case settings.Off:
		return nil, nil
	case settings.Strict:
	case settings.Permissive:
		config.AllowRequestsWithoutProxyProtocol = true
	default:
		return nil, fmt.Errorf("PROXY protocol mode %q is not allowed; use off, permissive or strict", k.policy.Mode)
	}
	if k.envoy.ProxyStatPrefix {
		config.StatPrefix = envoy.StatName(k.listener)
	}
	return listenerFilter(proxyProtocolName, config)
}

// proxyVersions are the versions as Envoy has them.
var proxyVersions = []struct {
	version settings.Version
	proto   corev3.ProxyProtocolConfig_Version
}{
	{settings.V1, corev3.ProxyProtocolConfig_V1},
	{settings.V2, corev3.ProxyProtocolConfig_V2},
}

// disallowed gives the versions that are not among the allowed ones.
func disallowed(allowed []settings.Version) []corev3.ProxyProtocolConfig_Version {
	var out []corev3.ProxyProtocolConfig_Version
	for _, v := range proxyVersions {
		if !slices.Contains(allowed, v.version) {
			out = append(out, v.proto)
		}
	}
	return out
}
