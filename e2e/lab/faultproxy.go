//go:build e2e

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Query selects requests to Consul's HTTP API.
type Query struct {
	Name string // in the test's log
	// Path is the beginning of the request's path. Parameters that it has to have
	// come after a "?", as in "/v1/health/connect/?peer" or "…?peer=far".
	Path string
}

// EveryQuery matches all requests.
var EveryQuery = Query{Name: "everything", Path: "/"}

func (q Query) String() string { return q.Name }

func (q Query) matches(r *http.Request) bool {
	path, params, _ := strings.Cut(q.Path, "?")
	if !strings.HasPrefix(r.URL.Path, path) {
		return false
	}
	want, _ := url.ParseQuery(params) // written by a test
	for key, values := range want {
		if !r.URL.Query().Has(key) || values[0] != "" && values[0] != r.URL.Query().Get(key) {
			return false
		}
	}
	return true
}

// Fault is a way in which Consul may fail to answer a query.
type Fault struct {
	Name   string
	answer func(x *exchange)
}

func (f Fault) String() string { return f.Name }

// exchange is a request that a fault has hit.
type exchange struct {
	w http.ResponseWriter
	r *http.Request
	// proxy and body are for asking Consul itself, with the request's own body.
	proxy *FaultProxy
	body  []byte
	// over ends when the fault is no longer there, or the client is gone.
	over context.Context
}

// Faults are all faults.
var Faults = []Fault{
	withStatus(http.StatusInternalServerError, "rpc error making call: something broke"),
	withStatus(http.StatusServiceUnavailable, "Service Unavailable"),
	withStatus(http.StatusTooManyRequests, "Your IP is issuing too many concurrent connections, please rate limit your calls"),
	withStatus(http.StatusForbidden, "Permission denied"),
	withStatus(http.StatusNotFound, "404 page not found"),
	{"hang", (*exchange).hang},
	{"reset before the answer", (*exchange).reset},
	{"reset in the body", func(x *exchange) { x.half((*exchange).reset) }},
	{"truncated body", func(x *exchange) { x.half((*exchange).close) }},
	withBody("half of the JSON", func(whole []byte) []byte { return whole[:len(whole)/2] }),
	withBody("garbage", body("<html><body>It works!</body></html>")),
	withBody("null", body("null")),
	withBody("[]", body("[]")),
	withBody("{}", body("{}")),
	withBody("[null]", body("[null]")),
	withBody("empty body", body("")),
	withHeader("no index", IndexHeader, ""),
	withHeader("index 0", IndexHeader, "0"),
	withHeader("lower index", IndexHeader, "1"),
	withHeader("same index at once", "", ""),
	withHeader("no leader", "X-Consul-KnownLeader", "false"),
	{"slow body", (*exchange).trickle},
	{"endless body", (*exchange).endless},
}

// Unauthorized is how a Kubernetes API server answers a token that it does not know. Consul answers 403.
var Unauthorized = withStatus(http.StatusUnauthorized, "Unauthorized")

// FaultNamed returns the fault of that name.
func FaultNamed(t *testing.T, name string) Fault {
	t.Helper()
	i := slices.IndexFunc(Faults, func(f Fault) bool { return f.Name == name })
	if i < 0 {
		t.Fatalf("there is no fault %q", name)
	}
	return Faults[i]
}

// withStatus responds with a status.
func withStatus(status int, text string) Fault {
	return Fault{strconv.Itoa(status), func(x *exchange) { http.Error(x.w, text, status) }}
}

// withBody responds as Consul does at the moment, with another body.
func withBody(name string, change func(body []byte) []byte) Fault {
	return Fault{name, func(x *exchange) {
		if a, ok := x.consulAnswer(); ok {
			a.body = change(a.body)
			a.write(x.w)
		}
	}}
}

// body replaces Consul's body.
func body(text string) func([]byte) []byte { return func([]byte) []byte { return []byte(text) } }

// IndexHeader is the header with the index of a blocking query.
const IndexHeader = "X-Consul-Index"

// withHeader responds as Consul does at the moment, with another value of a header,
// or without the header if the value is empty.
func withHeader(name, header, value string) Fault {
	return Fault{name, func(x *exchange) {
		a, ok := x.consulAnswer()
		if !ok {
			return
		}
		a.header.Del(header)
		if value != "" {
			a.header.Set(header, value)
		}
		a.write(x.w)
	}}
}

