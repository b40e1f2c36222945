package listeners

import (
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

// listenerFilterKey is everything that a listener's filters follow from.
type listenerFilterKey struct {
	listener string // its name
	policy   settings.ProxyProtocol
	looks    bool // for the server name
	envoy    envoy.Capabilities
}

// listenerFilters gives the listener filters of any listener, http or tcp, in
// the order they run. The PROXY header is the first thing on the wire, before
// the client's TLS handshake, so its filter comes first: behind tls_inspector it
// would never see a header.
func listenerFilters(k listenerFilterKey) ([]*listenerv3.ListenerFilter, error) {
	var filters []*listenerv3.ListenerFilter
	proxy, err := proxyProtocolFilter(k)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		filters = append(filters, proxy)
	}
	if k.looks {
		inspector, err := listenerFilter("envoy.filters.listener.tls_inspector", &tlsinspectorv3.TlsInspector{})
		if err != nil {
			return nil, err
		}
		filters = append(filters, inspector)
	}
	return filters, nil
}

func listenerFilter(name string, config envoy.Message) (*listenerv3.ListenerFilter, error) {
	packed, err := envoy.Pack(config)
	if err != nil {
		return nil, err
	}
	return &listenerv3.ListenerFilter{
		Name:       name,
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: packed},
	}, nil
}

func networkFilter(name string, config envoy.Message) (*listenerv3.Filter, error) {
	packed, err := envoy.Pack(config)
	if err != nil {
		return nil, err
	}
	return &listenerv3.Filter{
		Name:       name,
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed},
	}, nil
}
