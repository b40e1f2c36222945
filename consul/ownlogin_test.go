package consul

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/retry"
)

// ownLab is a client that logs in at a fake Consul, in a bubble.
type ownLab struct {
	consul  *loginConsul
	client  *Client
	file    string
	changes atomic.Int32 // calls of changed
	log     *attrRecorder
}

// runOwnLogin runs a client's own login until the scenario ends, and ends it.
func runOwnLogin(t *testing.T, consul *loginConsul, scenario func(t *testing.T, l *ownLab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &ownLab{consul: consul, file: filepath.Join(t.TempDir(), "token"), log: &attrRecorder{}}
		l.client = newTestClient(t, Config{
			HTTPAddr: "https://consul:8501", Logger: slog.New(l.log), LoginAuthMethod: "components", LoginBearerTokenFile: l.file,
		})
		l.client.aclHTTP.Transport, l.client.watchHTTP.Transport = consul, consul
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.client.tokens.login.run(ctx, l.client, func() { l.changes.Add(1) })
		}()
		scenario(t, l)
		cancel()
		<-done
		l.client.LogOut()
	})
}

func (l *ownLab) write(t *testing.T, bearer string) {
	t.Helper()
	l.consul.set(func() { l.consul.accounts[bearer] = "gateway" })
	if err := os.WriteFile(l.file, []byte(bearer+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// token returns the current token, and why there is none.
func (l *ownLab) token() (string, error) {
	token, err := l.client.tokens.login.current()
	return string(token), err
}

func TestUsherLogsInAndOut(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	runOwnLogin(t, c, func(t *testing.T, l *ownLab) {
		if _, err := l.client.query(t.Context(), query{queryType: meshType}, 0, 0); outcomeOf(err) != outcomeDenied || !strings.Contains(err.Error(), "token-file: ") {
			t.Errorf("a query before the login: %v", err)
		}
		if token, err := l.token(); token != "" || err == nil || !strings.Contains(err.Error(), "--login-bearer-token-file: ") {
			t.Errorf("without the file: %q, %v", token, err)
		}
		l.write(t, "sesame")
		time.Sleep(retry.LongestPause)
		if token, err := l.token(); token != "login-1" || err != nil || l.changes.Load() != 1 {
			t.Errorf("token %q, %v; %d changes", token, err, l.changes.Load())
		}
		time.Sleep(24 * time.Hour)
		c.want(t, "after a day", counts{1, 0, 1})
		if c.requests[0].Meta["component"] != "usher" || c.requests[0].AuthMethod != "components" {
			t.Errorf("login %v", c.requests[0])
		}
	})
	c.want(t, "at the end", counts{1, 1, 0})
}

func TestUsherLogsInAgainBeforeItsLoginExpires(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	c.expiry = time.Hour
	runOwnLogin(t, c, func(t *testing.T, l *ownLab) {
		l.write(t, "first")
		time.Sleep(10 * time.Second)
		l.write(t, "second")
		time.Sleep(40 * time.Minute)
		c.want(t, "early", counts{1, 0, 1})
		time.Sleep(9 * time.Minute)
		if token, err := l.token(); token != "login-2" || err != nil || l.changes.Load() != 2 {
			t.Errorf("token %q, %v; %d changes", token, err, l.changes.Load())
		}
		c.want(t, "before it expires", counts{2, 1, 1})
		if b := c.requests[1].BearerToken; b != "second" {
			t.Errorf("the second login has the bearer token %q, want the one that the file has now", b)
		}
		// While Consul does not answer, the login stays in use.
		c.set(func() { c.silent = true })
		time.Sleep(55 * time.Minute)
		if token, err := l.token(); token != "login-2" || err != nil {
			t.Errorf("while Consul does not answer: %q, %v", token, err)
		}
		c.set(func() { c.silent = false })
		time.Sleep(time.Minute)
		if token, err := l.token(); token != "login-3" || err != nil {
			t.Errorf("after that: %q, %v", token, err)
		}
	})
}

// Consul's clock and Usher's may differ, by more than the login's lifetime.
func TestTheClocksOfConsulAndUsherMayDiffer(t *testing.T) {
	for _, ahead := range []time.Duration{-2 * time.Hour, -time.Hour, 2 * time.Hour} {
		c := newLoginConsul(map[string]string{})
		c.expiry, c.ahead = time.Hour, ahead
		runOwnLogin(t, c, func(t *testing.T, l *ownLab) {
			l.write(t, "sesame")
			time.Sleep(40 * time.Minute)
			c.want(t, "early", counts{1, 0, 1})
			time.Sleep(10 * time.Minute)
			c.want(t, "before it expires", counts{2, 1, 1})
		})
	}
}

// An expiry that is over when it arrives is no reason to log in all the time.
func TestALoginThatHasExpiredIsNotRenewedAllTheTime(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	c.expiry = -time.Hour
	runOwnLogin(t, c, func(t *testing.T, l *ownLab) {
		l.write(t, "sesame")
		time.Sleep(10 * time.Minute)
		if n := c.counts().Logins; n < 2 || n > 15 {
			t.Errorf("%d logins in ten minutes", n)
		}
	})
}

func TestUsherLogsInAgainWhenConsulNoLongerKnowsItsToken(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	runOwnLogin(t, c, func(t *testing.T, l *ownLab) {
		l.write(t, "sesame")
		time.Sleep(time.Minute)
		c.set(func() { c.status, c.text = http.StatusForbidden, "ACL not found" })
		_, err := l.client.query(t.Context(), query{queryType: meshType}, 0, 0)
		if err == nil {
			t.Fatal("the query has an answer")
		}
		c.set(func() { c.status = 0; clear(c.tokens) })
		time.Sleep(time.Minute)
		if token, err := l.token(); token != "login-2" || err != nil || l.changes.Load() != 2 {
			t.Errorf("token %q, %v; %d changes", token, err, l.changes.Load())
		}
		// Late answers about the token before it change nothing.
		l.client.tokens.reportUnknown("login-1")
		time.Sleep(time.Minute)
		c.want(t, "after late answers", counts{2, 0, 1})
		// Nor do servers that do not know a new token yet.
		c.set(func() { clear(c.tokens) })
		l.client.tokens.reportUnknown("login-2")
		for range 10 {
			time.Sleep(100 * time.Millisecond)
			token, _ := l.token()
			l.client.tokens.reportUnknown("login-3")
			if token != "login-2" && token != "login-3" {
				t.Errorf("token %q", token)
			}
		}
		time.Sleep(time.Minute)
		if n := c.counts().Logins; n != 3 {
			t.Errorf("%d logins, want 3", n)
		}
	})
}

func TestWhyUsherCannotLogIn(t *testing.T) {
	for want, change := range map[string]func(*ownLab){
		"give the auth method a binding rule for Usher's service account": func(l *ownLab) { clear(l.consul.accounts) },
		"Consul's ACLs are off; leave the flag out": func(l *ownLab) {
			l.consul.status, l.consul.text = http.StatusUnauthorized, "ACL support disabled"
		},
		`consul has no auth method "components"`: func(l *ownLab) {
			l.consul.status, l.consul.text = http.StatusInternalServerError, `rpc error: auth method "components" not found`
		},
		"no answer within 30s": func(l *ownLab) { l.consul.silent = true },
		"the file is empty":    func(l *ownLab) { _ = os.WriteFile(l.file, nil, 0o600) },
	} {
		c := newLoginConsul(map[string]string{})
		runOwnLogin(t, c, func(t *testing.T, l *ownLab) {
			synctest.Wait() // the first attempt has found no file
			l.write(t, "sesame")
			l.consul.set(func() { change(l) })
			time.Sleep(time.Minute + 10*time.Second)
			if token, err := l.token(); token != "" || err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("token %q, %v, want %q", token, err, want)
			}
			lines := strings.Join(l.log.take(), "\n")
			if n := strings.Count(lines, "WARN usher cannot log in to consul; it tries again"); n < 1 || n > 2 || !strings.Contains(lines, want) {
				t.Errorf("the log says it %d times: %s", n, lines)
			}
			if n := testutil.ToFloat64(l.client.metrics.logins.WithLabelValues("usher", "ok")); n != 0 {
				t.Errorf("%v logins are counted", n)
			}
		})
	}
}

func TestALoginExcludesTokensInTheEnvironment(t *testing.T) {
	for _, name := range []string{"CONSUL_HTTP_TOKEN", "CONSUL_HTTP_TOKEN_FILE"} {
		_, err := NewClient(Config{LoginAuthMethod: "components", Getenv: vars{name: "x"}.get})
		if err == nil || !strings.Contains(err.Error(), "--login-auth-method components: ") || !strings.Contains(err.Error(), "unset "+name+",") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The watchdog needs no token.
func TestConsulIsHeardOfBeforeTheLogin(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	runOwnLogin(t, c, func(t *testing.T, l *ownLab) {
		l.client.watchdogHTTP.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("X-Consul-Token") != "" {
				t.Error("it has a token")
			}
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Request: r}, nil
		})
		if _, err := l.client.try(t.Context(), l.client.targets.current()); err != nil {
			t.Error(err)
		}
	})
}

// attrRecorder is a logRecorder whose lines have their attributes.
type attrRecorder struct{ logRecorder }

// Handle implements slog.Handler.
func (j *attrRecorder) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.Key + "=" + a.Value.String()
		return true
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
	return nil
}
