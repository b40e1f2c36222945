package listeners

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	prioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/accesslog"
	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
)

// routesOf makes the route configurations of an http, http2 or grpc port: one named after the port, and one for each
// service with its own certificate. One without services is left out.
func routesOf(input compileInput, p port) ([]*routev3.RouteConfiguration, error) {
	domains, err := domainsOf(p)
	if err != nil {
		return nil, err
	}
	byName := map[string]*routev3.RouteConfiguration{}
	for i, r := range p.services {
		if len(domains[i]) == 0 {
			continue
		}
		host, err := virtualHost(input, r, domains[i])
		if err == nil {
			err = checkHeaders(input.capabilities, host)
		}
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", r.service.Service, err)
		}
		name := routeName(p, r.settings)
		config := byName[name]
		if config == nil {
			config = &routev3.RouteConfiguration{Name: name}
			if m := input.snapshot.Mesh; m != nil && m.ValidateClusters {
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

// domainsOf returns the domains of each service's virtual host: its hosts, or else <service>.ingress.*; then each of
// them with the listener's port, which clients write into the Host header unless it is the scheme's default.
//
// Envoy rejects a route configuration that has a domain twice. A host with a port that a service names wins over one
// that another service would get by this rule.
func domainsOf(p port) ([][]string, error) {
	owner := map[string]int{}
	key := func(s portService, domain string) string {
		return routeName(p, s.settings) + " " + strings.ToLower(domain)
	}
	domains := make([][]string, len(p.services))
	for i, s := range p.services {
		for _, h := range hostsOf(s) {
			if first, taken := owner[key(s, h)]; taken {
				if first == i {
					continue
				}
				return nil, fmt.Errorf("services %s and %s both have the host %q; remove it from one of them",
					p.services[first].service.Service, s.service.Service, h)
			}
			owner[key(s, h)] = i
			domains[i] = append(domains[i], h)
		}
	}
	for i, s := range p.services {
		for _, h := range domains[i] {
			withPort := net.JoinHostPort(h, strconv.Itoa(p.number))
			if _, taken := owner[key(s, withPort)]; taken || !portless(h) {
				continue
			}
			owner[key(s, withPort)] = i
			domains[i] = append(domains[i], withPort)
		}
	}
	return domains, nil
}

// hostsOf returns the hosts of a service, by default the one that Consul's DNS has for it
// (https://developer.hashicorp.com/consul/docs/reference/dns).
func hostsOf(s portService) []string {
	name := s.service.Service
	if len(s.service.Hosts) > 0 {
		return s.service.Hosts
	}
	if gateway.OmitDefault(name.Namespace) != "" {
		return []string{name.Name + ".ingress." + name.Namespace + ".*"}
	}
	return []string{name.Name + ".ingress.*"}
}

// portless reports whether a port can be added to a host.
func portless(host string) bool {
	_, _, err := net.SplitHostPort(host)
	var addr *net.AddrError
	return errors.As(err, &addr) && addr.Err == "missing port in address"
}

// virtualHost makes the virtual host of a service, with the header modifiers of the gateway's entry.
func virtualHost(input compileInput, s portService, domains []string) (*routev3.VirtualHost, error) {
	routes, err := chainRoutes(input, s.chain)
	if err != nil {
		return nil, err
	}
	host := &routev3.VirtualHost{Name: displayName(s.service.Service), Domains: domains, Routes: routes}
	host.RequestHeadersToAdd, host.RequestHeadersToRemove = headerChanges(input.capabilities, s.settings.RequestHeaders)
	host.ResponseHeadersToAdd, host.ResponseHeadersToRemove = headerChanges(input.capabilities, s.settings.ResponseHeaders)
	return host, nil
}

// chainRoutes makes the routes of a chain in the order they are tried.
func chainRoutes(input compileInput, c *gateway.Chain) ([]*routev3.Route, error) {
	start := c.Nodes[c.StartNode]
	if start == nil {
		return nil, missingInChain(c, fmt.Sprintf("node %q", c.StartNode))
	}
	if start.Type != gateway.NodeRouter {
		action, err := nodeAction(input, c, start)
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
		route, err := chainRoute(input, c, cr)
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
func chainRoute(input compileInput, c *gateway.Chain, cr *gateway.ChainRoute) (*routev3.Route, error) {
	if cr == nil {
		return nil, errors.New("it has neither a match nor a destination; complete it, or remove it")
	}
	next := c.Nodes[cr.NextNode]
	if next == nil || next.Type == gateway.NodeRouter {
		return nil, missingInChain(c, fmt.Sprintf("node %q", cr.NextNode))
	}
	action, err := nodeAction(input, c, next)
	if action == nil {
		return nil, err
	}
	route := &routev3.Route{Match: matchAll(), Action: &routev3.Route_Route{Route: action}}
	if cr.Definition == nil {
		return route, nil
	}
	if route.Match, err = routeMatch(input.capabilities, cr.Definition.Match); err != nil {
		return nil, err
	}
	if d := cr.Definition.Destination; d != nil {
		applyDestination(input.capabilities, route, d)
	}
	if retry := action.RetryPolicy; retry != nil && splitsFailOver(c, next) {
		retry.RetryPriority, err = envoy.Extension(&routev3.RetryPolicy_RetryPriority{}, "envoy.retry_priorities.previous_priorities",
			&prioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: 1})
	}
	return route, err
}

// splitsFailOver reports whether a node is a splitter, and one of its parts has other instances to fail over to. Retries
// then go to the priorities that have not been tried, as with Consul since 1.22.3.
func splitsFailOver(c *gateway.Chain, node *gateway.ChainNode) bool {
	return node.Type == gateway.NodeSplitter && slices.ContainsFunc(node.Splits, func(s *gateway.ChainSplit) bool {
		leg := c.Nodes[s.NextNode]
		return leg != nil && leg.Resolver != nil && leg.Resolver.Failover != nil
	})
}

// applyDestination applies the settings of a router's destination.
func applyDestination(can envoy.Capabilities, route *routev3.Route, dest *gateway.RouteDestination) {
	action := route.GetRoute()
	rewritePath(can, route, dest.PrefixRewrite)
	action.Timeout = timeout(dest.RequestTimeout)
	action.IdleTimeout = timeout(dest.IdleTimeout)
	action.RetryPolicy = retryPolicy(dest)
	route.RequestHeadersToAdd, route.RequestHeadersToRemove = headerChanges(can, dest.RequestHeaders)
	route.ResponseHeadersToAdd, route.ResponseHeadersToRemove = headerChanges(can, dest.ResponseHeaders)
}

// rewritePath replaces the matched prefix of a path. Envoy's rewrite of the prefix /a to / makes //b of /a/b, so that
// slash is replaced, too, as with Consul since 1.22.1. Consul does that for exact paths as well, and thereby loses their
// rewrite.
func rewritePath(can envoy.Capabilities, route *routev3.Route, rewrite string) {
	action := route.GetRoute()
	if _, isPrefix := route.Match.PathSpecifier.(*routev3.RouteMatch_Prefix); !isPrefix || rewrite != "/" {
		action.PrefixRewrite = rewrite
		return
	}
	pattern := "^" + regexp.QuoteMeta(route.Match.GetPrefix()) + "(/?)(.*)"
	if sensitive := route.Match.CaseSensitive; sensitive != nil && !sensitive.Value {
		pattern = "(?i)" + pattern
	}
	action.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: regex(can, pattern), Substitution: `/\2`}
}

// nodeAction sends requests to what a resolver or a splitter leads to. It is nil, without an error, if those are
// only cluster peers whose root certificates are not known.
func nodeAction(input compileInput, c *gateway.Chain, node *gateway.ChainNode) (*routev3.RouteAction, error) {
	action := &routev3.RouteAction{}
	switch node.Type {
	case gateway.NodeResolver:
		g, err := targetGroupOf(input.snapshot, c, node)
		if err != nil || g.clusterName == "" {
			return nil, err
		}
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: g.clusterName}
	case gateway.NodeSplitter:
		weighted, err := weightedClusters(input, c, node)
		if err != nil || weighted == nil {
			return nil, err
		}
		action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: weighted}
	default:
		return nil, fmt.Errorf("the discovery chain has a node of type %q, which Usher does not know; please report it", node.Type)
	}
	if err := setHashPolicies(action, node.LoadBalancer); err != nil {
		return nil, err
	}
	return action, nil
}

// weightedClusters makes the splits of a service-splitter. Its weights are percents with two decimals; Envoy's are
// integers. Splits to cluster peers whose root certificates are not known are left out; it is nil if those are all.
func weightedClusters(input compileInput, c *gateway.Chain, node *gateway.ChainNode) (*routev3.WeightedCluster, error) {
	out := &routev3.WeightedCluster{}
	var total uint64
	for _, s := range node.Splits {
		if s == nil {
			return nil, errors.New("its service-splitter has an empty split; remove it")
		}
		g, err := targetGroupOf(input.snapshot, c, c.Nodes[s.NextNode])
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
			split.RequestHeadersToAdd, split.RequestHeadersToRemove = headerChanges(input.capabilities, d.RequestHeaders)
			split.ResponseHeadersToAdd, split.ResponseHeadersToRemove = headerChanges(input.capabilities, d.ResponseHeaders)
		}
		total += uint64(split.Weight.Value)
		out.Clusters = append(out.Clusters, split)
	}
	if len(out.Clusters) == 0 && len(node.Splits) > 0 {
		return nil, nil
	}
	if total == 0 || total > math.MaxUint32 {
		return nil, fmt.Errorf("the weights of its service-splitter add up to %v; make them add up to 100", float64(total)/100)
	}
	if !input.capabilities.SumsWeights {
		out.TotalWeight = wrapperspb.UInt32(uint32(total)) //nolint:staticcheck // for the Envoys that need it
	}
	return out, nil
}