// hang does not respond while the fault lasts. After that, Consul's answer comes.
func (x *exchange) hang() {
	<-x.over.Done()
	x.proxy.serve(x.w, x.r, x.body)
}

// reset ends the connection with a TCP reset. Bytes that were written before may be
// lost.
func (x *exchange) reset() { x.end(true) }

// close ends the connection after what was written.
func (x *exchange) close() { x.end(false) }

func (x *exchange) end(abruptly bool) {
	conn, _, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2: the stream is reset
	}
	if tcp, is := conn.(*net.TCPConn); is && abruptly {
		_ = tcp.SetLinger(0)
	}
	conn.Close()
}

// half sends half of Consul's answer, and ends the connection.
func (x *exchange) half(end func(*exchange)) {
	a, ok := x.consulAnswer()
	if !ok {
		return
	}
	maps.Copy(x.w.Header(), a.header)
	x.w.Header().Set("Content-Length", strconv.Itoa(max(2, len(a.body))))
	x.w.WriteHeader(a.status)
	_, _ = x.w.Write(a.body[:len(a.body)/2])
	_ = http.NewResponseController(x.w).Flush()
	end(x)
}

// trickle sends Consul's answer byte by byte, so slowly that no client
// waits for it. After the fault, the rest comes at once.
func (x *exchange) trickle() {
	a, ok := x.consulAnswer()
	if !ok {
		return
	}
	rest := bytes.NewReader(a.body)
	x.drip(a, rest, 1)
	_, _ = io.Copy(x.w, rest) // the client may be gone
}

// endlessBody is the size from which an endless body goes on slowly, byte by byte.
const endlessBody = 96 << 20

// endless sends Consul's answer, and then blanks that never end.
func (x *exchange) endless() {
	a, ok := x.consulAnswer()
	if !ok {
		return
	}
	begin := bytes.TrimRight(a.body, "]}\n ")
	blanks := io.LimitReader(blank{}, endlessBody)
	x.drip(a, io.MultiReader(bytes.NewReader(begin), blanks), len(begin)+endlessBody)
	x.reset()
}

// drip sends the first bytes of a body at once and the others slowly, while the
// fault is there.
func (x *exchange) drip(a consulAnswer, body io.Reader, atOnce int) {
	maps.Copy(x.w.Header(), a.header)
	x.w.Header().Del("Content-Length")
	x.w.WriteHeader(a.status)
	flush := http.NewResponseController(x.w).Flush
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	_, err := io.CopyN(x.w, body, int64(atOnce))
	for err == nil || errors.Is(err, io.EOF) {
		if err = flush(); err != nil {
			break
		}
		select {
		case <-x.over.Done():
			return
		case <-tick.C:
			_, err = io.CopyN(x.w, body, 1)
		}
	}
}

// blank reads as blanks.
type blank struct{}

func (blank) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// consulAnswer is what Consul answers at the moment, without waiting for a change.
func (x *exchange) consulAnswer() (consulAnswer, bool) {
	a, err := x.proxy.queryAtOnce(x.r.Clone(x.over), x.body)
	if err != nil {
		if x.over.Err() == nil {
			http.Error(x.w, err.Error(), http.StatusBadGateway)
		} else {
			x.reset()
		}
	}
	return a, err == nil
}

// consulAnswer is an answer of Consul's.
type consulAnswer struct {
	status int
	header http.Header
	body   []byte
}

func (a consulAnswer) write(w http.ResponseWriter) {
	maps.Copy(w.Header(), a.header)
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the client may be gone
}

// FaultProxy is a proxy in front of the HTTP API of a Consul agent, or of a Kubernetes API
// server. It forwards all requests, except those that a fault hits.
type FaultProxy struct {
	URL string // for CONSUL_HTTP_ADDR

	target *url.URL
	client http.RoundTripper
	done   context.Context // ends with the test

	Mu       sync.Mutex
	rules    []*Injection
	Waiting  map[*http.Request]context.CancelFunc // forwarded, not answered yet; the function makes serve look for a fault again
	blocking []Query                              // see BlockOn
	due      map[string]bool                      // see Injection.Clear; by key
	good     []*Counter
}

