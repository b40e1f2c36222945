package consul

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/usherproxy/usher/internal/gateway"
)

// How much an Authorizer remembers.
const (
	// refusalTime is how long Usher remembers a refusal.
	refusalTime = 10 * time.Second
	maxRefusals = 4096
	maxAllowed  = 65_536
)

// How many ACL checks run at the same time over plain HTTP, where each holds a
// connection. Over other schemes it is moreOverTLS times as many. Callers that
// Consul has allowed before do not wait for other callers.
const (
	newCallerChecks           = 3
	newCallerChecksPerAddress = 2
	knownCallerChecks         = plainAuthorizations - newCallerChecks
	checksFactorTLS           = 8
)

// errTooMany means that an ACL check waited in the queue for too long. It means
// nothing about Consul.
var errTooManyChecks = errors.New("too many questions about tokens wait for consul")

// errGone means that the caller went away whose check others share.
var errCallerGone = errors.New("the caller has gone")

// Authorizer checks with Consul's ACLs whether a caller may use a gateway. It
// remembers a refusal for some seconds, so that a caller that tries again costs no
// second check. It remembers that Consul allowed a caller for the time for which it
// may use that while Consul does not answer. It stores keyed hashes of the tokens,
// never the tokens. Its methods are safe for concurrent use. Use NewAuthorizer.
type Authorizer struct {
	client       *Client
	staleIfError time.Duration
	key          [sha256.Size]byte // of the hashes
	refused      *lru.Cache[aclKey, refusal]
	allowed      *lru.Cache[aclKey, time.Time]
	running      singleflight.Group
	newCallers   *callerQueue
	knownCallers chan struct{}

	mu             sync.Mutex
	aclsOffAt      time.Time // when Consul last answered that its ACLs are off
	usesOldAnswers bool      // the last check had no answer, and a remembered one was used
	loggedAt       time.Time // when stale was last logged
}

// grant is a keyed hash of a token and a gateway.
type aclKey [sha256.Size]byte

// refused is a refusal, and how long it is remembered.
type refusal struct {
	err   error
	until time.Time
}

// NewAuthorizer returns an Authorizer. While Consul does not answer, it allows the
// callers that Consul has allowed within staleIfError (the name is from RFC 5861).
// If that is 0, it allows none.
func NewAuthorizer(c *Client, staleIfError time.Duration) *Authorizer {
	factor := 1
	if c.connections() == 0 {
		factor = checksFactorTLS
	}
	a := &Authorizer{
		client: c, staleIfError: staleIfError,
		newCallers:   newCallerQueue(factor*newCallerChecks, factor*newCallerChecksPerAddress),
		knownCallers: make(chan struct{}, factor*knownCallerChecks),
	}
	_, _ = rand.Read(a.key[:]) // never fails
	// New fails only for sizes below 1.
	a.refused, _ = lru.New[aclKey, refusal](maxRefusals)
	a.allowed, _ = lru.New[aclKey, time.Time](maxAllowed)
	return a
}

// Authorize returns nil if the applicant's token has service:write on the gateway,
// or if ACLs are off. It returns ErrDenied if the token lacks that right, and
// ErrUnknownToken if Consul does not know the token. It returns another error if
// Consul does not answer and no remembered answer can be used.
func (a *Authorizer) Authorize(ctx context.Context, who Caller, id gateway.ID) error {
	if !isPrintable(who.Token) {
		return ErrUnknownToken
	}
	g := a.keyOf(who.Token, id)
	if r, ok := a.refused.Get(g); ok && !who.Again && time.Now().Before(r.until) {
		a.client.metrics.authorization("remembered")
		return r.err
	}
	err := a.checkOnce(ctx, g, who, id)
	switch {
	case err == nil, errors.Is(err, errACLsOff):
		a.allow(g, err != nil)
		return nil
	case errors.Is(err, ErrDenied), errors.Is(err, ErrUnknownToken):
		a.refuse(g, err)
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case a.wasAllowed(g) && !errors.Is(err, errTooManyChecks):
		a.useOldAnswer(err)
		return nil
	}
	a.client.metrics.authorization("failed")
	return fmt.Errorf("asking consul at %s whether a token may have gateway %s: %w", a.client.address, id, err)
}

func (a *Authorizer) keyOf(token string, id gateway.ID) aclKey {
	h := hmac.New(sha256.New, a.key[:])
	for _, part := range []string{token, id.Name, gateway.OrDefault(id.Namespace), gateway.OrDefault(id.Partition)} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return aclKey(h.Sum(nil))
}

