package consul

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/retry"
)

// Config says how to reach Consul. Empty values come from Consul's own environment variables, with the same meaning as
// for Consul's CLI (https://developer.hashicorp.com/consul/commands#environment-variables).
type Config struct {
	// HTTPAddr and GRPCAddr are lists with commas of host:port, http(s)://… or unix://…; only https:// means TLS. The client uses
	// one address of HTTPAddr for everything, the first one at first. GRPCAddr has one for each of them, or one for all.
	HTTPAddr, GRPCAddr string
	// LoginAuthMethod is the auth method at which Usher logs in for its token; empty: its token is in the environment.
	// LoginBearerTokenFile has the bearer token for that.
	LoginAuthMethod, LoginBearerTokenFile string

	Getenv  func(string) string // reads the environment; nil: os.Getenv
	Logger  *slog.Logger        // nil: nothing is logged
	Metrics *Metrics            // nil: nothing is counted
	// Report is called with all problems of a source whenever they change, also with none. It must not block, and need not
	// log them: the Logger has them. It may be nil.
	Report func(source string, problems []problem.Problem)
}

// Client sends requests to Consul's HTTP API. Its methods are safe for concurrent use.
type Client struct {
	targets      *targets
	watchHTTP    *http.Client // for watches
	aclHTTP      *http.Client // for ACL checks of Envoys' tokens, and for logins
	watchdogHTTP *http.Client // for the watchdog; it shares no connection
	reading      atomic.Int64 // buffer sizes of the responses that are being read
	reads        readLimiter  // for non-blocking queries
	auth         *url.Userinfo
	tokens       *ownToken
	// confirmedDomain is what trustDomain returns.
	confirmedDomain atomic.Pointer[string]
	namespace       string // for queries without one, as partition
	partition       string
	grpcAt          func(address) (grpcTarget, error) // the gRPC port at an address
	logger          *slog.Logger
	metrics         *Metrics
	report          func(source string, problems []problem.Problem)
}

// NewClient checks the settings and reads the files that they name. It does not connect.
func NewClient(c Config) (*Client, error) {
	env := environment(c.Getenv)
	if env == nil {
		env = os.Getenv
	}
	logger := cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	targets, err := env.targets(c.HTTPAddr, c.GRPCAddr, logger)
	if err != nil {
		return nil, err
	}
	for _, t := range targets.all {
		if u := (&url.URL{Host: t.http.host}); t.http.scheme == "http" && u.Port() == "" {
			logger.Warn("consul's address has no port, so usher uses port 80; consul's own port is 8500", "consul", t.String(), "write", u.Host+":8500")
		}
	}
	files, err := env.tlsFiles(logger)
	if err != nil {
		return nil, err
	}
	if !targets.any(func(a address) bool { return a.scheme == "https" }) {
		files.paths = nil // Usher needs them for TLS only
	}
	tokens, err := env.tokens(c)
	if err != nil {
		return nil, err
	}
	if c.Report == nil {
		c.Report = func(string, []problem.Problem) {}
	}
	metrics := cmp.Or(c.Metrics, NewMetrics(nil))
	metrics.setAddressInUse(targets)
	return &Client{
		report:       c.Report,
		targets:      targets,
		watchHTTP:    newHTTPClient(targets, files, plainReserved+plainShared, watchPings),
		aclHTTP:      newHTTPClient(targets, files, plainAuthorizations, loginPings),
		watchdogHTTP: newHTTPClient(targets, files, plainWatchdog, nil),
		reads:        make(readLimiter, maxConcurrentReads),
		auth:         env.auth(),
		tokens:       tokens,
		namespace:    env(api.HTTPNamespaceEnvName),
		partition:    env(api.HTTPPartitionEnvName),
		grpcAt:       func(a address) (grpcTarget, error) { return env.grpcTo(a, logger) },
		logger:       logger,
		metrics:      metrics,
	}, nil
}

// Address returns the address of Consul's HTTP API that is in use, for messages.
func (c *Client) Address() string { return c.targets.current().String() }