// Injection is a fault that hits a query, until it is cleared.
type Injection struct {
	proxy *FaultProxy
	query Query
	fault Fault
	over  context.Context
	end   context.CancelFunc
	// guarded by the proxy's Mu
	hits int
	keys map[string]bool // of the requests that it has hit
}

// Counter counts Consul's own answers to a query.
type Counter struct {
	proxy *FaultProxy
	query Query
	n     int // guarded by the proxy's Mu
}

// StartFaultProxy serves on a listener until the test ends. The client reaches
// the agent, whose address has a scheme.
func StartFaultProxy(t *testing.T, listener net.Listener, agent string, client http.RoundTripper) *FaultProxy {
	t.Helper()
	target, err := url.Parse(agent)
	if err != nil {
		t.Fatal(err)
	}
	done, cancel := context.WithCancel(context.Background())
	p := &FaultProxy{
		URL: "http://" + listener.Addr().String(), target: target, client: client, done: done,
		Waiting: map[*http.Request]context.CancelFunc{}, due: map[string]bool{},
	}
	server := &http.Server{Handler: p}
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(listener) }) // ends with the test
	t.Cleanup(func() {
		cancel()
		server.Close()
		work.Wait()
	})
	return p
}

// Inject lets a fault hit a query. Requests that wait for an answer get the fault at
// once.
func (p *FaultProxy) Inject(q Query, f Fault) *Injection {
	in := &Injection{proxy: p, query: q, fault: f, keys: map[string]bool{}}
	in.over, in.end = context.WithCancel(p.done)
	p.Mu.Lock()
	defer p.Mu.Unlock()
	p.rules = append(p.rules, in)
	p.retry(q)
	return in
}

// Clear ends the fault. A request that hangs, and the next request, gets Consul's
// answer at once, whatever index it has.
func (in *Injection) Clear() {
	p := in.proxy
	p.Mu.Lock()
	if i := slices.Index(p.rules, in); i >= 0 {
		p.rules = slices.Delete(p.rules, i, i+1)
		maps.Copy(p.due, in.keys)
	}
	p.Mu.Unlock()
	in.end()
}

// Hits is how many requests the fault has hit.
func (in *Injection) Hits() int {
	in.proxy.Mu.Lock()
	defer in.proxy.Mu.Unlock()
	return in.hits
}

// Wait waits until the fault has hit so many requests.
func (in *Injection) Wait(t *testing.T, n int) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%d requests for %s meet with %q", n, in.query, in.fault), testprocess.StartDeadline, func() error {
		if hits := in.Hits(); hits < n {
			return fmt.Errorf("%d so far", hits)
		}
		return nil
	})
}

// retry answers requests that wait for Consul's answer to the query at once, with a
// fault or with Consul's current answer. Mu must be locked.
func (p *FaultProxy) retry(q Query) {
	for r, again := range p.Waiting {
		if q.matches(r) {
			again()
		}
	}
}

// BlockOn makes requests block whose query does not block at Consul, and which Usher
// would repeat after a minute only. They wait for a fault, or for its end.
func (p *FaultProxy) BlockOn(q Query) {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	p.blocking = append(p.blocking, q)
}

// CountGood begins to count Consul's own answers with status 200 to a query.
func (p *FaultProxy) CountGood(q Query) *Counter {
	c := &Counter{proxy: p, query: q}
	p.Mu.Lock()
	defer p.Mu.Unlock()
	p.good = append(p.good, c)
	return c
}

// Wait waits until there are n answers.
func (c *Counter) Wait(t *testing.T, n int) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("consul answers %s %d times", c.query, n), testprocess.StartDeadline, func() error {
		if got := c.Count(); got < n {
			return fmt.Errorf("%d times so far", got)
		}
		return nil
	})
}

// Count returns the number of answers so far.
func (c *Counter) Count() int {
	c.proxy.Mu.Lock()
	defer c.proxy.Mu.Unlock()
	return c.n
}

// ServeHTTP implements http.Handler.
func (p *FaultProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	p.serve(w, r, body)
}