// timeout translates Consul's timeout: 0 leaves Envoy's default, and a negative one means none, which is Envoy's 0.
func timeout(d gateway.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(max(d, 0)))
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

// headerChanges translates header modifiers: what is added comes before what is set, each in the order of the names.
func headerChanges(can envoy.Capabilities, m *gateway.HeaderModifiers) (add []*corev3.HeaderValueOption, remove []string) {
	if m == nil {
		return nil, nil
	}
	for _, name := range slices.Sorted(maps.Keys(m.Add)) {
		add = append(add, headerOption(can, name, m.Add[name], false))
	}
	for _, name := range slices.Sorted(maps.Keys(m.Set)) {
		add = append(add, headerOption(can, name, m.Set[name], true))
	}
	return add, m.Remove
}

func headerOption(can envoy.Capabilities, name, value string, overwrite bool) *corev3.HeaderValueOption {
	out := &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}}
	if overwrite && can.AppendAction {
		out.AppendAction = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
	} else if overwrite {
		out.Append = wrapperspb.Bool(false) //nolint:staticcheck // Envoy before 1.24 knows no other way to overwrite.
	}
	return out
}

// placedHeaders are the header modifiers of one place in a virtual host.
type placedHeaders struct {
	of     string // what has the headers: request or response
	add    *[]*corev3.HeaderValueOption
	remove *[]string
}

