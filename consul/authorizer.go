package consul

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/inflight"
	"github.com/usherproxy/usher/internal/retry"
)

// The results of an ACL check other than that the token may use the gateway.
var (
	// ErrDenied means that the token lacks the permission.
	ErrDenied = errors.New("the token does not have service:write on the gateway")
	// ErrUnknownToken means that the token does not exist, or no longer.
	ErrUnknownToken = errors.New("consul does not know the token")
	// errACLsOff means that Consul checks no tokens: any token may use any gateway.
	errACLsOff = errors.New("consul's ACLs are off")
)

// How long one ACL check may take after its time in the queue, which is authorizeTimeout at most. authorizeAgainTimeout
// applies if Consul has allowed the same before.
const (
	authorizeTimeout      = 10 * time.Second
	authorizeAgainTimeout = 2 * time.Second
)

// Caller is an Envoy that wants to use a gateway.
type Caller struct {
	// Token is the caller's token. An empty one stands for the anonymous token (or the default token of Consul's
	// agent), never for Usher's token.
	Token string
	// Bearer is the caller's bearer token, which is exchanged for a Consul token; if it is not empty, Token is.
	Bearer  string
	Address string // callers from one address cannot delay those from another
	Again   bool   // the caller has the gateway already
}

// aclCheck is the request of POST /v1/internal/acl/authorize, and with Allow the response.
type aclCheck struct {
	Resource, Access, Segment string
	Namespace, Partition      string `json:",omitempty"`
	Allow                     bool   `json:",omitempty"`
}

// How much an Authorizer remembers.
const (
	refusalTime = 10 * time.Second // how long it remembers a refusal
	maxRefusals = 4096
)

// How many ACL checks run at the same time over plain HTTP, where each holds a connection. Over other schemes there may
// be checksFactorTLS times as many. Callers that Consul has allowed before do not wait for new callers.
const (
	newCallerChecks           = 3
	newCallerChecksPerAddress = 2
	knownCallerChecks         = plainAuthorizations - newCallerChecks
	checksFactorTLS           = 8
)

var (
	// errTooManyChecks means that an ACL check waited in the queue for too long. It says nothing about Consul.
	errTooManyChecks = errors.New("too many ACL checks wait for consul; Envoy connects again; check Consul's load if this lasts")
	// errCallerGone means that the caller is gone whose context a shared check had.
	errCallerGone = interruption("the caller has gone")
)

// Authorizer checks with Consul's ACLs whether a caller may use a gateway. It remembers a refusal for some seconds, and
// an allowed caller for use while Consul does not answer. It stores keyed hashes of the tokens, never the tokens. Its
// methods are safe for concurrent use. Use NewAuthorizer.
type Authorizer struct {
	client       *Client
	bearers      *bearerLogins // nil: no bearer token is accepted
	refused      *lru.Cache[aclKey, refusal]
	allowed      *allowances
	running      singleflight.Group
	newCallers   *inflight.CallerLimit[string] // by address
	knownCallers inflight.Limit

	mu        sync.Mutex
	usesStale bool      // the last check had no result, and a remembered one was used
	loggedAt  time.Time // when that was last logged
}

// hashSize is the size of the keyed hashes of tokens.
const hashSize = sha256.Size

// aclKey is a keyed hash of a token and a gateway.
type aclKey [hashSize]byte

// refusal is a refusal of Consul's ACLs, and until when it is remembered.
type refusal struct {
	err   error
	until time.Time
}

// AuthorizerOptions are what an Authorizer allows beyond Consul's answers.
type AuthorizerOptions struct {
	// StaleIfError is for how long it allows the callers that Consul has allowed, while Consul does not answer (the name is
	// from RFC 5861). If it is 0, it allows none.
	StaleIfError time.Duration
	// Store keeps hashes of these callers, so that the next process knows them, too. Nil: it knows none.
	Store Store
	// BearerAuthMethod is the auth method at which bearer tokens are exchanged for Consul tokens. If it is empty, bearer
	// tokens are refused.
	BearerAuthMethod string
}

