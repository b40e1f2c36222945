package listeners

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

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
		if !hasOwnCertificate(*svc) {
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
	socket, err := listenerSocket(l.input, l.port)
	if err != nil {
		return nil, err
	}
	chain, err := httpChain(l, from, routeName(l.port, nil), socket)
	return append(chains, chain), err
}

// serviceChain makes the chain of a service with its own certificate.
func serviceChain(l listenerParams, from downstreams, svc *gateway.ListenerService) (*listenerv3.FilterChain, error) {
	if len(svc.Hosts) == 0 {
		return nil, errors.New("a service with its own certificate is chosen by Hosts; add them")
	}
	socket, err := serviceSocket(l.input, l.port, svc)
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

func httpChain(l listenerParams, from downstreams, route string, socket *corev3.TransportSocket,
) (*listenerv3.FilterChain, error) {
	filters, err := tlvFilters(l, from, socket != nil)
	if err != nil {
		return nil, err
	}
	manager, err := connectionManager(l, from, route, socket != nil)
	if err != nil {
		return nil, err
	}
	filters = append(filters, manager)
	return &listenerv3.FilterChain{Name: l.chainName(route, from), Filters: filters, TransportSocket: socket}, nil
}

// routeName names the route configuration of a port, or that of the service svc if it has its own certificate.
func routeName(p port, svc *gateway.ListenerService) string {
	name := strconv.Itoa(p.number)
	if svc == nil || !hasOwnCertificate(*svc) {
		return name
	}
	return name + "_" + displayName(gateway.ServiceName{Name: svc.Name, Namespace: svc.Namespace, Partition: svc.Partition})
}

func connectionManager(l listenerParams, from downstreams, route string, tls bool) (*listenerv3.Filter, error) {
	filters, err := httpFilters(l.port.protocol)
	if err != nil {
		return nil, err
	}
	hcm := &hcmv3.HttpConnectionManager{
		StatPrefix: "ingress_upstream_" + strings.ReplaceAll(route, ":", "_") + from.suffix(),
		CodecType:  hcmv3.HttpConnectionManager_AUTO,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			RouteConfigName: l.routesFor(from, route),
			ConfigSource:    envoy.OverADS(l.input.fetchTimeout),
		}},
		HttpFilters: filters,
		// No trace begins here. One that the client began goes on.
		Tracing:             &hcmv3.HttpConnectionManager_Tracing{RandomSampling: &typev3.Percent{}},
		UpgradeConfigs:      []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket"}},
		AccessLog:           l.logs.For(from.untrusted()),
		MaxRequestHeadersKb: unlessZero(l.instance.registered.Config.MaxRequestHeadersKB), // by default Envoy's
	}
	if l.input.snapshot.NormalizePath {
		hcm.NormalizePath = wrapperspb.Bool(true)
	}
	if l.port.protocol != gateway.ProtocolHTTP {
		hcm.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{}
	}
	headers, err := l.setClientAddress(hcm, from, tls)
	if err != nil {
		return nil, err
	}
	if err := mutateHeadersEarly(hcm, slices.Concat(headers, l.forwardedPort(from))); err != nil {
		return nil, err
	}
	return networkFilter("envoy.filters.network.http_connection_manager", hcm)
}

// httpFilters returns the HTTP filters in the order they run.
func httpFilters(protocol string) ([]*hcmv3.HttpFilter, error) {
	var filters []*hcmv3.HttpFilter
	var problems []error
	add := func(name string, config envoy.Message) {
		filter, err := envoy.Extension(&hcmv3.HttpFilter{}, "envoy.filters.http."+name, config)
		filters, problems = append(filters, filter), append(problems, err)
	}
	if protocol == gateway.ProtocolGRPC {
		forAll := &grpcstatsv3.FilterConfig_StatsForAllMethods{StatsForAllMethods: wrapperspb.Bool(true)}
		add("grpc_stats", &grpcstatsv3.FilterConfig{PerMethodStatSpecifier: forAll})
		add("grpc_http1_bridge", &grpcbridgev3.Config{})
	}
	add("router", &routerv3.Router{})
	return filters, errors.Join(problems...)
}
