package listeners

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// routesOf makes the route configurations of an http, http2 or grpc port: one named after the port, and one for each
// service with its own certificate. One without services is left out.
func routesOf(env environment, p port) ([]*routev3.RouteConfiguration, error) {
	domains, err := domainsOf(p)
	if err != nil {
		return nil, err
	}
	byName := map[string]*routev3.RouteConfiguration{}
	for i, r := range p.services {
		if len(domains[i]) == 0 {
			continue
		}
		host, err := virtualHost(env, r, domains[i])
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", r.service.Service, err)
		}
		name := routeName(p, r.settings)
		config := byName[name]
		if config == nil {
			config = &routev3.RouteConfiguration{Name: name}
			if m := env.snapshot.Mesh; m != nil && m.ValidateClusters {
				config.ValidateClusters = wrapperspb.Bool(true)
			}
			byName[name] = config
		}
		config.VirtualHosts = append(config.VirtualHosts, host)
	}
	var configs []*routev3.RouteConfiguration
	for _, c := range byName {
		if err := envoy.Validate(c); err != nil {
			return nil, fmt.Errorf("route configuration %s: %w", c.Name, err)
		}
		configs = append(configs, c)
	}
	slices.SortFunc(configs, func(a, b *routev3.RouteConfiguration) int { return cmp.Compare(a.Name, b.Name) })
	return configs, nil
}

// virtualHost makes the virtual host of a service, with the header modifiers of the gateway's entry.
func virtualHost(env environment, s portService, domains []string) (*routev3.VirtualHost, error) {
	routes, err := chainRoutes(env, s.chain)
	if err != nil {
		return nil, err
	}
	request := headerChanges(env.envoy, s.settings.RequestHeaders)
	response := headerChanges(env.envoy, s.settings.ResponseHeaders)
	return &routev3.VirtualHost{
		Name:                    displayName(s.service.Service),
		Domains:                 domains,
		Routes:                  routes,
		RequestHeadersToAdd:     request.add,
		RequestHeadersToRemove:  request.remove,
		ResponseHeadersToAdd:    response.add,
		ResponseHeadersToRemove: response.remove,
	}, nil
}

// chainRoutes makes the routes of a chain in the order they are tried.
func chainRoutes(env environment, c *gateway.Chain) ([]*routev3.Route, error) {
	start := c.Nodes[c.StartNode]
	if start == nil {
		return nil, errors.New("its discovery chain lacks its first node")
	}
	if start.Type != gateway.NodeRouter {
		action, err := nodeAction(env, c, start)
		if action == nil {
			return nil, err
		}
		if start.Resolver != nil {
			action.Timeout = timeout(start.Resolver.RequestTimeout)
		}
		return []*routev3.Route{{Match: matchAll(), Action: &routev3.Route_Route{Route: action}}}, nil
	}
	var routes []*routev3.Route
	for i, cr := range start.Routes {
		route, err := chainRoute(env, c, cr)
		if err != nil {
			return nil, fmt.Errorf("route %d of its service-router: %w", i+1, err)
		}
		if route != nil {
			routes = append(routes, route)
		}
	}
	return routes, nil
}

// chainRoute makes one route of a service-router
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/service-router). It is nil where nodeAction's
// is.
func chainRoute(env environment, c *gateway.Chain, cr *gateway.ChainRoute) (*routev3.Route, error) {
	if cr == nil {
		return nil, errors.New("it is empty")
	}
	next := c.Nodes[cr.NextNode]
	if next == nil || next.Type == gateway.NodeRouter {
		return nil, fmt.Errorf("its discovery chain lacks node %q", cr.NextNode)
	}
	action, err := nodeAction(env, c, next)
	if action == nil {
		return nil, err
	}
	route := &routev3.Route{Match: matchAll(), Action: &routev3.Route_Route{Route: action}}
	if cr.Definition == nil {
		return route, nil
	}
	if route.Match, err = routeMatch(env.envoy, cr.Definition.Match); err != nil {
		return nil, err
	}
	if d := cr.Definition.Destination; d != nil {
		applyDestination(env.envoy, route, d)
	}
	return route, nil
}

// applyDestination applies the settings of a router's destination.
func applyDestination(can envoy.Capabilities, route *routev3.Route, dest *gateway.RouteDestination) {
	action := route.GetRoute()
	action.PrefixRewrite = dest.PrefixRewrite
	action.Timeout = timeout(dest.RequestTimeout)
	action.IdleTimeout = timeout(dest.IdleTimeout)
	action.RetryPolicy = retryPolicy(dest)

	request := headerChanges(can, dest.RequestHeaders)
	response := headerChanges(can, dest.ResponseHeaders)
	route.RequestHeadersToAdd, route.RequestHeadersToRemove = request.add, request.remove
	route.ResponseHeadersToAdd, route.ResponseHeadersToRemove = response.add, response.remove
}

