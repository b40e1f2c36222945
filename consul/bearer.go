package consul

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/retry"
)

// The reasons why a bearer token is refused before Consul is asked.
var (
	// ErrBearerUnused means that the Authorizer has no auth method for bearer tokens.
	ErrBearerUnused = errors.New("usher accepts no bearer tokens")
	// ErrBearerInvalid means that the bearer token is no JWT.
	ErrBearerInvalid = errors.New("the bearer token is no JWT")
	// ErrBearerExpired means that the bearer token has expired.
	ErrBearerExpired = errors.New("the bearer token has expired")
)

var (
	// errLoginsClosed means that Usher ends.
	errLoginsClosed = errors.New("usher is shutting down; connect again")
	// errNotHeld means that the bearer token has expired, or that its streams have ended, while a check of it waited.
	errNotHeld = errors.New("the bearer token was given up while it was checked; connect again")
)

const (
	// loginLinger is how long a login stays after the last stream with its bearer token has ended. An Envoy that
	// connects again then needs no new one.
	loginLinger = 5 * time.Second
	// expiryInterval is how often the logins are looked through for those that are to end.
	expiryInterval = time.Second
	// maxIdleLogins bounds the logins that stay without a stream. Those with one are bounded by the streams.
	maxIdleLogins = 4096
	// maxLogouts bounds the logins that wait for their logout, as while Consul does not answer.
	maxLogouts = 16_384
	// logoutRetry is the pause after a logout that failed.
	logoutRetry = 10 * time.Second
	// logoutWorkers bounds the logouts that run at the same time, and lastLogoutWorkers those at the end of the process,
	// for which there is lastLogoutsTime.
	logoutWorkers     = 2
	lastLogoutWorkers = 16
	lastLogoutsTime   = 3 * time.Second
)

// The components in the descriptions of logins' tokens. That of an Envoy is the one in the logins of consul-k8s.
const (
	envoyComponent = "ingress-gateway"
	usherComponent = "usher"
)

// bearerKey is a keyed hash of a bearer token.
type bearerKey [hashSize]byte

// bearerLogins exchanges the bearer tokens of Envoys for Consul tokens. It logs in once for each bearer token, however
// many streams have it and however often they are checked. It logs out when the last stream has ended, when the bearer
// token expires, and at the end of the process. Its methods are safe for concurrent use.
type bearerLogins struct {
	client     *Client
	authMethod string

	// attempts are the running attempts to log in. The end of a caller does not cancel one that has asked Consul: a login
	// whose answer is not read would stay in Consul.
	attempts       sync.WaitGroup
	attemptsCtx    context.Context
	cancelAttempts context.CancelFunc
	wake           chan struct{} // receives when there are logouts; its capacity is 1

	mu      sync.Mutex
	tokens  map[bearerKey]*bearerToken
	idle    int     // how many of them have no stream
	logouts []login // that are to end
	dropped int     // logouts that were given up
	closed  bool
}

// bearerToken is what is known of one bearer token. The mutex of bearerLogins guards it.
type bearerToken struct {
	streams  int       // that are open
	expiry   time.Time // zero: never
	allowed  bool      // Consul has allowed it to use a gateway
	logoutAt time.Time // while there is no stream
	login    login
	attempt  *loginAttempt // nil unless one is running
}

// loginAttempt is an attempt to log in, and what it gave.
type loginAttempt struct {
	started chan struct{}           // closed when it has left the queue
	done    chan struct{}           // closed when it has ended, with token or err
	leave   context.CancelCauseFunc // makes it leave the queue
	waiters int                     // guarded by the mutex of bearerLogins
	token   gateway.Secret
	err     error
}

func newBearerLogins(c *Client, authMethod string) *bearerLogins {
	l := &bearerLogins{client: c, authMethod: authMethod, wake: make(chan struct{}, 1), tokens: map[bearerKey]*bearerToken{}}
	l.attemptsCtx, l.cancelAttempts = context.WithCancel(context.Background())
	return l
}

// hold keeps what is known of a bearer token until release is called: once for each stream.
func (l *bearerLogins) hold(key bearerKey, expiry time.Time) (release func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tokens[key]
	if t == nil {
		t = &bearerToken{expiry: expiry}
		l.tokens[key] = t
	} else if t.streams == 0 {
		l.idle--
	}
	t.streams++
	return func() { l.release(key, t) }
}

