package consul

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// loginConsul is a Consul with an auth method. It lets the bearer tokens in accounts log in.
type loginConsul struct {
	mu       sync.Mutex
	accounts map[string]string // bearer tokens by the gateway that their logins may use
	tokens   map[string]string // tokens of logins, by the gateway that they may use
	expiry   time.Duration     // of the tokens; 0: none
	ahead    time.Duration     // of its clock
	requests []loginRequest
	checks   int
	logouts  int
	silent   bool // it does not answer
	status   int  // of all answers, with text; 0: as it should be
	text     string
	hold     chan struct{} // logins wait until it is closed; nil: they do not
	behind   int           // so many checks of a new token say that it is not known
}

func newLoginConsul(accounts map[string]string) *loginConsul {
	return &loginConsul{accounts: accounts, tokens: map[string]string{}}
}

func (c *loginConsul) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// RoundTrip implements http.RoundTripper.
func (c *loginConsul) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	hold := c.hold
	c.mu.Unlock()
	if r.URL.Path == "/v1/acl/login" && hold != nil {
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	}
	c.mu.Lock()
	silent, status, text := c.silent, c.status, c.text
	c.mu.Unlock()
	if silent {
		<-r.Context().Done()
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if status == 0 {
		status, text = c.answer(r, body)
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
}

func (c *loginConsul) answer(r *http.Request, body []byte) (status int, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	token := r.Header.Get("X-Consul-Token")
	switch r.URL.Path {
	case "/v1/acl/login":
		var request loginRequest
		if err := json.Unmarshal(body, &request); err != nil || token != "" {
			return http.StatusBadRequest, "not a login"
		}
		c.requests = append(c.requests, request)
		may, ok := c.accounts[request.BearerToken]
		if !ok {
			return http.StatusForbidden, "Permission denied"
		}
		secret := fmt.Sprint("login-", len(c.requests))
		c.tokens[secret] = may
		answer := map[string]any{"AccessorID": "accessor of " + secret, "SecretID": secret}
		if c.expiry != 0 {
			now := time.Now().Add(c.ahead)
			answer["CreateTime"], answer["ExpirationTime"] = now, now.Add(c.expiry)
		}
		text, _ := json.Marshal(answer)
		return http.StatusOK, string(text)
	case "/v1/acl/logout":
		if _, ok := c.tokens[token]; !ok {
			return http.StatusForbidden, "ACL not found"
		}
		c.logouts++
		delete(c.tokens, token)
		return http.StatusOK, "true"
	}
	c.checks++
	may, ok := c.tokens[token]
	if !ok || c.behind > 0 {
		c.behind--
		return http.StatusForbidden, "ACL not found"
	}
	return http.StatusOK, fmt.Sprintf(`[{"Resource":"service","Segment":"gateway","Access":"write","Allow":%t}]`, may == "gateway")
}

// counts are the numbers of logins and logouts so far, and of the tokens that are left.
type counts struct{ Logins, Logouts, Left int }

func (c *loginConsul) counts() counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return counts{len(c.requests), c.logouts, len(c.tokens)}
}

// jwt returns a bearer token with the claims, and a number that makes it different from others.
func jwt(n int, claims string) string {
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return encode(`{"alg":"RS256"}`) + "." + encode(claims) + "." + encode(fmt.Sprint("signature ", n))
}

// podJWT returns a bearer token of the pod consul/edge-1 that expires in an hour.
func podJWT(n int) string {
	return jwt(n, fmt.Sprintf(`{"exp":%d,"kubernetes.io":{"namespace":"consul","pod":{"name":"edge-1","uid":"u"}}}`, time.Now().Add(time.Hour).Unix()))
}

// want compares the counts.
func (c *loginConsul) want(t *testing.T, when string, want counts) {
	t.Helper()
	if diff := cmp.Diff(want, c.counts()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", when, diff)
	}
}