// headersOf returns the headers of every place in a virtual host.
func headersOf(host *routev3.VirtualHost) iter.Seq[placedHeaders] {
	return func(yield func(placedHeaders) bool) {
		both := func(add, addToResponse *[]*corev3.HeaderValueOption, remove, removeFromResponse *[]string) bool {
			return yield(placedHeaders{"request", add, remove}) && yield(placedHeaders{"response", addToResponse, removeFromResponse})
		}
		if !both(&host.RequestHeadersToAdd, &host.ResponseHeadersToAdd, &host.RequestHeadersToRemove, &host.ResponseHeadersToRemove) {
			return
		}
		for _, r := range host.Routes {
			if !both(&r.RequestHeadersToAdd, &r.ResponseHeadersToAdd, &r.RequestHeadersToRemove, &r.ResponseHeadersToRemove) {
				return
			}
			for _, c := range r.GetRoute().GetWeightedClusters().GetClusters() {
				if !both(&c.RequestHeadersToAdd, &c.ResponseHeadersToAdd, &c.RequestHeadersToRemove, &c.ResponseHeadersToRemove) {
					return
				}
			}
		}
	}
}

// checkHeaders returns why Envoy would reject the operators in a header. It would reject all routes of the port.
func checkHeaders(can envoy.Capabilities, host *routev3.VirtualHost) error {
	for headers := range headersOf(host) {
		for _, option := range *headers.add {
			if err := accesslog.CheckHeader(option.Header.Value, can); err != nil {
				return fmt.Errorf("%s header %s: %w", headers.of, option.Header.Key, err)
			}
		}
	}
	return nil
}
