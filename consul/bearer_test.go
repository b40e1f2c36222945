package consul

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/gateway"
)

// runLogins runs an authorizer with a fake Consul in a bubble until the scenario ends. It closes it, unless the scenario has.
func runLogins(t *testing.T, consul *loginConsul, scenario func(t *testing.T, a *Authorizer)) (log string) {
	t.Helper()
	return runLoginsWith(t, consul, nil, scenario)
}

// runLoginsWith is runLogins with a store, which may be nil.
func runLoginsWith(t *testing.T, consul *loginConsul, store Store, scenario func(t *testing.T, a *Authorizer)) (log string) {
	t.Helper()
	var text strings.Builder
	synctest.Test(t, func(t *testing.T) {
		c := newTestClient(t, Config{HTTPAddr: "https://consul:8501", Logger: slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		c.aclHTTP.Transport = consul
		a := NewAuthorizer(c, AuthorizerOptions{StaleIfError: time.Hour, BearerAuthMethod: "components", Store: store})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- a.Run(ctx) }()
		scenario(t, a)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		a.Close()
	})
	return text.String()
}

// bearerStream is a stream with a bearer token.
type bearerStream struct {
	t      *testing.T
	a      *Authorizer
	who    Caller
	ctx    context.Context
	cancel context.CancelFunc
}

// open opens a stream with a bearer token, and returns what the first check says.
func open(t *testing.T, a *Authorizer, bearer string) (*bearerStream, error) {
	t.Helper()
	s := &bearerStream{t: t, a: a, who: Caller{Bearer: bearer, Address: "198.18.0.20"}}
	s.ctx, s.cancel = context.WithCancel(t.Context())
	return s, s.check()
}

func mustOpen(t *testing.T, a *Authorizer, bearer string) *bearerStream {
	t.Helper()
	s, err := open(t, a, bearer)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// check checks the stream, again if it was allowed before.
func (s *bearerStream) check() error {
	err := s.a.Authorize(s.ctx, s.who, theGateway)
	s.who.Again = s.who.Again || err == nil
	return err
}

func (s *bearerStream) end() {
	s.cancel()
	synctest.Wait()
}

// remembered returns how many bearer tokens the authorizer remembers.
func (a *Authorizer) remembered() int {
	a.bearers.mu.Lock()
	defer a.bearers.mu.Unlock()
	return len(a.bearers.tokens)
}

// runningLogins returns how many logins wait for Consul's answer.
func (a *Authorizer) runningLogins() (n int) {
	a.bearers.mu.Lock()
	defer a.bearers.mu.Unlock()
	for _, b := range a.bearers.tokens {
		if b.attempt != nil {
			select {
			case <-b.attempt.started:
				n++
			default:
			}
		}
	}
	return n
}

func TestOneLoginForManyStreamsAndChecks(t *testing.T) {
	var bearer string
	c := newLoginConsul(map[string]string{})
	log := runLogins(t, c, func(t *testing.T, a *Authorizer) {
		bearer = podJWT(1)
		c.accounts[bearer] = "gateway"
		c.hold = make(chan struct{})
		results := make(chan error)
		var streams []*bearerStream
		for range 50 {
			go func() {
				s, err := open(t, a, bearer)
				c.set(func() { streams = append(streams, s) })
				results <- err
			}()
		}
		synctest.Wait()
		close(c.hold)
		for range 50 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		for range 20 {
			time.Sleep(30 * time.Second)
			for _, s := range streams {
				if err := s.check(); err != nil {
					t.Error(err)
				}
			}
		}
		c.want(t, "50 streams for ten minutes", counts{1, 0, 1})
		for _, s := range streams[1:] {
			s.end()
		}
		time.Sleep(time.Minute)
		c.want(t, "one stream is left", counts{1, 0, 1})
		streams[0].end()
		time.Sleep(loginLinger - time.Second)
		c.want(t, "shortly after the last stream", counts{1, 0, 1})
		time.Sleep(3 * time.Second)
		c.want(t, "after the last stream", counts{1, 1, 0})
		if n := a.remembered(); n != 0 {
			t.Errorf("%d bearer tokens are remembered", n)
		}
	})
	want := []loginRequest{{AuthMethod: "components", BearerToken: bearer, Meta: map[string]string{"component": "ingress-gateway", "pod": "consul/edge-1"}}}
	if diff := cmp.Diff(want, c.requests); diff != "" {
		t.Errorf("login (-want +got):\n%s", diff)
	}
	if strings.Contains(log, bearer) || strings.Contains(log, "login-1\n") || !strings.Contains(log, `accessor="accessor of login-1"`) {
		t.Errorf("the log:\n%s", log)
	}
}

func TestAnEnvoyThatConnectsAgainNeedsNoNewLogin(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		bearer := podJWT(1)
		c.accounts[bearer] = "gateway"
		for range 10 {
			mustOpen(t, a, bearer).end()
			time.Sleep(loginLinger - 2*time.Second)
		}
		c.want(t, "ten streams in turn", counts{1, 0, 1})
	})
	c.want(t, "at the end", counts{1, 1, 0})
}

