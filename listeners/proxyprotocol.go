package listeners

import (
	"errors"
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/gateway"
)

const proxyProtocolName = "envoy.filters.listener.proxy_protocol"

// proxyProtocolFilter gives the listener filter that reads PROXY headers of
// version 1 and 2, or nil when the mode is off
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/listeners/listener_filters/proxy_protocol).
//
// A listener with this filter never sets continue_on_listener_filters_timeout:
// with it, a client that stays silent until the timeout is served without a
// header, which makes a strict listener permissive.
func proxyProtocolFilter(k listenerFilterKey) (*listenerv3.ListenerFilter, error) {
	config := &proxyv3.ProxyProtocol{}
	switch k.mode {
	case gateway.Off:
		return nil, nil
	case gateway.Strict:
	case gateway.Permissive:
		if !k.dialect.optionalProxy {
			return nil, errors.New("PROXY protocol mode \"permissive\" needs Envoy 1.23 or later, and this one would refuse plain connections; " +
				"upgrade Envoy, or use \"strict\" or \"off\"")
		}
		config.AllowRequestsWithoutProxyProtocol = true
	default:
		return nil, fmt.Errorf("PROXY protocol mode %q is not allowed; use off, permissive or strict", k.mode)
	}
	if k.dialect.proxyStatPrefix {
		config.StatPrefix = statName(k.listener)
	}
	return listenerFilter(proxyProtocolName, config)
}

// statName makes a name one segment of a statistic's name: Envoy separates the
// segments by dots, and finds the prefix of this filter's statistics as the one
// after proxy_proto.
func statName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_':
			return r
		}
		return '_'
	}, name)
}

// trustConnection makes an HTTP connection manager take the client's address
// from the connection, where the PROXY filter has put it, and not from the
// X-Forwarded-For of the request, which any client can write.
//
// What else Envoy does with use_remote_address is kept as close as possible to
// what it does without:
//   - preserve_external_request_id: a client's x-request-id stays.
//   - internal_address_config: no address counts as internal. Behind a balancer
//     that is not in front of the internet every client has a private address;
//     Envoy would believe such a client's x-envoy-* headers, which change
//     timeouts and retries (CVE-2024-45806). An empty list of ranges means the
//     private networks to Envoy, so the list has the one address that nobody can
//     connect from, and that the PROXY filter refuses as a source.
func trustConnection(hcm *hcmv3.HttpConnectionManager) {
	hcm.UseRemoteAddress = wrapperspb.Bool(true)
	hcm.PreserveExternalRequestId = true
	hcm.InternalAddressConfig = &hcmv3.HttpConnectionManager_InternalAddressConfig{
		CidrRanges: []*corev3.CidrRange{{AddressPrefix: "0.0.0.0", PrefixLen: wrapperspb.UInt32(32)}},
	}
}
