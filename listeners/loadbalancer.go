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

// The load balancing policies of a service-resolver
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/service-resolver#loadbalancer-policy).
const (
	leastRequest = "least_request"
	roundRobin   = "round_robin"
	random       = "random"
	ringHash     = "ring_hash"
	maglev       = "maglev"
)

// setLoadBalancing sets how a cluster spreads requests. Nil and an empty policy leave Envoy's default, round robin.
func setLoadBalancing(c *clusterv3.Cluster, lb *gateway.LoadBalancer) error {
	if lb == nil {
		return nil
	}
	switch lb.Policy {
	case "":
	case roundRobin:
		c.LbPolicy = clusterv3.Cluster_ROUND_ROBIN
	case random:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	case maglev:
		c.LbPolicy = clusterv3.Cluster_MAGLEV
	case leastRequest:
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		if config := lb.LeastRequestConfig; config != nil {
			c.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{
				ChoiceCount: wrapperspb.UInt32(config.ChoiceCount),
			}}
		}
	case ringHash:
		c.LbPolicy = clusterv3.Cluster_RING_HASH
		if config := lb.RingHashConfig; config != nil {
			c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{
				MinimumRingSize: wrapperspb.UInt64(config.MinimumRingSize),
				MaximumRingSize: wrapperspb.UInt64(config.MaximumRingSize),
			}}
		}
	default:
		return fmt.Errorf("load balancing policy %q is not supported", lb.Policy)
	}
	return nil
}

// setHashPolicies sets what of a request decides on its instance, for the policies that hash.
func setHashPolicies(a *routev3.RouteAction, lb *gateway.LoadBalancer) error {
	if lb == nil || lb.Policy != ringHash && lb.Policy != maglev {
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
	if p.SourceIP {
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}
		return out, nil
	}
	switch p.Field {
	case "header":
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Header_{
			Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: p.FieldValue},
		}
	case "cookie":
		out.PolicySpecifier = &routev3.RouteAction_HashPolicy_Cookie_{Cookie: hashCookie(p)}
	case "query_parameter":
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