// serve answers a request with the fault that hits it, or forwards it. When a
// fault comes while Consul lets the client wait, the client gets the fault.
func (p *FaultProxy) serve(w http.ResponseWriter, r *http.Request, body []byte) {
	for r.Context().Err() == nil && p.done.Err() == nil {
		hit, ctx, leave := p.begin(r)
		if hit != nil {
			over, cancel := MergeContexts(hit.over, r.Context())
			defer cancel()
			hit.fault.answer(&exchange{w: w, r: r, proxy: p, body: body, over: over})
			return
		}
		if r.URL.Query().Has("watch") {
			defer leave()
			p.stream(w, r.Clone(ctx))
			return
		}
		a, err := p.forward(r.Clone(ctx), body)
		again := ctx.Err() != nil
		leave()
		switch {
		case err == nil:
			p.count(r, a)
			a.write(w)
			return
		case !again:
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
	}
}

// stream forwards a watch of Kubernetes. It ends in mid-body when a fault comes.
func (p *FaultProxy) stream(w http.ResponseWriter, r *http.Request) {
	proxy := httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(p.target) }, Transport: p.client, FlushInterval: -1,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	proxy.ServeHTTP(w, r)
}

// begin returns the fault that hits the request. Without a fault, it returns the
// context for forwarding the request, until leave is called.
func (p *FaultProxy) begin(r *http.Request) (hit *Injection, ctx context.Context, leave func()) {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	for _, in := range p.rules {
		if in.query.matches(r) {
			in.hits++
			in.keys[key(r)] = true
			return in, nil, nil
		}
	}
	ctx, cancel := MergeContexts(p.done, r.Context())
	p.Waiting[r] = cancel
	return nil, ctx, func() {
		cancel()
		p.Mu.Lock()
		defer p.Mu.Unlock()
		delete(p.Waiting, r)
	}
}

// MergeContexts returns a context that ends with the first of two.
func MergeContexts(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(b)
	stop := context.AfterFunc(a, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// forward sends the request to Consul.
func (p *FaultProxy) forward(r *http.Request, body []byte) (consulAnswer, error) {
	calm, due := p.state(r)
	switch {
	case due:
		return p.queryAtOnce(r, body)
	case calm && r.URL.Query().Has("index"):
		wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
		select {
		case <-r.Context().Done():
			return consulAnswer{}, r.Context().Err()
		case <-time.After(wait):
			return p.queryAtOnce(r, body)
		}
	}
	return p.query(r, body)
}

// state reports whether BlockOn has the request, and whether its answer is due at
// once.
func (p *FaultProxy) state(r *http.Request) (calm, due bool) {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	due = p.due[key(r)]
	delete(p.due, key(r))
	return p.mustBlock(r), due
}

func (p *FaultProxy) mustBlock(r *http.Request) bool {
	return slices.ContainsFunc(p.blocking, func(q Query) bool { return q.matches(r) })
}

// key is the part of the URL that all requests of one watch share.
func key(r *http.Request) string { return r.URL.Path + "?" + withoutWait(r.URL).Encode() }

func withoutWait(u *url.URL) url.Values {
	params := u.Query()
	params.Del("index")
	params.Del("wait")
	return params
}

func (p *FaultProxy) queryAtOnce(r *http.Request, body []byte) (consulAnswer, error) {
	r.URL.RawQuery = withoutWait(r.URL).Encode()
	return p.query(r, body)
}

func (p *FaultProxy) query(r *http.Request, body []byte) (consulAnswer, error) {
	r.URL.Scheme, r.URL.Host, r.Host, r.RequestURI = p.target.Scheme, p.target.Host, "", ""
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Del("Accept-Encoding")
	response, err := p.client.RoundTrip(r)
	if err != nil {
		return consulAnswer{}, err
	}
	defer response.Body.Close()
	a := consulAnswer{status: response.StatusCode, header: response.Header}
	a.body, err = io.ReadAll(response.Body)
	p.Mu.Lock()
	defer p.Mu.Unlock()
	if p.mustBlock(r) {
		a.header.Set(IndexHeader, "1")
	}
	return a, err
}

func (p *FaultProxy) count(r *http.Request, a consulAnswer) {
	p.Mu.Lock()
	defer p.Mu.Unlock()
	for _, c := range p.good {
		if a.status == http.StatusOK && c.query.matches(r) {
			c.n++
		}
	}
}
