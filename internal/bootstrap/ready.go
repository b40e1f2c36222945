package bootstrap

import (
	"errors"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Consul's names of the ready listener and of the cluster behind it.
const (
	readyListenerName = "envoy_ready_listener"
	adminClusterName  = "self_admin"
)

// addReady adds a listener at addr that answers /ready as Envoy's admin
// interface does, and nothing else of it.
func addReady(static *bootstrapv3.Bootstrap_StaticResources, admin *corev3.Address, addr string) error {
	bind, err := socketAddress("ready", addr)
	if err != nil {
		return err
	}
	if admin.GetSocketAddress().GetPortValue() == 0 {
		return errors.New("the ready listener needs an admin address with a port of its own; give one that is not 0")
	}
	chain, err := readyFilterChain()
	if err != nil {
		return err
	}
	cluster := staticCluster(adminClusterName, admin)
	cluster.ConnectTimeout = durationpb.New(5 * time.Second)
	static.Clusters = append(static.Clusters, cluster)
	static.Listeners = append(static.Listeners, &listenerv3.Listener{
		Name:         readyListenerName,
		Address:      bind,
		FilterChains: []*listenerv3.FilterChain{chain},
	})
	return nil
}

func readyFilterChain() (*listenerv3.FilterChain, error) {
	router, err := pack(&routerv3.Router{})
	if err != nil {
		return nil, err
	}
	manager, err := pack(&hcmv3.HttpConnectionManager{
		StatPrefix:     readyListenerName,
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: readyRoutes()},
		HttpFilters: []*hcmv3.HttpFilter{{
			Name:       "envoy.filters.http.router",
			ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: router},
		}},
	})
	if err != nil {
		return nil, err
	}
	return &listenerv3.FilterChain{Filters: []*listenerv3.Filter{{
		Name:       "envoy.filters.network.http_connection_manager",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: manager},
	}}}, nil
}

func readyRoutes() *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name: readyListenerName,
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    adminClusterName,
			Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/ready"}},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{
					ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: adminClusterName},
				}},
			}},
		}},
	}
}