func TestALostLoginIsMadeAgainOnce(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		bearer := podJWT(1)
		c.accounts[bearer] = "gateway"
		s := mustOpen(t, a, bearer)
		c.set(func() { clear(c.tokens) })
		if err := s.check(); err != nil {
			t.Errorf("after the token was deleted in Consul: %v", err)
		}
		c.want(t, "after the token was deleted in Consul", counts{2, 0, 1})
		c.set(func() { clear(c.tokens); clear(c.accounts) })
		if err := s.check(); !errors.Is(err, ErrLoginRefused) {
			t.Errorf("after the binding rule was deleted, too: %v", err)
		}
		s.end()
		if n := testutil.ToFloat64(a.client.metrics.logins.WithLabelValues("ingress-gateway", "lost")); n != 2 {
			t.Errorf("%v lost logins are counted, want 2", n)
		}
		if n := testutil.ToFloat64(a.client.metrics.logins.WithLabelValues("ingress-gateway", "refused")); n != 1 {
			t.Errorf("%v refused logins are counted, want 1", n)
		}
	})
}

// Consul's servers may be a little behind the one that made the token.
func TestANewTokenThatAServerDoesNotKnowYetIsWaitedFor(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		bearer := podJWT(1)
		c.accounts[bearer], c.behind = "gateway", 3
		mustOpen(t, a, bearer).end()
		c.want(t, "with a server that is behind", counts{1, 0, 1})
		c.set(func() { c.behind = 1000 })
		s, err := open(t, a, podJWT(2))
		if !errors.Is(err, ErrLoginRefused) {
			t.Errorf("an account without a binding rule: %v", err)
		}
		s.end()
		other := podJWT(3)
		c.set(func() { c.accounts[other] = "gateway" })
		if s, err = open(t, a, other); !errors.Is(err, errLoginLost) || isDecision(err) {
			t.Errorf("with a server that never knows the token: %v", err)
		}
		s.end()
	})
}

func TestABearerTokenIsNotUsedBeyondItsExpiry(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		bearer := podJWT(1)
		c.accounts[bearer] = "gateway"
		s := mustOpen(t, a, bearer)
		time.Sleep(time.Hour - 2*time.Second)
		if err := s.check(); err != nil {
			t.Errorf("before it expires: %v", err)
		}
		c.set(func() { c.silent = true }) // what is remembered does not count either
		time.Sleep(2 * time.Second)
		if err := s.check(); !errors.Is(err, ErrBearerExpired) {
			t.Errorf("after it has expired: %v", err)
		}
		c.set(func() { c.silent = false })
		time.Sleep(2*loginTimeout + logoutRetry)
		c.want(t, "after it has expired, with the stream open", counts{1, 1, 0})
		late, err := open(t, a, bearer)
		if !errors.Is(err, ErrBearerExpired) {
			t.Errorf("a new stream: %v", err)
		}
		late.end()
		s.end()
		c.want(t, "a new stream", counts{1, 1, 0})
	})
}