// NewAuthorizer returns an Authorizer. If it accepts bearer tokens or has a Store, it needs Run and Close.
func NewAuthorizer(c *Client, o AuthorizerOptions) *Authorizer {
	factor := 1
	if c.maxConnections() == 0 {
		factor = checksFactorTLS
	}
	a := &Authorizer{
		client: c, allowed: newAllowances(c, o.Store, o.StaleIfError),
		newCallers:   inflight.NewCallerLimit[string](factor*newCallerChecks, factor*newCallerChecksPerAddress),
		knownCallers: make(inflight.Limit, factor*knownCallerChecks),
	}
	a.refused, _ = lru.New[aclKey, refusal](maxRefusals) // fails only for sizes below 1
	if o.BearerAuthMethod != "" {
		a.bearers = newBearerLogins(c, o.BearerAuthMethod)
	}
	return a
}

// Run ends the logins for bearer tokens when they are no longer needed, and writes to the Store, until ctx ends.
func (a *Authorizer) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { a.allowed.run(ctx) })
	if a.bearers != nil {
		a.bearers.run(ctx)
	}
	<-ctx.Done()
	return nil
}

// RemembersAny reports whether there is a caller that is let in while Consul does not answer.
func (a *Authorizer) RemembersAny() bool {
	return slices.ContainsFunc(a.allowed.allow.Keys(), a.allowed.counts) || a.allowed.counts(aclKey{})
}

// SaveAgain has Run write everything to the Store again.
func (a *Authorizer) SaveAgain() { a.allowed.change(true, false) }

// Close writes to the Store and ends all logins for bearer tokens, after Run and the last Authorize. It takes a few seconds
// at most.
func (a *Authorizer) Close() {
	a.allowed.save()
	if a.bearers != nil {
		a.bearers.close()
	}
}

// Authorize returns nil if the caller's token has service:write on the gateway, or if ACLs are off. It returns
// ErrDenied if the token lacks that permission, and ErrUnknownToken if Consul does not know the token. It returns
// another error if Consul does not answer and no remembered result can be used.
//
// It also returns ErrLoginRefused, ErrBearerUnused, ErrBearerInvalid or ErrBearerExpired for a caller with a bearer token.
// ctx has to end with the caller's stream: the login for the bearer token is kept until then.
func (a *Authorizer) Authorize(ctx context.Context, who Caller, id gateway.ID) error {
	err := a.accept(ctx, who)
	if err != nil {
		a.count("denied")
		return err
	}
	key := a.keyOf(who, id)
	if r, ok := a.refused.Get(key); ok && !who.Again && time.Now().Before(r.until) {
		a.count("remembered")
		return r.err
	}
	err = a.checkOnce(ctx, key, who, id)
	switch {
	case err == nil, errors.Is(err, errACLsOff):
		a.allow(key, err != nil)
		return nil
	case errors.Is(err, ErrDenied), errors.Is(err, ErrUnknownToken), errors.Is(err, ErrLoginRefused):
		a.refuse(key, err)
		return err
	case errors.Is(err, errLoginsClosed), errors.Is(err, errNotHeld):
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case a.allowed.counts(key) && !errors.Is(err, errTooManyChecks):
		a.useStale(err)
		return nil
	}
	a.count("failed")
	return fmt.Errorf("ACL check at consul %s for gateway %s: %w", a.client.Address(), id, err)
}

func (a *Authorizer) count(outcome string) {
	a.client.metrics.authorizations.WithLabelValues(outcome).Inc()
}

// accept returns why the caller's token cannot be one that Consul knows. It holds a bearer token until ctx ends.
func (a *Authorizer) accept(ctx context.Context, who Caller) error {
	if who.Bearer == "" {
		// Consul's tokens are UUIDs. Other characters cannot be sent in a header.
		if strings.ContainsFunc(who.Token, func(r rune) bool { return r < ' ' || r > '~' }) {
			return ErrUnknownToken
		}
		return nil
	}
	if a.bearers == nil {
		return ErrBearerUnused
	}
	claims, err := parseClaims(who.Bearer)
	if err != nil {
		return ErrBearerInvalid
	}
	expiry := claims.expiry()
	if !expiry.IsZero() && !time.Now().Before(expiry) {
		return ErrBearerExpired
	}
	if !who.Again {
		context.AfterFunc(ctx, a.bearers.hold(a.bearerKeyOf(who), expiry))
	}
	return nil
}

