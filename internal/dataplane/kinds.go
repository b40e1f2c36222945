package dataplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/xds"
)

const (
	// kindTime is how long an answer counts without another question.
	kindTime = 10 * time.Second
	// gatewayTime is how long a gateway stays one although the catalog no longer has it: its pods may be replaced, and an
	// Envoy that comes back meanwhile must not get Consul's own configuration.
	gatewayTime = 10 * time.Minute

	askTime      = 5 * time.Second // bounds a question
	askAgainTime = 2 * time.Second // the same, if an earlier answer can be used
	maxQuestions = 4               // at the same time
	maxGateways  = 4096            // that are remembered
	maxOthers    = 65_536          // that are remembered
)

// kinds remembers which services are ingress gateways. It uses an old answer while there is no new one.
type kinds struct {
	ask       func(ctx context.Context, n xds.Node) (bool, error)
	log       *slog.Logger
	logLimit  *rate.Limiter
	questions singleflight.Group
	places    chan struct{} // for questions
	// gateways and others have until when an answer counts. They are separate, so that callers that invent names do not
	// displace a gateway.
	gateways, others *lru.Cache[string, time.Time]
}

func newKinds(ask func(ctx context.Context, n xds.Node) (bool, error), log *slog.Logger) *kinds {
	k := &kinds{ask: ask, log: log, logLimit: rate.NewLimiter(rate.Every(10*time.Second), 3), places: make(chan struct{}, maxQuestions)}
	k.gateways, _ = lru.New[string, time.Time](maxGateways) // New fails only for sizes below 1
	k.others, _ = lru.New[string, time.Time](maxOthers)
	return k
}

// isGateway reports whether a node belongs to an ingress gateway. An error is a status.
func (k *kinds) isGateway(ctx context.Context, n xds.Node) (bool, error) {
	key := strings.Join([]string{n.Cluster, n.Metadata["namespace"], n.Metadata["partition"]}, "/")
	gatewayUntil, wasGateway := k.gateways.Get(key)
	otherUntil, wasOther := k.others.Get(key)
	if now := time.Now(); now.Before(gatewayUntil) || now.Before(otherUntil) {
		return wasGateway, nil
	}
	timeout := askTime
	if wasGateway || wasOther {
		timeout = askAgainTime
	}
	answer := k.questions.DoChan(key, func() (any, error) { return k.question(context.WithoutCancel(ctx), timeout, n) })
	select {
	case <-ctx.Done():
		return false, status.FromContextError(ctx.Err()).Err()
	case r := <-answer:
		is, _ := r.Val.(bool)
		if r.Err == nil {
			return k.remember(key, is), nil
		}
		return k.withoutAnswer(n, r.Err, wasGateway, wasOther)
	}
}

func (k *kinds) question(ctx context.Context, timeout time.Duration, n xds.Node) (bool, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v", timeout))
	defer cancel()
	select {
	case k.places <- struct{}{}:
	case <-ctx.Done():
		return false, errors.New("too many questions about other services wait for consul")
	}
	defer func() { <-k.places }()
	return k.ask(ctx, n)
}

// remember remembers an answer of Consul. It returns true for a gateway, and for one that was a gateway a moment ago.
func (k *kinds) remember(key string, isGateway bool) bool {
	now := time.Now()
	if isGateway {
		k.others.Remove(key)
		k.gateways.Add(key, now.Add(kindTime))
		return true
	}
	if last, was := k.gateways.Peek(key); was && now.Before(last.Add(gatewayTime)) {
		return true
	}
	k.gateways.Remove(key)
	k.others.Add(key, now.Add(kindTime))
	return false
}

// withoutAnswer uses the last answer, if there is one.
func (k *kinds) withoutAnswer(n xds.Node, err error, wasGateway, wasOther bool) (bool, error) {
	if status.Code(err) == codes.InvalidArgument {
		return false, err
	}
	if k.logLimit.Allow() {
		k.log.Warn("cannot find out whether an Envoy of consul-dataplane belongs to an ingress gateway",
			"service", n.Cluster, "remembered", cmp.Or(wasGateway, wasOther), "error", err)
	}
	if wasGateway || wasOther {
		return wasGateway, nil
	}
	return false, status.Errorf(codes.Unavailable,
		"usher cannot find out whether the service %q is an ingress gateway, see its log; consul-dataplane tries again by itself", n.Cluster)
}
