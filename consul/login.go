package consul

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

const (
	// loginTimeout bounds a login, for which Consul asks Kubernetes. It is long, because a login whose answer comes too late
	// stays in Consul.
	loginTimeout  = 30 * time.Second
	logoutTimeout = 10 * time.Second
)

// ErrLoginRefused means that Consul takes a bearer token for no login: it is not valid, or it may not log in at the auth
// method.
var ErrLoginRefused = errors.New("consul refuses the login")

// login is a login at one of Consul's auth methods
// (https://developer.hashicorp.com/consul/docs/secure/acl/auth-method).
type login struct {
	accessor string         // names the token in Consul's log and UI
	token    gateway.Secret // the Consul token; empty: there is no login
	expiry   time.Time      // of the Consul token, by this process's clock; zero: never
}

// loginRequest is the request of POST /v1/acl/login.
type loginRequest struct {
	AuthMethod, BearerToken string
	Meta                    map[string]string // Consul shows it in the description of the token
}

// logIn exchanges a bearer token for a Consul token. component is what uses the token. An error that is ErrLoginRefused
// or errACLsOff is Consul's answer; every other one means that there is none.
func (c *Client) logIn(ctx context.Context, authMethod string, bearer gateway.Secret, component string) (login, error) {
	request := loginRequest{AuthMethod: authMethod, BearerToken: string(bearer), Meta: map[string]string{"component": component}}
	if claims, err := parseClaims(string(bearer)); err == nil && claims.pod() != "" {
		request.Meta["pod"] = claims.pod()
	}
	body, err := json.Marshal(request)
	if err != nil {
		return login{}, err
	}
	params := url.Values{}
	if namespace, partition := c.tenancy("", ""); namespace != "" {
		params.Set("ns", namespace)
		params.Set("partition", partition)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, loginTimeout, noAnswer(loginTimeout))
	defer cancel()
	begin := time.Now()
	_, body, err = c.do(ctx, call{
		client: c.aclHTTP, method: http.MethodPost, path: "/v1/acl/login", params: params, body: body, secret: bearer,
	})
	if err != nil {
		return login{}, loginError(err, authMethod)
	}
	var answer struct {
		AccessorID, SecretID       string
		CreateTime, ExpirationTime time.Time
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.SecretID == "" {
		return login{}, unexpected("it is no ACL token")
	}
	in := login{accessor: answer.AccessorID, token: gateway.Secret(answer.SecretID), expiry: answer.ExpirationTime}
	if !in.expiry.IsZero() && !answer.CreateTime.IsZero() { // Consul's clock may differ from this process's
		in.expiry = begin.Add(answer.ExpirationTime.Sub(answer.CreateTime))
	}
	return in, nil
}

// isInvalidInKubernetes reports whether Consul answers that Kubernetes does not accept a token. It does so with 500, as when it
// cannot ask Kubernetes or may not read the service account.
func isInvalidInKubernetes(text string) bool {
	return strings.Contains(text, "lookup failed: ") && !strings.Contains(text, "annotation lookup failed: ")
}

// loginError returns what Consul's answer to a login means.
func loginError(err error, authMethod string) error {
	e, ok := errors.AsType[*callError](err)
	switch {
	case !ok:
	case isACLsOff(e):
		return errACLsOff
	case e.status == http.StatusForbidden, isInvalidInKubernetes(e.text):
		return fmt.Errorf("%w at the auth method %q (%w)", ErrLoginRefused, authMethod, err)
	case strings.Contains(e.text, "auth method") && strings.Contains(e.text, "not found"):
		return fmt.Errorf("consul has no auth method %q (%w); create it, or name another one", authMethod, err)
	}
	return fmt.Errorf("login at the auth method %q: %w", authMethod, err)
}

// logOut ends a login. Consul then no longer knows its token.
func (c *Client) logOut(ctx context.Context, of login) error {
	ctx, cancel := context.WithTimeoutCause(ctx, logoutTimeout, noAnswer(logoutTimeout))
	defer cancel()
	_, _, err := c.do(ctx, call{client: c.aclHTTP, method: http.MethodPost, path: "/v1/acl/logout", token: of.token})
	if e, ok := errors.AsType[*callError](err); ok && (isUnknownToken(e) || isACLsOff(e)) {
		return nil // there is no such login any more
	}
	return err
}

// claims are what Usher reads of a bearer token that is a JWT. It does not verify the token: Consul does. So claims only
// shorten what Consul allows, and describe a login.
type claims struct {
	Expiry     float64 `json:"exp"` // in seconds since 1970; 0: never
	Kubernetes struct {
		Namespace string                `json:"namespace"`
		Pod       struct{ Name string } `json:"pod"`
	} `json:"kubernetes.io"`
}

var errNoJWT = errors.New("it is no JWT")

// parseClaims reads the claims of a JWT in its compact form (RFC 7519).
func parseClaims(token string) (claims, error) {
	var c claims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errNoJWT
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(text, &c) != nil {
		return claims{}, errNoJWT
	}
	return c, nil
}

// expiry returns when the token expires; zero: never.
func (c claims) expiry() time.Time {
	const never = 1 << 36 // the year 4147; a larger number would overflow time.Time
	if c.Expiry == 0 || c.Expiry > never {
		return time.Time{}
	}
	return time.Unix(int64(max(c.Expiry, 0)), 0)
}

// pod returns the pod that the token was made for, as NAMESPACE/NAME; "" if there is none.
func (c claims) pod() string {
	if c.Kubernetes.Namespace == "" || c.Kubernetes.Pod.Name == "" {
		return ""
	}
	return c.Kubernetes.Namespace + "/" + c.Kubernetes.Pod.Name
}

// BearerExpiry returns when a bearer token expires by its own account; zero: never, or it does not say.
func BearerExpiry(token string) time.Time {
	c, err := parseClaims(token)
	if err != nil {
		return time.Time{}
	}
	return c.expiry()
}