func (a *Authorizer) keyOf(who Caller, id gateway.ID) aclKey {
	return a.hash(who.Token, who.Bearer, id.Name, gateway.OrDefault(id.Namespace), gateway.OrDefault(id.Partition))
}

func (a *Authorizer) bearerKeyOf(who Caller) bearerKey { return bearerKey(a.hash(who.Bearer)) }

func (a *Authorizer) hash(parts ...string) [hashSize]byte {
	h := hmac.New(sha256.New, a.allowed.key[:])
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return [hashSize]byte(h.Sum(nil))
}

// allow remembers that Consul allows the key.
func (a *Authorizer) allow(key aclKey, off bool) {
	a.count("allowed")
	a.refused.Remove(key)
	a.allowed.setACLsOff(off)
	if !off {
		a.allowed.add(key)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.usesStale {
		a.usesStale = false
		a.client.logger.Info("consul answers ACL checks again", "consul", a.client.Address())
	}
}

func (a *Authorizer) refuse(key aclKey, err error) {
	a.count("denied")
	a.allowed.setACLsOff(false)
	a.allowed.remove(key)
	a.refused.Add(key, refusal{err: err, until: time.Now().Add(refusalTime)})
}

// useStale logs that remembered results are used: once for an outage, and at most once a minute.
func (a *Authorizer) useStale(err error) {
	a.count("stale")
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.usesStale && time.Since(a.loggedAt) > time.Minute {
		a.usesStale, a.loggedAt = true, time.Now()
		a.client.logger.Warn("consul does not answer ACL checks; Envoys that it allowed before may still connect, others are refused",
			"consul", a.client.Address(), "at_most", a.allowed.maxAge, "error", err)
	}
}

// checkOnce checks with Consul. Equal checks that run at the same time share one result.
func (a *Authorizer) checkOnce(ctx context.Context, key aclKey, who Caller, id gateway.ID) error {
	known, timeout := who.Again || a.allowed.counts(key), authorizeTimeout
	if a.allowed.counts(key) {
		timeout = authorizeAgainTimeout
	}
	for {
		result := a.running.DoChan(string(key[:]), func() (any, error) {
			err := a.check(ctx, known, timeout, who, id)
			if ctx.Err() != nil {
				err = errCallerGone
			}
			return nil, err
		})
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case r := <-result:
			if errors.Is(r.Err, errCallerGone) && ctx.Err() == nil {
				continue
			}
			return r.Err
		}
	}
}

// check checks the caller with Consul. It exchanges a bearer token for a Consul token first.
func (a *Authorizer) check(ctx context.Context, known bool, timeout time.Duration, who Caller, id gateway.ID) error {
	if who.Bearer == "" {
		return a.checkToken(ctx, known, timeout, who, id)
	}
	key := a.bearerKeyOf(who)
	enter := func(ctx context.Context) (leave func(), err error) { return a.enter(ctx, known, who.Address) }
	for logins := 0; ; {
		token, fresh, err := a.bearers.consulToken(ctx, key, gateway.Secret(who.Bearer), enter, timeout)
		if err != nil {
			return err
		}
		who.Token = string(token)
		if fresh {
			logins++
			err = a.checkNewToken(ctx, known, timeout, who, id)
		} else {
			err = a.checkToken(ctx, known, timeout, who, id)
		}
		if err == nil {
			a.bearers.markAllowed(key)
		}
		if !errors.Is(err, ErrUnknownToken) {
			return err
		}
		a.bearers.forget(key, token)
		if logins > 0 {
			return errLoginLost
		}
	}
}

// errLoginLost means that Consul does not know the token of a login that it has just made.
var errLoginLost = errors.New("consul does not know the token of a login that it has just made; " +
	"check that its servers replicate (consul operator raft list-peers)")

