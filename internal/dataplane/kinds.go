package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/inflight"
	"github.com/usherproxy/usher/xds"
)

const (
	// kindTime is how long an answer counts without another question.
	kindTime = 10 * time.Second
	// gatewayTime is how long a gateway stays one although the catalog no longer has it: its pods may be replaced, and an
	// Envoy that comes back meanwhile must not get Consul's own configuration.
	gatewayTime = 10 * time.Minute
	// otherTime is how long another proxy stays one while there is no answer. It may be registered as a gateway meanwhile,
	// and Consul would serve it without what Usher adds.
	otherTime = 10 * time.Minute

	askTime      = 5 * time.Second // bounds a question
	askAgainTime = 2 * time.Second // the same, if an earlier answer can be used
	maxQuestions = 4               // at the same time
	// maxQuestionsPerPeer bounds those for callers of one peer.
	maxQuestionsPerPeer = 2
	maxGateways         = 4096   // services that are remembered
	maxNodes            = 65_536 // that are remembered
)

// Kind is what Consul's catalog has for the node of an Envoy.
type Kind int

const (
	// NotRegistered means that neither the node's id is registered, nor its cluster as an ingress gateway.
	NotRegistered Kind = iota
	// GatewayByName means that the node's id is not registered, but its cluster is an ingress gateway.
	GatewayByName
	// Gateway means that the node's id is registered, as an instance of the ingress gateway that its cluster names.
	Gateway
	// Other means that the node's id is registered, and is no ingress gateway.
	Other
)

// kinds remembers which nodes are ingress gateways. It uses an old answer while there is no new one.
type kinds struct {
	ask        func(ctx context.Context, n xds.Node) (Kind, error)
	logLimit   *rate.Limiter
	background *background
	questions  singleflight.Group
	limit      *inflight.CallerLimit[netip.Prefix]
	// gateways has when the catalog last had a service as an ingress gateway. nodes has the last answers about nodes that
	// are registered, so that callers that invent names displace none.
	gateways *lru.Cache[string, time.Time]
	nodes    *lru.Cache[string, nodeKind]
}

// nodeKind is an answer about a node.
type nodeKind struct {
	kind    Kind
	cluster string // of the node
	at      time.Time
}

func newKinds(ask func(ctx context.Context, n xds.Node) (Kind, error), b *background) *kinds {
	k := &kinds{
		ask: ask, background: b, logLimit: rate.NewLimiter(rate.Every(10*time.Second), 3),
		limit: inflight.NewCallerLimit[netip.Prefix](maxQuestions, maxQuestionsPerPeer),
	}
	k.gateways, _ = lru.New[string, time.Time](maxGateways) // New fails only for sizes below 1
	k.nodes, _ = lru.New[string, nodeKind](maxNodes)
	return k
}

// keyOf returns a key for what the catalog calls the same. The texts of a node have no character that is not printable.
func keyOf(n xds.Node, name ...string) string {
	tenancy := []string{n.Metadata["namespace"], n.Metadata["partition"]}
	return strings.ToLower(strings.Join(append(tenancy, name...), "\x00"))
}

// isGateway reports whether a node belongs to an ingress gateway. An error is a status.
func (k *kinds) isGateway(ctx context.Context, peer netip.Prefix, n xds.Node) (bool, error) {
	key, service := keyOf(n, n.ID, n.Metadata["node_name"]), keyOf(n, n.Cluster)
	last, isKnown := k.nodes.Get(key)
	age := time.Since(last.at)
	isKnown = isKnown && (last.kind == Gateway && last.cluster == n.Cluster || last.kind == Other && age < otherTime)
	if isKnown && age < kindTime {
		return last.kind == Gateway, nil
	}
	wasGateway := k.gateways.Contains(service)
	timeout := askTime
	if isKnown || wasGateway {
		timeout = askAgainTime
	}
	question := peer.String() + keyOf(n, n.ID, n.Metadata["node_name"], n.Cluster)
	kind, err := share(ctx, k.background, &k.questions, question, func(ctx context.Context) (Kind, error) {
		return k.question(ctx, timeout, peer, n)
	})
	switch {
	case err == nil:
		return k.remember(kind, key, service, n)
	case ctx.Err() != nil:
		return false, status.FromContextError(ctx.Err()).Err()
	case status.Code(err) == codes.InvalidArgument: // an answer: the node is not what it was
		if last.kind == Other {
			k.nodes.Remove(key)
		}
		return false, err
	case isKnown:
		return last.kind == Gateway, k.withoutAnswer(n, err, true)
	}
	return wasGateway, k.withoutAnswer(n, err, wasGateway)
}

func (k *kinds) question(ctx context.Context, timeout time.Duration, peer netip.Prefix, n xds.Node) (Kind, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	release, err := k.limit.Acquire(ctx, peer)
	if err != nil {
		return NotRegistered, errors.New("too many questions about other proxies wait for consul")
	}
	defer release()
	return k.ask(ctx, n)
}

// remember remembers an answer of Consul. It returns true for a gateway, and for one that was a gateway a moment ago.
//
// That a node is not registered is never remembered, and its stream does not go to Consul: its registration may arrive at
// any moment, and may be an ingress gateway's.
func (k *kinds) remember(kind Kind, key, service string, n xds.Node) (bool, error) {
	now := time.Now()
	if kind == Gateway || kind == Other {
		k.nodes.Add(key, nodeKind{kind, n.Cluster, now})
	} else {
		k.nodes.Remove(key)
	}
	switch kind {
	case Gateway, GatewayByName:
		k.gateways.Add(service, now)
		return true, nil
	case Other:
		return false, nil
	}
	if last, was := k.gateways.Peek(service); was && now.Sub(last) < gatewayTime {
		return true, nil
	}
	k.gateways.Remove(service)
	return false, status.Errorf(codes.Unavailable,
		"consul's catalog has no proxy with the service ID %q on the node %q, or usher's token may not read it; consul-dataplane tries again by itself",
		n.ID, n.Metadata["node_name"])
}

// withoutAnswer returns nil if an earlier answer can be used.
func (k *kinds) withoutAnswer(n xds.Node, err error, remembered bool) error {
	if k.logLimit.Allow() {
		k.background.log.Warn("cannot find out whether an Envoy of consul-dataplane belongs to an ingress gateway",
			"service", n.Cluster, "envoy", n.ID, "remembered", remembered, "error", err)
	}
	if remembered {
		return nil
	}
	return status.Errorf(codes.Unavailable,
		"usher cannot find out whether the service %q is an ingress gateway, see its log; consul-dataplane tries again by itself", n.Cluster)
}