// release ends the hold of one stream. The login of a token that was never allowed does not linger.
func (l *bearerLogins) release(key bearerKey, t *bearerToken) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.streams--; t.streams > 0 || l.tokens[key] != t {
		return
	}
	l.idle++
	t.logoutAt = time.Now()
	if t.allowed && l.idle <= maxIdleLogins {
		t.logoutAt = t.logoutAt.Add(loginLinger)
	} else if t.attempt == nil {
		l.remove(key, t)
	}
}

// remove forgets a bearer token and ends its login. The caller holds mu.
func (l *bearerLogins) remove(key bearerKey, t *bearerToken) {
	delete(l.tokens, key)
	if t.streams == 0 {
		l.idle--
	}
	l.endLogin(t.login)
}

// endLogin leaves a login to runLogouts. The caller holds mu.
func (l *bearerLogins) endLogin(in login) {
	if in.token == "" {
		return
	}
	if len(l.logouts) >= maxLogouts {
		l.logouts = l.logouts[1:]
		l.dropped++
	}
	l.logouts = append(l.logouts, in)
	notify(l.wake)
}

// markAllowed records that Consul has allowed a bearer token to use a gateway.
func (l *bearerLogins) markAllowed(key bearerKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.tokens[key]; t != nil {
		t.allowed = true
	}
}

// forget forgets a login whose token Consul no longer knows.
func (l *bearerLogins) forget(key bearerKey, token gateway.Secret) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.tokens[key]; t != nil && t.login.token == token {
		t.login = login{}
		l.client.metrics.logins.WithLabelValues(envoyComponent, "lost").Inc()
	}
}

// enterFunc waits in a queue until something may begin. The caller calls leave when it is done.
type enterFunc func(context.Context) (leave func(), err error)

// consulToken returns the Consul token for a bearer token that is held. If there is none, it logs in after enter, and
// waits for Consul's answer for the given time. fresh reports whether the login is new.
func (l *bearerLogins) consulToken(
	ctx context.Context, key bearerKey, bearer gateway.Secret, enter enterFunc, timeout time.Duration,
) (token gateway.Secret, fresh bool, err error) {
	l.mu.Lock()
	t := l.tokens[key]
	switch {
	case l.closed:
		l.mu.Unlock()
		return "", false, errLoginsClosed
	case t == nil:
		l.mu.Unlock()
		return "", false, errNotHeld
	case t.login.token != "":
		defer l.mu.Unlock()
		return t.login.token, false, nil
	case t.attempt == nil:
		l.start(key, t, bearer, enter) //nolint:contextcheck // other callers share the attempt
	}
	a := t.attempt
	a.waiters++
	l.mu.Unlock()
	defer l.stopWaiting(t, a)
	token, err = a.wait(ctx, timeout)
	return token, true, err
}

// wait waits until the attempt has ended: as long as it is in the queue, and then for the given time.
func (a *loginAttempt) wait(ctx context.Context, timeout time.Duration) (gateway.Secret, error) {
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case <-a.done:
		return a.token, a.err
	case <-a.started:
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, noAnswer(timeout))
	defer cancel()
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case <-a.done:
		return a.token, a.err
	}
}

// stopWaiting ends a caller's wait. An attempt that no caller waits for leaves the queue.
func (l *bearerLogins) stopWaiting(t *bearerToken, a *loginAttempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.waiters--; a.waiters > 0 || t.attempt != a {
		return
	}
	select {
	case <-a.started:
	default:
		t.attempt = nil
		a.leave(errCallerGone)
	}
}

// start starts an attempt to log in. The caller holds mu.
func (l *bearerLogins) start(key bearerKey, t *bearerToken, bearer gateway.Secret, enter enterFunc) {
	queue, leave := context.WithCancelCause(l.attemptsCtx)
	a := &loginAttempt{started: make(chan struct{}), done: make(chan struct{}), leave: leave}
	t.attempt = a
	l.attempts.Go(func() {
		defer leave(nil)
		in, err := l.logIn(queue, a, bearer, enter)
		l.finish(key, t, a, in, err)
	})
}

