package consul

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/expiry"
	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

const (
	// minLoginAge is how old a login has to be before its loss counts: a server may not know its token at once.
	minLoginAge = 5 * time.Second
	// minLoginLifetime is the shortest one that Usher renews a login for. It is the least for MaxTokenTTL, unless
	// Consul is configured otherwise.
	minLoginLifetime = time.Minute
	// replacedLinger is how long a login stays after the next one has replaced it, for the queries that still use it.
	replacedLinger = 10 * time.Second
)

// ownToken is Usher's ACL token: the one in the environment, or that of a login. It reads a token file again for every
// request, to use a rotated token at once.
type ownToken struct {
	file  string    // empty: the token does not change
	login *ownLogin // nil: the token is not from a login

	mu      sync.Mutex
	last    gateway.Secret // the last one that was read; empty: none
	trouble fileTrouble
}

// tokens reads CONSUL_HTTP_TOKEN_FILE, or else CONSUL_HTTP_TOKEN. A login replaces both.
func (env environment) tokens(c Config) (*ownToken, error) {
	if c.LoginAuthMethod != "" {
		for _, name := range []string{api.HTTPTokenFileEnvName, api.HTTPTokenEnvName} {
			if env(name) != "" {
				return nil, fmt.Errorf("--login-auth-method %s: Usher then gets its token by a login; unset %s, or leave the flag out", c.LoginAuthMethod, name)
			}
		}
		return &ownToken{login: &ownLogin{
			authMethod: c.LoginAuthMethod, file: c.LoginBearerTokenFile,
			err: errNotLoggedIn, lost: make(chan struct{}, 1), tried: make(chan struct{}),
		}}, nil
	}
	t := &ownToken{file: env(api.HTTPTokenFileEnvName), last: gateway.Secret(env(api.HTTPTokenEnvName))}
	if err := t.read(); err != nil && !errors.Is(err, errEmptyFile) {
		return nil, fmt.Errorf("%s: %w", api.HTTPTokenFileEnvName, err)
	}
	t.trouble = fileTrouble{logger: c.Logger, what: api.HTTPTokenFileEnvName, paths: []string{t.file}}
	return t, nil
}

var errEmptyFile = errors.New("the file is empty")

// read reads the file, if there is one. While it is missing or empty, as it may be for a moment while it is written, the
// last token stays in use.
func (t *ownToken) read() error {
	if t.file == "" {
		return nil
	}
	text, err := filewatch.ReadFile(t.file)
	if err != nil {
		return err
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return errEmptyFile
	}
	t.last = gateway.Secret(token)
	return nil
}

// current returns the token; empty means none. It waits for the first attempt to log in. The error says why there is no
// login.
func (t *ownToken) current(ctx context.Context) (gateway.Secret, error) {
	if t.login != nil {
		select {
		case <-t.login.tried:
			return t.login.current()
		case <-ctx.Done():
			return "", errNotLoggedIn
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trouble.note(t.read()) // the last token stays in use
	return t.last, nil
}

// isSet reports whether Usher is configured to have a token.
func (t *ownToken) isSet() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.login != nil || t.file != "" || t.last != ""
}

// reportUnknown reports that Consul does not know the token.
func (t *ownToken) reportUnknown(token gateway.Secret) {
	if t.login != nil {
		t.login.reportUnknown(token)
	}
}

// errNotLoggedIn is why there is no login at first.
var errNotLoggedIn = errors.New("usher has not logged in yet")

// ownLogin keeps Usher logged in to Consul.
type ownLogin struct {
	authMethod string
	file       string        // with the bearer token
	lost       chan struct{} // receives when Consul does not know the token; its capacity is 1
	tried      chan struct{} // closed when the first attempt to log in has ended

	mu   sync.Mutex
	now  login
	made time.Time
	err  error // why there is no login
	// unknown means that Consul has said so about the token.
	unknown bool
}

func (l *ownLogin) current() (gateway.Secret, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now.token, l.err
}

// failure returns why there is no login; nil if there is one.
func (l *ownLogin) failure() error {
	_, err := l.current()
	return err
}

func (l *ownLogin) reportUnknown(token gateway.Secret) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if token == l.now.token && token != "" && time.Since(l.made) >= minLoginAge {
		l.unknown = true
		notify(l.lost)
	}
}

// run logs in, and logs in again before the login expires and when Consul no longer knows its token, until ctx ends. After
// each login it calls changed.
func (l *ownLogin) run(ctx context.Context, c *Client, changed func()) {
	for ctx.Err() == nil {
		before := l.replace(ctx, c)
		if ctx.Err() != nil {
			return
		}
		changed()
		sleep(ctx, replacedLinger)
		l.end(ctx, c, before)
		l.awaitNext(ctx)
	}
}

// replace logs in, however long it takes, and returns the login before. That one stays in use meanwhile.
func (l *ownLogin) replace(ctx context.Context, c *Client) (before login) {
	logged := ""
	for failures := 1; ctx.Err() == nil; failures++ {
		in, err := l.logIn(ctx, c)
		if ctx.Err() != nil {
			l.end(context.WithoutCancel(ctx), c, in)
			return login{}
		}
		if err == nil {
			c.logger.Info("logged in to consul", "auth_method", l.authMethod, "accessor", in.accessor, "expires", expiryOf(in))
			c.report("usher's login", nil)
			return l.set(in)
		}
		l.fail(err)
		if failures >= lastingFailures {
			c.report("usher's login", l.problems(err, time.Now()))
		}
		if err.Error() != logged {
			logged = err.Error()
			c.logger.Warn("usher cannot log in to consul; it tries again", "consul", c.Address(), "error", err)
		}
		sleep(ctx, pauseAfter(err, failures))
	}
	return login{}
}