// addresses returns all addresses of Consul's HTTP API that may be in use.
func (c *Client) addresses() []string {
	all := make([]string, len(c.targets.all))
	for i, t := range c.targets.all {
		all[i] = t.String()
	}
	return all
}

// ownAddress returns an error unless one of the addresses may be in use: what is saved is from another Consul.
func (c *Client) ownAddress(saved []string) error {
	own := c.addresses()
	if slices.ContainsFunc(saved, func(address string) bool { return slices.Contains(own, address) }) {
		return nil
	}
	return fmt.Errorf("it is from consul at %s, and usher now uses %s", strings.Join(saved, ", "), strings.Join(own, ", "))
}

// trustDomain returns the trust domain of the mesh's roots in Consul's last answer to this process; "" before the first.
func (c *Client) trustDomain() string {
	if domain := c.confirmedDomain.Load(); domain != nil {
		return *domain
	}
	return ""
}

// call is one HTTP request to Consul.
type call struct {
	to     *target // nil: the one in use
	method string
	path   string // unescaped, without the last segment
	name   string // the last segment; may be empty
	params url.Values
	token  gateway.Secret // empty: none is sent
	secret gateway.Secret // in the body; errors do not repeat it
	body   []byte
	client *http.Client
}

// do sends the request. It returns the header and the body of a response with status 200.
func (c *Client) do(ctx context.Context, in call) (http.Header, []byte, error) {
	// A blocking query may wait long for the first byte of its response. The rest has to follow within queryTimeout.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in.to = cmp.Or(in.to, c.targets.current())
	req, err := c.request(ctx, in)
	if err != nil {
		return nil, nil, err
	}
	res, err := in.client.Do(req)
	if err != nil {
		return nil, nil, unreachableError(ctx, err)
	}
	defer res.Body.Close()
	late := time.AfterFunc(queryTimeout, func() {
		cancel(errIncomplete)
	})
	defer late.Stop()
	if res.StatusCode != http.StatusOK {
		return nil, nil, statusError(res, cmp.Or(in.secret, in.token))
	}
	body, err := c.readAll(res.Body)
	if err != nil && !errors.Is(err, errTooLarge) && !errors.Is(err, errTooMuch) {
		err = unreachableError(ctx, err)
	}
	return res.Header, body, err
}

// errIncomplete means that Consul, or a proxy in front of it, has sent only the beginning of an answer.
var errIncomplete = fmt.Errorf("the answer is not complete after %s; check Consul's load and the network", queryTimeout)

// The largest responses of Consul are about gateways with thousands of services, and have a few MiB.
const (
	maxBody    = 64 << 20    // of one response
	maxReading = 2 * maxBody // of all responses that are being read
)

var (
	errTooLarge = fmt.Errorf("the answer is larger than %d MiB; check the address; if it is right, the gateway has too many services: split it", maxBody>>20)
	errTooMuch  = fmt.Errorf("other answers of %d MiB are being read, and this one is read later; if this lasts, run a second Usher for some of the gateways", maxReading>>20)
)

// readAll reads a body to its end.
func (c *Client) readAll(r io.Reader) ([]byte, error) {
	buf := make([]byte, 0, 4<<10)
	took := int64(cap(buf))
	c.reading.Add(took)
	defer func() { c.reading.Add(-took) }()
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			return nil, err
		case len(buf) > maxBody:
			return nil, errTooLarge
		case len(buf) < cap(buf):
			continue
		}
		size := min(2*cap(buf), maxBody+1)
		more := int64(size - cap(buf))
		if took += more; c.reading.Add(more) > maxReading {
			return nil, errTooMuch
		}
		buf = append(make([]byte, 0, size), buf...)
	}
}