// checkNewToken is checkToken for a token that Consul has just made. The server that answers may not know it yet.
func (a *Authorizer) checkNewToken(ctx context.Context, known bool, timeout time.Duration, who Caller, id gateway.ID) error {
	for failures := 1; ; failures++ {
		err := a.checkToken(ctx, known, timeout, who, id)
		if !errors.Is(err, ErrUnknownToken) || failures > maxReplicationChecks || ctx.Err() != nil {
			return err
		}
		sleep(ctx, retry.Pause(failures))
	}
}

// maxReplicationChecks is how often the check of a new token is repeated, over about two seconds.
const maxReplicationChecks = 5

// checkToken waits in the queue and then checks the caller's Consul token. The timeout begins after the queue.
func (a *Authorizer) checkToken(ctx context.Context, known bool, timeout time.Duration, who Caller, id gateway.ID) error {
	queued, cancel := context.WithTimeoutCause(ctx, authorizeTimeout, errTooManyChecks)
	defer cancel()
	leave, err := a.enter(queued, known, who.Address)
	if err != nil {
		return err
	}
	defer leave()
	ctx, stop := context.WithTimeoutCause(ctx, timeout, noAnswer(timeout))
	defer stop()
	return a.client.authorize(ctx, who.Token, id)
}

// enter waits until the check may run. The caller calls leave when it is done.
func (a *Authorizer) enter(ctx context.Context, known bool, address string) (leave func(), err error) {
	if known {
		return a.knownCallers.Acquire(ctx)
	}
	return a.newCallers.Acquire(ctx, address)
}

// authorize checks with Consul whether the token has service:write on the gateway, as Consul's own xDS does.
func (c *Client) authorize(ctx context.Context, token string, id gateway.ID) error {
	check := aclCheck{Resource: "service", Access: "write", Segment: id.Name}
	check.Namespace, check.Partition = c.tenancy(gateway.OrDefault(id.Namespace), gateway.OrDefault(id.Partition))
	results, err := c.askACLs(ctx, gateway.Secret(token), []aclCheck{check})
	if err == nil && !results[0].Allow {
		err = ErrDenied
	}
	return err
}

// askACLs checks with Consul what the token may do. It returns the checks with their results.
func (c *Client) askACLs(ctx context.Context, token gateway.Secret, checks []aclCheck) ([]aclCheck, error) {
	body, err := json.Marshal(checks)
	if err != nil {
		return nil, err
	}
	_, body, err = c.do(ctx, call{
		client: c.aclHTTP, method: http.MethodPost, path: "/v1/internal/acl/authorize", token: token, body: body,
	})
	if err != nil {
		return nil, authorizeError(err)
	}
	return readACLResponse(body, checks)
}

func authorizeError(err error) error {
	e, ok := errors.AsType[*callError](err)
	switch {
	case !ok:
	case isACLsOff(e):
		return errACLsOff
	case isUnknownToken(e):
		return ErrUnknownToken
	}
	return err
}

func isACLsOff(e *callError) bool {
	return e.status == http.StatusUnauthorized && strings.Contains(e.text, "ACL support disabled")
}

func isUnknownToken(e *callError) bool {
	return e.status == http.StatusForbidden && strings.Contains(e.text, "ACL not found")
}

// failsForToken reports whether a query fails because Consul does not know Usher's token.
func failsForToken(err error) bool {
	e, ok := errors.AsType[*callError](err)
	return ok && isUnknownToken(e)
}

// readACLResponse reads the results of the checks.
func readACLResponse(body []byte, checks []aclCheck) (results []aclCheck, err error) {
	if err := json.Unmarshal(body, &results); err != nil {
		return nil, unexpected(err.Error())
	}
	if len(results) != len(checks) {
		return nil, unexpected(fmt.Sprintf("it has %d results for %d checks", len(results), len(checks)))
	}
	for i, r := range results {
		if r.Resource != checks[i].Resource || r.Access != checks[i].Access || r.Segment != checks[i].Segment {
			return nil, unexpected("it has the result of another check")
		}
	}
	return results, nil
}