// logIn logs in once, with the bearer token that the file has now.
func (l *ownLogin) logIn(ctx context.Context, c *Client) (login, error) {
	text, err := filewatch.ReadFile(l.file)
	if err != nil {
		return login{}, fmt.Errorf("--login-bearer-token-file: %w", err)
	}
	bearer := strings.TrimSpace(string(text))
	if bearer == "" {
		return login{}, fmt.Errorf("--login-bearer-token-file %s: the file is empty; it has to hold the token of Usher's service account", l.file)
	}
	ctx, cancel := outlive(ctx, lastLogoutsTime) // a login whose answer is not read would stay in Consul
	defer cancel()
	in, err := c.logIn(ctx, l.authMethod, gateway.Secret(bearer), usherComponent)
	c.metrics.countLogin(usherComponent, err)
	switch {
	case errors.Is(err, errACLsOff):
		return login{}, fmt.Errorf("--login-auth-method %s: Consul's ACLs are off; leave the flag out", l.authMethod)
	case errors.Is(err, ErrLoginRefused) && isInvalidInKubernetes(err.Error()):
		return login{}, fmt.Errorf("%w; --login-bearer-token-file %s has to hold a valid token of Usher's service account", err, l.file)
	case errors.Is(err, ErrLoginRefused):
		return login{}, fmt.Errorf("%w; give the auth method a binding rule for Usher's service account", err)
	}
	return in, err
}

// outlive returns a context that ends so much later than ctx.
func outlive(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		sleep(longer, by)
		cancel()
	})
	return longer, func() { stop(); cancel() }
}

func (l *ownLogin) set(in login) (before login) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.endFirst()
	before = l.now
	l.now, l.made, l.err, l.unknown = in, time.Now(), nil, false
	select {
	case <-l.lost: // it was about the login before
	default:
	}
	return before
}

// endFirst records that an attempt to log in has ended. The caller holds mu.
func (l *ownLogin) endFirst() {
	select {
	case <-l.tried:
	default:
		close(l.tried)
	}
}

// fail records why a login failed. A login before it stays in use.
func (l *ownLogin) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.endFirst()
	if l.now.token == "" {
		l.err = err
	}
}

// problems returns the problem that Consul no longer knows the login, or that it expires and cannot be renewed, which begins
// when about three quarters of its lifetime are over. Without a login there is none: Ready has the reason.
func (l *ownLogin) problems(err error, now time.Time) []problem.Problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	forever := l.now.expiry.IsZero()
	if l.now.token == "" || forever && !l.unknown {
		return nil
	}
	p := problem.Problem{Where: "--login-auth-method " + l.authMethod}
	expires := l.now.expiry.UTC().Format(time.RFC3339)
	switch over := !forever && !now.Before(l.now.expiry); {
	case l.unknown && !over:
		p.What = fmt.Sprintf("Consul no longer knows Usher's login, and Usher cannot log in again: %v; Consul answers Usher nothing, and Envoys keep what they have", err)
		return []problem.Problem{p}
	case !over:
		p.What = fmt.Sprintf("Usher's login expires at %s and cannot be renewed: %v; after that, Consul answers Usher nothing, and Envoys keep what they have", expires, err)
	default:
		p.What = fmt.Sprintf("Usher's login expired at %s and cannot be renewed: %v; Consul answers Usher nothing, and Envoys keep what they have", expires, err)
	}
	if stage, _ := (expiry.Validity{From: l.made, Until: l.now.expiry}).Stage(now); stage == expiry.Good {
		p.Severity = problem.Notice
	}
	return []problem.Problem{p}
}

// awaitNext waits until it is time for the next login.
func (l *ownLogin) awaitNext(ctx context.Context) {
	l.mu.Lock()
	expires, made := l.now.expiry, l.made
	l.mu.Unlock()
	var renew <-chan time.Time
	if !expires.IsZero() {
		lifetime := max(minLoginLifetime, expires.Sub(made))
		renew = time.After(time.Until(made.Add(lifetime*7/10 + rand.N(lifetime/10+1))))
	}
	select {
	case <-ctx.Done():
	case <-renew:
	case <-l.lost:
	}
}

// end logs out.
func (l *ownLogin) end(ctx context.Context, c *Client, in login) {
	if in.token == "" {
		return
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), lastLogoutsTime, noAnswer(lastLogoutsTime))
	defer cancel()
	err := c.logOut(ctx, in)
	c.metrics.countLogout(usherComponent, err)
	if err != nil {
		c.logger.Warn("consul did not end a login of usher; delete its token, or set MaxTokenTTL of the auth method",
			"auth_method", l.authMethod, "accessor", in.accessor, "error", err)
	}
}

// expiryOf returns the expiry of a login for the log.
func expiryOf(in login) slog.Value {
	if in.expiry.IsZero() {
		return slog.StringValue("never")
	}
	return slog.TimeValue(in.expiry)
}

// LogOut ends Usher's own login, if it has one, after everything that uses the client. It takes a few seconds at most.
func (c *Client) LogOut() {
	l := c.tokens.login
	if l == nil {
		return
	}
	l.mu.Lock()
	in := l.now
	l.now, l.err = login{}, errLoginsClosed
	l.mu.Unlock()
	l.end(context.Background(), c, in)
}