func (c *Client) request(ctx context.Context, in call) (*http.Request, error) {
	u := url.URL{
		Scheme:   "http",
		Host:     "localhost", // of a unix socket
		Path:     in.path + in.name,
		RawPath:  in.path + url.PathEscape(in.name),
		RawQuery: in.params.Encode(),
	}
	at := in.to.http
	if at.scheme != "unix" {
		u.Scheme, u.Host = at.scheme, at.host
		u.Path, u.RawPath = at.path+u.Path, at.path+u.RawPath
	}
	req, err := http.NewRequestWithContext(context.WithValue(ctx, addressKey{}, at), in.method, u.String(), bytes.NewReader(in.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "usher")
	if in.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if in.token != "" {
		req.Header.Set("X-Consul-Token", string(in.token))
	}
	if c.auth != nil {
		password, _ := c.auth.Password()
		req.SetBasicAuth(c.auth.Username(), password)
	}
	return req, nil
}

// An outcome is the result of a call; it is a metric's label.
type outcome string

const (
	outcomeOK          outcome = "ok"
	outcomeUnreachable outcome = "unreachable" // no response, or from a server that has no leader
	outcomeDenied      outcome = "denied"      // Consul's ACLs deny it to Usher's token
	outcomeMissing     outcome = "missing"     // Consul does not know the path
	outcomeLimited     outcome = "limited"     // Consul takes no more connections or requests
	outcomeFailed      outcome = "failed"      // every other response
)

// callError says why Consul gave no usable response.
type callError struct {
	outcome outcome
	status  int    // the HTTP status; 0 if there is none
	text    string // the unchanged text of a refusal; it may contain the token, so never log it
	err     error
	// pause is how long Consul, or a proxy in front of it, asks to wait before the next request (Retry-After); 0: it does not.
	pause time.Duration
}

func (e *callError) Error() string { return e.err.Error() }
func (e *callError) Unwrap() error { return e.err }

// outcomeOf returns the outcome of a call with this error.
func outcomeOf(err error) outcome {
	if err == nil {
		return outcomeOK
	}
	if e, ok := errors.AsType[*callError](err); ok {
		return e.outcome
	}
	return outcomeFailed
}

// unreachableError returns the error without method and URL: callers name the query.
func unreachableError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if of, ok := errors.AsType[*url.Error](err); ok {
		err = of.Err
	}
	return &callError{outcome: outcomeUnreachable, err: err}
}

// statusError returns the error for a response with another status than 200.
func statusError(res *http.Response, token gateway.Secret) error {
	text, _ := io.ReadAll(io.LimitReader(res.Body, int64(maxQuoted+len(token))))
	err := fmt.Errorf("consul answered %d: %s", res.StatusCode, quote(string(text), string(token)))
	e := &callError{status: res.StatusCode, text: string(text), outcome: outcomeFailed, err: err, pause: retryAfter(res.Header)}
	switch res.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		e.outcome = outcomeDenied
	case http.StatusNotFound:
		e.outcome = outcomeMissing
	case http.StatusTooManyRequests:
		e.outcome = outcomeLimited
		e.err = fmt.Errorf("%w; use https:// for Consul, or raise limits.http_max_conns_per_client of its agent", err)
	}
	return e
}

// maxRetryAfter bounds how long a response makes Usher wait: a query that waits sees no change.
const maxRetryAfter = time.Minute

// retryAfter returns the seconds of the header Retry-After; 0 if it has none. Its other form, a date, needs equal clocks.
func retryAfter(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return time.Duration(min(seconds, int(maxRetryAfter/time.Second))) * time.Second
}

// pauseAfter returns the pause after so many failures in a row, of which this is the last.
func pauseAfter(err error, failures int) time.Duration {
	pause := retry.Pause(failures)
	if e, ok := errors.AsType[*callError](err); ok && e.pause > 0 {
		return max(pause, e.pause+rand.N(e.pause/4)) // not sooner than asked, and not all at once
	}
	return pause
}

// maxQuoted is how many bytes of Consul's text an error repeats.
const maxQuoted = 400

// quote returns the beginning of Consul's text as one line. It leaves out a text that contains the token.
func quote(text, token string) string {
	if token != "" && strings.Contains(text, token) {
		return "the answer is not shown"
	}
	return strings.ToValidUTF8(strings.Join(strings.Fields(text[:min(len(text), maxQuoted)]), " "), "")
}