// logIn waits in the queue of an attempt and then logs in.
func (l *bearerLogins) logIn(queue context.Context, a *loginAttempt, bearer gateway.Secret, enter enterFunc) (login, error) {
	queue, cancel := context.WithTimeoutCause(queue, authorizeTimeout, errTooManyChecks)
	defer cancel()
	release, err := enter(queue)
	if err != nil {
		return login{}, err
	}
	defer release()
	close(a.started)
	in, err := l.client.logIn(l.attemptsCtx, l.authMethod, bearer, envoyComponent) //nolint:contextcheck // only close cancels it
	l.client.metrics.countLogin(envoyComponent, err)
	return in, err
}

// finish ends an attempt. If nothing needs its login any more, it ends that, too.
func (l *bearerLogins) finish(key bearerKey, t *bearerToken, a *loginAttempt, in login, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.attempt == a {
		t.attempt = nil
	}
	a.token, a.err = in.token, err
	close(a.done)
	switch {
	case err != nil:
	case l.closed, l.tokens[key] != t, t.login.token != "":
		l.endLogin(in)
	default:
		t.login = in
		l.client.logger.Debug("logged in to consul for an envoy", "auth_method", l.authMethod, "accessor", in.accessor)
	}
}

// run ends the logins that are no longer needed, until ctx ends.
func (l *bearerLogins) run(ctx context.Context) {
	var logouts sync.WaitGroup
	defer logouts.Wait()
	logouts.Go(func() { l.runLogouts(ctx) })
	ticker := time.NewTicker(expiryInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			l.expire(now)
		}
	}
}

// expire forgets the bearer tokens that have expired, and those that have had no stream for long enough.
func (l *bearerLogins) expire(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, t := range l.tokens {
		expired := !t.expiry.IsZero() && !now.Before(t.expiry)
		unused := t.streams == 0 && !now.Before(t.logoutAt)
		if t.attempt == nil && (expired || unused) {
			l.remove(key, t)
		}
	}
}

// runLogouts logs out until ctx ends. While Consul does not answer, it tries again from time to time.
func (l *bearerLogins) runLogouts(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		for !l.logOutAll(ctx, logoutWorkers) && ctx.Err() == nil {
			sleep(ctx, retry.Jitter(logoutRetry))
		}
	}
}

// logOutAll ends the logins that are to end. It reports whether Consul has ended them all.
func (l *bearerLogins) logOutAll(ctx context.Context, workers int) bool {
	var failed atomic.Bool
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for in, ok := l.nextLogout(); ok; in, ok = l.nextLogout() {
				err := l.client.logOut(ctx, in)
				l.client.metrics.countLogout(envoyComponent, err)
				if err != nil {
					failed.Store(true)
					l.mu.Lock()
					l.endLogin(in)
					l.mu.Unlock()
					return
				}
				l.client.logger.Debug("logged out of consul for an envoy", "auth_method", l.authMethod, "accessor", in.accessor)
			}
		})
	}
	running.Wait()
	return !failed.Load()
}

func (l *bearerLogins) nextLogout() (in login, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.logouts) == 0 {
		return login{}, false
	}
	in, l.logouts = l.logouts[0], l.logouts[1:]
	return in, true
}

// close ends all logins, as far as Consul answers within lastLogoutsTime. No login begins any more.
func (l *bearerLogins) close() {
	ctx, cancel := context.WithTimeoutCause(context.Background(), lastLogoutsTime, noAnswer(lastLogoutsTime))
	defer cancel()
	defer context.AfterFunc(ctx, l.cancelAttempts)()
	l.mu.Lock()
	l.closed = true
	for key, t := range l.tokens {
		if t.attempt != nil {
			t.attempt.leave(errLoginsClosed)
		}
		l.remove(key, t)
	}
	l.mu.Unlock()
	l.logOutAll(ctx, lastLogoutWorkers)
	l.attempts.Wait()
	l.logOutAll(ctx, lastLogoutWorkers) // the logins that attempts have made meanwhile
	l.cancelAttempts()
	l.mu.Lock()
	defer l.mu.Unlock()
	if left := len(l.logouts) + l.dropped; left > 0 {
		l.client.logger.Warn("consul did not end all logins of Envoys; delete their tokens, or set MaxTokenTTL of the auth method",
			"auth_method", l.authMethod, "logins", left)
	}
}