// allow remembers that Consul allows g. If ACLs are off, it remembers only that:
// otherwise a caller could fill the memory with names that it makes up.
func (a *Authorizer) allow(g aclKey, off bool) {
	a.client.metrics.authorization("allowed")
	a.refused.Remove(g)
	a.mu.Lock()
	defer a.mu.Unlock()
	if off {
		a.aclsOffAt = time.Now()
	} else {
		a.aclsOffAt = time.Time{}
		a.allowed.Add(g, time.Now())
	}
	if a.usesOldAnswers {
		a.usesOldAnswers = false
		a.client.logger.Info("consul can be asked again who may connect", "consul", a.client.Address())
	}
}

func (a *Authorizer) refuse(g aclKey, err error) {
	a.client.metrics.authorization("denied")
	a.mu.Lock()
	a.aclsOffAt = time.Time{}
	a.mu.Unlock()
	a.allowed.Remove(g)
	a.refused.Add(g, refusal{err: err, until: time.Now().Add(refusalTime)})
}

// isAllowed reports whether Consul has allowed g within staleIfError.
func (a *Authorizer) wasAllowed(g aclKey) bool {
	a.mu.Lock()
	at := a.aclsOffAt
	a.mu.Unlock()
	if own, ok := a.allowed.Peek(g); ok && own.After(at) {
		at = own
	}
	return !at.IsZero() && time.Since(at) < a.staleIfError
}

// goStale logs that remembered answers are used: once for an outage, and at most
// once a minute.
func (a *Authorizer) useOldAnswer(err error) {
	a.client.metrics.authorization("stale")
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.usesOldAnswers && time.Since(a.loggedAt) > time.Minute {
		a.usesOldAnswers, a.loggedAt = true, time.Now()
		a.client.logger.Warn("consul cannot be asked who may connect; Envoys that it has allowed before may stay connected and connect again for a while",
			"consul", a.client.Address(), "at_most", a.staleIfError, "error", err)
	}
}

// askOnce asks Consul. Equal checks that run at the same time share one answer.
func (a *Authorizer) checkOnce(ctx context.Context, g aclKey, who Caller, id gateway.ID) error {
	known, timeout := who.Again || a.wasAllowed(g), authorizeTimeout
	if a.wasAllowed(g) {
		timeout = authorizeAgainTimeout
	}
	for {
		answer := a.running.DoChan(string(g[:]), func() (any, error) {
			err := a.check(ctx, known, timeout, who, id)
			if ctx.Err() != nil {
				err = errCallerGone
			}
			return nil, err
		})
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case r := <-answer:
			if errors.Is(r.Err, errCallerGone) && ctx.Err() == nil {
				continue
			}
			return r.Err
		}
	}
}

// ask waits in the queue and then asks Consul. The timeout begins after the queue.
func (a *Authorizer) check(ctx context.Context, known bool, timeout time.Duration, who Caller, id gateway.ID) error {
	turn, cancel := context.WithTimeoutCause(ctx, authorizeTimeout, errTooManyChecks)
	defer cancel()
	leave, err := a.enter(turn, known, who.Address)
	if err != nil {
		return err
	}
	defer leave()
	ctx, stop := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer stop()
	return a.client.authorize(ctx, who.Token, id)
}

// enter waits until the check may run.
func (a *Authorizer) enter(ctx context.Context, known bool, peer string) (leave func(), err error) {
	if !known {
		return a.newCallers.enter(ctx, peer)
	}
	select {
	case a.knownCallers <- struct{}{}:
		return func() { <-a.knownCallers }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// queue bounds the checks that run at the same time, and those of one peer.
type callerQueue struct {
	all        chan struct{}
	perAddress int

	mu        sync.Mutex
	addresses map[string]*addressQueue
}

type addressQueue struct {
	places chan struct{}
	users  int // callers that have a place or wait for one
}

func newCallerQueue(all, perPeer int) *callerQueue {
	return &callerQueue{all: make(chan struct{}, all), perAddress: perPeer, addresses: map[string]*addressQueue{}}
}

// enter waits for a place. The caller calls leave when it is done.
func (q *callerQueue) enter(ctx context.Context, peer string) (leave func(), err error) {
	own := q.join(peer)
	for i, places := range []chan struct{}{own.places, q.all} {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			if i > 0 {
				<-own.places
			}
			q.leave(peer, own)
			return nil, context.Cause(ctx)
		}
	}
	return func() {
		<-q.all
		<-own.places
		q.leave(peer, own)
	}, nil
}

func (q *callerQueue) join(peer string) *addressQueue {
	q.mu.Lock()
	defer q.mu.Unlock()
	own := q.addresses[peer]
	if own == nil {
		own = &addressQueue{places: make(chan struct{}, q.perAddress)}
		q.addresses[peer] = own
	}
	own.users++
	return own
}

func (q *callerQueue) leave(peer string, own *addressQueue) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if own.users--; own.users == 0 {
		delete(q.addresses, peer)
	}
}
