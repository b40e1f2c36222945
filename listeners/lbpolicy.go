package listeners

import (
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/gateway"
)

// lbPolicies are the load balancing policies of a service-resolver
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/service-resolver#loadbalancer-policy).
var lbPolicies = map[string]clusterv3.Cluster_LbPolicy{
	"":              clusterv3.Cluster_ROUND_ROBIN, // Envoy's default
	"round_robin":   clusterv3.Cluster_ROUND_ROBIN,
	"random":        clusterv3.Cluster_RANDOM,
	"maglev":        clusterv3.Cluster_MAGLEV,
	"least_request": clusterv3.Cluster_LEAST_REQUEST,
	"ring_hash":     clusterv3.Cluster_RING_HASH,
}

// setLoadBalancing sets how a cluster spreads requests. Nil leaves Envoy's default.
func setLoadBalancing(c *clusterv3.Cluster, lb *gateway.LoadBalancer) error {
	if lb == nil {
		return nil
	}
	policy, known := lbPolicies[lb.Policy]
	if !known {
		return fmt.Errorf("load balancing policy %q is not supported; use least_request, maglev, random, ring_hash or round_robin", lb.Policy)
	}
	c.LbPolicy = policy
	if config := lb.LeastRequestConfig; policy == clusterv3.Cluster_LEAST_REQUEST && config != nil {
		c.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{
			ChoiceCount: wrapperspb.UInt32(config.ChoiceCount),
		}}
	}
	if config := lb.RingHashConfig; policy == clusterv3.Cluster_RING_HASH && config != nil {
		c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{
			MinimumRingSize: wrapperspb.UInt64(config.MinimumRingSize),
			MaximumRingSize: wrapperspb.UInt64(config.MaximumRingSize),
		}}
	}
	return nil
}

// setHashPolicies sets what of a request decides on its instance, for the policies that hash.
func setHashPolicies(a *routev3.RouteAction, lb *gateway.LoadBalancer) error {
	if lb == nil || lb.Policy != "ring_hash" && lb.Policy != "maglev" {
		return nil
	}
	for _, p := range lb.HashPolicies {
		policy, err := hashPolicy(p)
		if err != nil {
			return err
		}
		a.HashPolicy = append(a.HashPolicy, policy)
	}
	return nil
}

func hashPolicy(p gateway.HashPolicy) (*routev3.RouteAction_HashPolicy, error) {
	out := &routev3.RouteAction_HashPolicy{Terminal: p.Terminal}
	switch {
	case p.SourceIP:
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}
	case p.Field == "header":
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{
			Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: p.FieldValue},
		}
	case p.Field == "cookie":
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: hashCookie(p)}
	case p.Field == "query_parameter":
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: p.FieldValue},
		}
	default:
		return nil, fmt.Errorf("hash policy field %q is not supported; use header, cookie or query_parameter", p.Field)
	}
	return out, nil
}

// hashCookie returns the cookie to hash. Envoy makes one where the client sends none if it has a lifetime; 0 means
// for the session.
func hashCookie(p gateway.HashPolicy) *routev3.RouteAction_HashPolicy_Cookie {
	out := &routev3.RouteAction_HashPolicy_Cookie{Name: p.FieldValue}
	if c := p.CookieConfig; c != nil {
		out.Path = c.Path
		if c.TTL != 0 {
			out.Ttl = durationpb.New(time.Duration(c.TTL))
		}
		if c.Session {
			out.Ttl = durationpb.New(0)
		}
	}
	return out
}
