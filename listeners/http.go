package listeners

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	grpcbridgev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_http1_bridge/v3"
	grpcstatsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// httpChains makes the filter chains of an http, http2 or grpc listener: one for each service with its own
// certificate, chosen by server name, and one for all others.
func httpChains(l listenerParams, from downstreams) ([]*listenerv3.FilterChain, error) {
	var chains []*listenerv3.FilterChain
	for i := range l.port.listener.Services {
		svc := &l.port.listener.Services[i]
		if !hasOwnCertificate(svc) {
			continue
		}
		chain, err := serviceChain(l, from, svc)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", svc.Name, err)
		}
		chains = append(chains, chain)
	}
	if len(chains) >= len(l.port.services) {
		return chains, nil
	}
	socket, err := listenerSocket(l.env, l.port)
	if err != nil {
		return nil, err
	}
	chain, err := httpChain(l, from, routeName(l.port, nil), socket)
	if err != nil {
		return nil, err
	}
	chains = append(chains, chain)
	return chains, nil
}

// serviceChain makes the chain of a service with its own certificate.
func serviceChain(l listenerParams, from downstreams, svc *gateway.ListenerService) (*listenerv3.FilterChain, error) {
	if len(svc.Hosts) == 0 {
		return nil, errors.New("a service with its own certificate is chosen by Hosts; add them")
	}
	socket, err := serviceSocket(l.env, l.port, svc)
	if err != nil {
		return nil, err
	}
	chain, err := httpChain(l, from, routeName(l.port, svc), socket)
	if err != nil {
		return nil, err
	}
	chain.FilterChainMatch = &listenerv3.FilterChainMatch{ServerNames: svc.Hosts}
	return chain, nil
}

func httpChain(l listenerParams, from downstreams, route string,
	socket *corev3.TransportSocket,
) (*listenerv3.FilterChain, error) {
	filters, err := tlvFilters(l, from)
	if err != nil {
		return nil, err
	}
	manager, err := connectionManager(connectionManagerKey{
		protocol:     l.port.protocol,
		route:        route,
		fetch:        l.env.fetch,
		maxHeadersKB: l.instance.maxHeadersKB,
		client:       addressingOf(l, from, socket != nil),
		logs:         l.logs.For(from == untrustedDownstreams),
	})
	if err != nil {
		return nil, err
	}
	return &listenerv3.FilterChain{
		Name:            l.chainName(route, from),
		Filters:         append(filters, manager),
		TransportSocket: socket,
	}, nil
}

// routeName names the route configuration of a port, or that of the service svc if it has its own certificate.
func routeName(p port, svc *gateway.ListenerService) string {
	name := strconv.Itoa(p.number)
	if svc == nil || !hasOwnCertificate(svc) {
		return name
	}
	return name + "_" + displayName(gateway.ServiceName{
		Name: svc.Name, Namespace: svc.Namespace,
		Partition: svc.Partition,
	})
}

// connectionManagerKey is everything that an HTTP connection manager depends on.
type connectionManagerKey struct {
	protocol     string
	route        string
	fetch        envoy.FetchTimeout
	maxHeadersKB uint32
	client       addressing
	logs         []*accesslogv3.AccessLog
}

func connectionManager(k connectionManagerKey) (*listenerv3.Filter, error) {
	filters, err := httpFilters(k.protocol)
	if err != nil {
		return nil, err
	}
	hcm := &hcmv3.HttpConnectionManager{
		StatPrefix: "ingress_upstream_" + strings.ReplaceAll(k.route, ":", "_") + k.client.from.suffix(),
		CodecType:  hcmv3.HttpConnectionManager_AUTO,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			RouteConfigName: k.route,
			ConfigSource:    envoy.OverADS(k.fetch),
		}},
		HttpFilters: filters,
		// No trace begins here. One that the client began goes on.
		Tracing:        &hcmv3.HttpConnectionManager_Tracing{RandomSampling: &typev3.Percent{}},
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		AccessLog:      k.logs,
	}
	if k.protocol != gateway.ProtocolHTTP {
		hcm.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{}
	}
	if k.maxHeadersKB > 0 {
		hcm.MaxRequestHeadersKb = wrapperspb.UInt32(k.maxHeadersKB)
	}
	if err := k.client.apply(hcm); err != nil {
		return nil, err
	}
	return networkFilter("envoy.filters.network.http_connection_manager", hcm)
}

// httpFilters returns the HTTP filters in the order they run.
func httpFilters(protocol string) ([]*hcmv3.HttpFilter, error) {
	type named struct {
		name   string
		config envoy.Message
	}
	var wanted []named
	if protocol == gateway.ProtocolGRPC {
		stats := &grpcstatsv3.FilterConfig{PerMethodStatSpecifier: &grpcstatsv3.FilterConfig_StatsForAllMethods{
			StatsForAllMethods: wrapperspb.Bool(true),
		}}
		wanted = append(
			wanted,
			named{"envoy.filters.http.grpc_stats", stats},
			named{"envoy.filters.http.grpc_http1_bridge", &grpcbridgev3.Config{}},
		)
	}
	wanted = append(wanted, named{"envoy.filters.http.router", &routerv3.Router{}})

	var filters []*hcmv3.HttpFilter
	for _, w := range wanted {
		config, err := envoy.Pack(w.config)
		if err != nil {
			return nil, err
		}
		filters = append(filters, &hcmv3.HttpFilter{
			Name:       w.name,
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config},
		})
	}
	return filters, nil
}