func TestWhatIsNoUsableBearerTokenReachesNoConsul(t *testing.T) {
	c := newLoginConsul(nil)
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		for bearer, want := range map[string]error{
			"sesame":                 ErrBearerInvalid,
			"a.b":                    ErrBearerInvalid,
			"a.!.c":                  ErrBearerInvalid,
			"a.e30.c.d":              ErrBearerInvalid,
			jwt(1, "[]"):             ErrBearerInvalid,
			jwt(1, `{"exp":"soon"}`): ErrBearerInvalid,
			jwt(1, `{"exp":1}`):      ErrBearerExpired,
			jwt(1, `{"exp":-1e300}`): ErrBearerExpired,
			jwt(1, `{"exp":946684}`): ErrBearerExpired,
		} {
			s, err := open(t, a, bearer)
			if !errors.Is(err, want) {
				t.Errorf("%q: %v, want %v", bearer, err, want)
			}
			s.end()
		}
		if n := a.remembered(); n != 0 {
			t.Errorf("%d of them are remembered", n)
		}
	})
	c.want(t, "none of them", counts{0, 0, 0})
	if e := BearerExpiry(jwt(1, `{"exp":1e300}`)); !e.IsZero() {
		t.Errorf("a token for ever expires at %v", e)
	}
	if e := BearerExpiry(jwt(1, `{"exp":1700000000.5}`)); !e.Equal(time.Unix(1_700_000_000, 0)) {
		t.Errorf("the expiry is %v", e)
	}
}

func TestWithoutAnAuthMethodBearerTokensAreRefused(t *testing.T) {
	a := NewAuthorizer(newTestClient(t, Config{}), AuthorizerOptions{})
	if err := a.Authorize(t.Context(), Caller{Bearer: podJWT(1)}, theGateway); !errors.Is(err, ErrBearerUnused) {
		t.Errorf("error %v, want ErrBearerUnused", err)
	}
}

// A caller that makes tokens up costs Consul no more than one that makes up x-consul-tokens.
func TestMadeUpBearerTokensCauseBoundedLogins(t *testing.T) {
	c := newLoginConsul(nil)
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		c.hold = make(chan struct{})
		var streams []*bearerStream
		var ended sync.WaitGroup
		for i := range 500 {
			s := &bearerStream{t: t, a: a, who: Caller{Bearer: podJWT(i), Address: "stranger"}}
			s.ctx, s.cancel = context.WithCancel(t.Context())
			streams = append(streams, s)
			ended.Go(func() { _ = s.check() })
		}
		synctest.Wait()
		running := a.runningLogins()
		if want := checksFactorTLS * newCallerChecksPerAddress; running != want {
			t.Errorf("%d logins run at the same time, want %d", running, want)
		}
		// Those that leave make no room: their logins run on. Those that wait are not asked for any more.
		for _, s := range streams {
			s.end()
		}
		ended.Wait()
		time.Sleep(2 * expiryInterval)
		if n := a.remembered(); n != checksFactorTLS*newCallerChecksPerAddress {
			t.Errorf("%d tokens are remembered while their logins run", n)
		}
		close(c.hold)
		synctest.Wait()
		if n := c.counts().Logins; n != checksFactorTLS*newCallerChecksPerAddress {
			t.Errorf("%d logins", n)
		}
		time.Sleep(2 * time.Second)
		if n := a.remembered(); n != 0 {
			t.Errorf("%d tokens are remembered", n)
		}
		// A refusal is remembered.
		bearer := podJWT(1000)
		before := c.counts().Logins
		for range 10 {
			s, err := open(t, a, bearer)
			if !errors.Is(err, ErrLoginRefused) {
				t.Errorf("%v, want a refusal", err)
			}
			s.end()
		}
		if n := c.counts().Logins - before; n != 1 {
			t.Errorf("%d logins for ten streams with one token", n)
		}
	})
}