// nodeAction sends requests to what a resolver or a splitter leads to. It is nil, without an error, if those are
// only cluster peers whose root certificates are not known.
func nodeAction(env environment, c *gateway.Chain, node *gateway.ChainNode) (*routev3.RouteAction, error) {
	action := &routev3.RouteAction{}
	switch node.Type {
	case gateway.NodeResolver:
		g, err := targetGroupOf(env.snapshot, c, node)
		if err != nil || g.clusterName == "" {
			return nil, err
		}
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: g.clusterName}
	case gateway.NodeSplitter:
		weighted, err := weightedClusters(env, c, node)
		if err != nil || weighted == nil {
			return nil, err
		}
		action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	default:
		return nil, fmt.Errorf("its discovery chain has a node of type %q, which is not supported", node.Type)
	}
	if err := setHashPolicies(action, node.LoadBalancer); err != nil {
		return nil, err
	}
	return action, nil
}

// weightedClusters makes the splits of a service-splitter. Its weights are percents with two decimals; Envoy's are
// integers. Splits to cluster peers whose root certificates are not known are left out; it is nil if those are all.
func weightedClusters(env environment, c *gateway.Chain, node *gateway.ChainNode) (*routev3.WeightedCluster, error) {
	out := &routev3.WeightedCluster{}
	var total uint64
	for _, s := range node.Splits {
		if s == nil {
			return nil, errors.New("its service-splitter has an empty split")
		}
		g, err := targetGroupOf(env.snapshot, c, c.Nodes[s.NextNode])
		if err != nil {
			return nil, err
		}
		if g.clusterName == "" {
			continue
		}
		weight := s.Weight * 100
		if !(weight >= 0 && weight <= 10000) {
			return nil, fmt.Errorf("its service-splitter has the weight %v; use 0 to 100", s.Weight)
		}
		split := &routev3.WeightedCluster_ClusterWeight{Name: g.clusterName, Weight: wrapperspb.UInt32(uint32(weight))}
		if d := s.Definition; d != nil {
			request, response := headerChanges(env.envoy, d.RequestHeaders), headerChanges(env.envoy, d.ResponseHeaders)
			split.RequestHeadersToAdd, split.RequestHeadersToRemove = request.add, request.remove
			split.ResponseHeadersToAdd, split.ResponseHeadersToRemove = response.add, response.remove
		}
		total += uint64(split.Weight.Value)
		out.Clusters = append(out.Clusters, split)
	}
	if len(out.Clusters) == 0 && len(node.Splits) > 0 {
		return nil, nil
	}
	if total == 0 || total > math.MaxUint32 {
		return nil, errors.New("the weights of its service-splitter do not sum up to 100")
	}
	if !env.envoy.SumsWeights {
		out.TotalWeight = wrapperspb.UInt32(uint32(total)) //nolint:staticcheck // for the Envoys that need it
	}
	return out, nil
}

// timeout translates Consul's timeout: 0 leaves Envoy's default, and a negative one means none, which is Envoy's 0.
func timeout(d gateway.Duration) *durationpb.Duration {
	switch {
	case d > 0:
		return durationpb.New(time.Duration(d))
	case d < 0:
		return durationpb.New(0)
	}
	return nil
}

// retryPolicy returns the retries of a router's destination, or nil if it has no setting for them.
func retryPolicy(d *gateway.RouteDestination) *routev3.RetryPolicy {
	if d.NumRetries == 0 && !d.RetryOnConnectFailure && len(d.RetryOn) == 0 && len(d.RetryOnStatusCodes) == 0 {
		return nil
	}
	on := slices.Clone(d.RetryOn)
	if d.RetryOnConnectFailure && !slices.Contains(on, "connect-failure") {
		on = append(on, "connect-failure")
	}
	if len(d.RetryOnStatusCodes) > 0 {
		on = append(on, "retriable-status-codes")
	}
	return &routev3.RetryPolicy{
		RetryOn:              strings.Join(on, ","),
		NumRetries:           unlessZero(d.NumRetries),
		RetriableStatusCodes: d.RetryOnStatusCodes,
	}
}

// headerChange is a change of the headers of requests or responses.
type headerChange struct {
	add    []*corev3.HeaderValueOption
	remove []string
}

// headerChanges translates header modifiers: what is added comes before what is set, each in the order of the names.
func headerChanges(can envoy.Capabilities, m *gateway.HeaderModifiers) headerChange {
	if m == nil {
		return headerChange{}
	}
	change := headerChange{remove: m.Remove}
	for _, name := range slices.Sorted(maps.Keys(m.Add)) {
		change.add = append(change.add, headerOption(can, name, m.Add[name], false))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Set)) {
		change.add = append(change.add, headerOption(can, name, m.Set[name], true))
	}
	return change
}

func headerOption(can envoy.Capabilities, name, value string, overwrite bool) *corev3.HeaderValueOption {
	out := &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}}
	switch {
	case !overwrite:
	case can.AppendAction:
		out.AppendAction = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	default:
		//nolint:staticcheck // Envoy before 1.24 knows no other way to overwrite.
		out.Append = wrapperspb.Bool(false)
	}
	return out
}