// Checks of different gateways do not share a result, but they share the login.
func TestChecksOfSeveralGatewaysShareARunningLogin(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		bearer := podJWT(1)
		c.accounts[bearer] = "gateway"
		c.hold = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		results := make(chan error)
		for _, name := range []string{"gateway", "other", "third"} {
			go func() { results <- a.Authorize(ctx, Caller{Bearer: bearer}, gateway.ID{Name: name}) }()
		}
		synctest.Wait()
		close(c.hold)
		allowed := 0
		for range 3 {
			if <-results == nil {
				allowed++
			}
		}
		if allowed != 1 {
			t.Errorf("%d of 3 gateways are allowed, want the account's", allowed)
		}
		c.want(t, "three checks", counts{1, 0, 1})
		cancel()
	})
}

// A login whose caller has gone before the answer does not stay in Consul.
func TestALoginWithoutAWaitingCallerIsEnded(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		bearer := podJWT(1)
		c.accounts[bearer] = "gateway"
		c.hold = make(chan struct{})
		s := &bearerStream{t: t, a: a, who: Caller{Bearer: bearer}}
		s.ctx, s.cancel = context.WithCancel(t.Context())
		result := make(chan error)
		go func() { result <- s.check() }()
		synctest.Wait()
		s.cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("the caller that has gone got %v", err)
		}
		close(c.hold)
		time.Sleep(2 * time.Second)
		c.want(t, "after the answer", counts{1, 1, 0})
	})
}

// The login of a token that Consul does not allow the gateway does not linger.
func TestALoginThatIsNoUseEndsWithItsStream(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		bearer := podJWT(1)
		c.accounts[bearer] = "other"
		s, err := open(t, a, bearer)
		if !errors.Is(err, ErrDenied) {
			t.Errorf("%v, want ErrDenied", err)
		}
		s.end()
		time.Sleep(time.Second)
		c.want(t, "after the stream", counts{1, 1, 0})
	})
}

func TestBearerTokensWhileConsulDoesNotAnswer(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	log := runLogins(t, c, func(t *testing.T, a *Authorizer) {
		known, unknown := podJWT(1), podJWT(2)
		c.accounts[known], c.accounts[unknown] = "gateway", "gateway"
		s := mustOpen(t, a, known)
		c.set(func() { c.silent = true })
		begin := time.Now()
		if err := s.check(); err != nil {
			t.Errorf("an open stream: %v", err)
		}
		if took := time.Since(begin); took > authorizeAgainTimeout {
			t.Errorf("the check took %v", took)
		}
		if other, err := open(t, a, unknown); err == nil || isDecision(err) || errors.Is(err, ErrLoginRefused) {
			t.Errorf("a token that Consul has not seen: %v, want no answer", err)
		} else {
			other.end()
		}
		s.end()
		time.Sleep(time.Minute) // the login is over for Usher, and Consul does not hear of it
		begin = time.Now()
		again := mustOpen(t, a, known)
		if took := time.Since(begin); took > authorizeAgainTimeout {
			t.Errorf("the first check of a token that Consul has allowed took %v", took)
		}
		again.end()
		c.set(func() { c.silent = false })
		time.Sleep(2*loginTimeout + 2*logoutRetry)
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.tokens) != 0 {
			t.Errorf("after the outage Consul has the logins %v", slices.Collect(maps.Keys(c.tokens)))
		}
	})
	if n := strings.Count(log, "consul does not answer ACL checks"); n != 1 {
		t.Errorf("the log says %d times that Consul does not answer:\n%s", n, log)
	}
}

func TestAtTheEndNoLoginIsLeft(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	var waiting chan error
	log := runLogins(t, c, func(t *testing.T, a *Authorizer) {
		for i := range 100 {
			bearer := podJWT(i)
			c.set(func() { c.accounts[bearer] = "gateway" })
			mustOpen(t, a, bearer)
		}
		late := podJWT(1000)
		c.set(func() { c.accounts[late], c.hold = "gateway", make(chan struct{}) })
		waiting = make(chan error, 1)
		go func() {
			_, err := open(t, a, late)
			waiting <- err
		}()
		synctest.Wait()
		time.AfterFunc(time.Second, func() { close(c.hold) })
	})
	c.want(t, "at the end", counts{101, 101, 0})
	if strings.Contains(log, "level=WARN") {
		t.Errorf("the log:\n%s", log)
	}
}

func TestALastLogoutThatFailsIsLogged(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	log := runLogins(t, c, func(t *testing.T, a *Authorizer) {
		bearer := podJWT(1)
		c.accounts[bearer] = "gateway"
		mustOpen(t, a, bearer)
		c.set(func() { c.silent = true })
	})
	if !strings.Contains(log, "consul did not end all logins of Envoys") || !strings.Contains(log, "logins=1") {
		t.Errorf("the log:\n%s", log)
	}
}

func TestLoginsWithACLsOff(t *testing.T) {
	c := newLoginConsul(nil)
	c.status, c.text = http.StatusUnauthorized, "ACL support disabled"
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		mustOpen(t, a, podJWT(1)).end()
		if n := a.allowed.allow.Len(); n != 0 {
			t.Errorf("%d callers are remembered", n)
		}
	})
}

// Answers that are Consul's own (1.22.0 and 1.15.1).
func TestWhatAnAnswerToALoginMeans(t *testing.T) {
	for text, want := range map[string]struct {
		status  int
		refused bool
		part    string
	}{
		"Permission denied": {403, true, "403: Permission denied"},
		"lookup failed: [invalid bearer token, service account token has been invalidated]": {500, true, "invalidated"},
		"rpc error making call: lookup failed: service account jwt not valid":               {500, true, "not valid"},
		`annotation lookup failed: serviceaccounts "a" is forbidden`:                        {500, false, "forbidden"},
		`Post "https://10.0.0.1/": dial tcp: connection refused`:                            {500, false, "connection refused"},
		"No cluster leader": {500, false, "No cluster leader"},
	} {
		c := newLoginConsul(nil)
		c.status, c.text = want.status, text
		runLogins(t, c, func(t *testing.T, a *Authorizer) {
			s, err := open(t, a, podJWT(1))
			if err == nil || errors.Is(err, ErrLoginRefused) != want.refused || !strings.Contains(err.Error(), want.part) {
				t.Errorf("%s: %v", text, err)
			}
			s.end()
		})
	}
}

func TestAnErrorDoesNotRepeatTheBearerToken(t *testing.T) {
	c := newLoginConsul(nil)
	runLogins(t, c, func(t *testing.T, a *Authorizer) {
		bearer := podJWT(1)
		c.set(func() { c.status, c.text = http.StatusForbidden, "Permission denied for "+bearer })
		s, err := open(t, a, bearer)
		if err == nil || strings.Contains(err.Error(), bearer) {
			t.Errorf("the error is %v", err)
		}
		s.end()
	})
}

func TestALoginHasTheClientsPartition(t *testing.T) {
	var query string
	c := newTestClient(t, Config{HTTPAddr: "https://consul:8501", Getenv: vars{"CONSUL_PARTITION": "team"}.get})
	c.aclHTTP.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
		query = r.URL.RawQuery
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(`{"SecretID": "s"}`))}, nil
	})
	if _, err := c.logIn(t.Context(), "components", gateway.Secret(podJWT(1)), "usher"); err != nil || query != "ns=default&partition=team" {
		t.Errorf("%v; the login has the parameters %q", err, query)
	}
}

// roundTrip is a function that answers requests.
type roundTrip func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
