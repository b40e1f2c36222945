package consul

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// queryType is an API endpoint of Consul that Usher reads from.
type queryType struct {
	name     string        // in logs and metrics
	path     string        // without the query's name
	params   []string      // sent in addition to those of the query
	local    bool          // the agent answers from its own cache or configuration
	public   bool          // the response needs no token
	leader   bool          // only Consul's leader answers, with its newest state, because an old answer would be wrong
	optional bool          // Usher can do without the response; if Consul refuses it, the response is empty
	interval time.Duration // how often Usher sends a query that cannot block; 0: several times a second
	needs    string        // the permission that Usher's token needs; empty: none
	decode   decodeFunc
}

// decodeFunc returns the value of a response, a pointer. prev is the value before, nil at first. Parts that did not
// change keep their pointers.
type decodeFunc func(prev any, r response) (any, error)

// decodeJSON returns a decodeFunc that decodes the body for f, which makes the value. what begins the errors.
func decodeJSON[Body, V any](what string, f func(prev *V, body Body, r response) (*V, error)) decodeFunc {
	return func(prev any, r response) (any, error) {
		var body Body
		var v *V
		err := json.Unmarshal(r.body, &body)
		if err != nil {
			err = unexpected(err.Error())
		} else {
			before, _ := prev.(*V)
			v, err = f(before, body, r)
		}
		if err != nil && !errors.Is(err, errAllFiltered) {
			err = fmt.Errorf("%s: %w", what, err)
		}
		return v, err
	}
}

// unexpected returns the error for a response that Consul does not write. what says so with "it".
func unexpected(what string) error {
	return fmt.Errorf("unexpected answer: %s; check the address of Consul's HTTP API and the proxies in front of it; "+
		"if they are right, report the answer", what)
}

// decodeList is decodeJSON for a list. Consul writes null neither for a list nor as an element, so a response with null
// is not Consul's.
func decodeList[Item, V any](what string, f func(prev *V, list []*Item, r response) (*V, error)) decodeFunc {
	return decodeJSON(what, func(prev *V, list []*Item, r response) (*V, error) {
		if list == nil || slices.Contains(list, nil) {
			return nil, unexpected("it has null where a list or an element belongs")
		}
		return f(prev, list, r)
	})
}

// reuse returns prev if it equals next, so that parts that did not change keep their pointers.
func reuse[T any](prev, next *T) *T {
	if prev != nil && reflect.DeepEqual(prev, next) {
		return prev
	}
	return next
}

// mayStream reports whether Consul answers blocking queries of this type from its streaming backend. That backend does
// not end them when a Consul snapshot is restored, and does not report filtering by ACLs.
func (t *queryType) mayStream() bool { return strings.HasPrefix(t.path, "/v1/health/") }

// query is one query to Consul. Equal queries share one watch.
type query struct {
	queryType  *queryType
	name       string // of a service or a gateway; empty if the type takes none
	namespace  string // empty: the client's own
	partition  string // empty: the client's own
	datacenter string // empty: the local one
	peer       string
	filter     string
}

// String returns the query for logs: "health:web dc=dc2". It leaves out the default namespace and partition.
func (q query) String() string {
	var b strings.Builder
	b.WriteString(q.queryType.name)
	if q.name != "" {
		b.WriteString(":" + q.name)
	}
	for _, p := range q.parameters() {
		if p[1] != "" && p[1] != gateway.DefaultTenancy {
			b.WriteString(" " + p[0] + "=" + p[1])
		}
	}
	return b.String()
}

// atLeader returns the same query to Consul's leader.
func (q query) atLeader() query {
	t := *q.queryType
	t.leader = true
	q.queryType = &t
	return q
}

// withRemedy adds to the error of a denied query what the token needs.
func (q query) withRemedy(err error) error {
	e, ok := errors.AsType[*callError](err)
	switch {
	case !ok || e.outcome != outcomeDenied:
	case isUnknownToken(e):
		e.err = fmt.Errorf("%w: Consul does not know Usher's token; give Usher one that it knows", e.err)
	case q.queryType.needs != "":
		e.err = fmt.Errorf("%w; give Usher's token %s", e.err, q.queryType.needs)
	}
	return err
}

// parameters returns the URL parameters that say what the query is about. Those with an empty value are not sent.
func (q query) parameters() [][2]string {
	return [][2]string{{"ns", q.namespace}, {"partition", q.partition}, {"dc", q.datacenter}, {"peer", q.peer}, {"filter", q.filter}}
}

// response is Consul's response to a query.
type response struct {
	body     []byte
	index    uint64    // 0: there is none
	from     *target   // the agent that gave it
	streamed bool      // it is from the streaming backend, which answers blocking health queries
	filtered bool      // Consul's ACLs left something out
	refused  bool      // Consul refused it, and the query type is optional
	date     time.Time // of the server that wrote it; zero: not known, or it is from a cache
	early    bool      // it has the index of the query, and came before the wait time was over
}

// errNoLeader means that a server knows no leader, so that its state may be empty or old. Consul 1.15 also answers so
// to a health query that its ACLs refuse.
var errNoLeader = errors.New("the consul server has no leader, or its ACLs refuse the answer to Usher's token; " +
	"check \"consul operator raft list-peers\", then the token's permissions")

// errAllFiltered means that a list is empty because of ACLs.
var errAllFiltered = &callError{
	outcome: outcomeDenied,
	err:     errors.New("consul's ACLs hide the whole answer; give Usher's token service:read and node:read"),
}

const (
	// queryTimeout bounds a query that does not block.
	queryTimeout = 30 * time.Second
	// overtime is how late the answer to a query that blocks may come.
	overtime = 10 * time.Second
)

// query sends the query. If index is not 0, the query blocks until Consul has a later index, or for about wait.
//
// If the connection of a query that blocks ends without an answer, query sends one that does not block: an agent and a proxy
// may limit how long a request takes (http_config.write_timeout of Consul 1.22.5 and later), and a connection may die. Only
// if Consul does not answer then, the query has failed.
//
// If Consul's streaming backend answers with an empty list or an index before that of the query, query sends a second query
// that does not use that backend. The backend also answers with an empty list if Usher's token has lost the permission to
// read the service, and it counts other indexes than Consul's state.
func (c *Client) query(ctx context.Context, q query, index uint64, wait time.Duration) (response, error) {
	r, err := c.queryOnce(ctx, q, index, wait)
	if index > 0 && ctx.Err() == nil && isCutOff(err) {
		c.logger.Debug("the connection of a blocking query ended without an answer", "consul", c.Address(), "query", q.String(), "error", err)
		return c.queryOnce(ctx, q, 0, wait)
	}
	if err == nil && index > 0 && r.streamed && (r.index < index || string(bytes.TrimSpace(r.body)) == "[]") {
		return c.queryOnce(ctx, q, 0, wait)
	}
	return r, err
}

// isCutOff reports whether the connection of a call ended without an answer, or seems to be dead.
func isCutOff(err error) bool {
	return outcomeOf(err) == outcomeUnreachable && !errors.Is(err, errNoLeader) && !errors.Is(err, errIncomplete)
}

func (c *Client) queryOnce(ctx context.Context, q query, index uint64, wait time.Duration) (response, error) {
	timeout := queryTimeout
	if index > 0 {
		timeout = wait + wait/16 + overtime // Consul adds up to a sixteenth
	} else {
		release, err := c.reads.acquire(ctx)
		if err != nil {
			return response{}, err
		}
		defer release()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, noAnswer(timeout))
	defer cancel()
	return c.send(ctx, c.watchHTTP, q, index, wait)
}

// valueOf returns the value of the response to a query that Usher sends once.
func valueOf[V any](q query, r response) (*V, error) {
	v, err := q.queryType.decode(nil, r)
	if err != nil {
		return nil, err
	}
	return v.(*V), nil
}

// noAnswer returns the error for a call without a response within the timeout.
func noAnswer(timeout time.Duration) error {
	return fmt.Errorf("no answer within %s; check that Consul runs at this address", timeout)
}

// send sends the query with one of the client's HTTP clients. Without an answer, the watchdog looks at once whether Consul
// answers, unless the caller no longer wants one.
func (c *Client) send(ctx context.Context, client *http.Client, q query, index uint64, wait time.Duration) (response, error) {
	to := c.targets.current()
	r, err := c.sendBy(ctx, route{to, client}, q, index, wait)
	if outcomeOf(err) == outcomeUnreachable && !errors.Is(ctx.Err(), context.Canceled) && to == c.targets.current() {
		notify(c.targets.suspect)
	}
	return r, err
}

// route is how a query gets to Consul.
type route struct {
	to     *target
	client *http.Client
}

// sendBy is send by a route.
func (c *Client) sendBy(ctx context.Context, by route, q query, index uint64, wait time.Duration) (response, error) {
	begin := time.Now()
	token, err := c.tokenFor(ctx, q.queryType)
	if err != nil {
		return response{}, &callError{outcome: outcomeDenied, err: err}
	}
	header, body, err := c.do(ctx, call{
		to: by.to, client: by.client, method: http.MethodGet, path: q.queryType.path, name: q.name,
		params: c.params(q, index, wait), token: token,
	})
	if err != nil {
		c.noteUnknownToken(token, err)
		return response{}, q.withRemedy(err)
	}
	streamed := header.Get("X-Consul-Query-Backend") == "streaming"
	// The streaming backend never sets X-Consul-Knownleader to true.
	if header.Get("X-Consul-Knownleader") == "false" && !streamed {
		return response{}, &callError{outcome: outcomeUnreachable, err: errNoLeader}
	}
	n, _ := strconv.ParseUint(header.Get("X-Consul-Index"), 10, 64)
	return response{
		body:     body,
		index:    n,
		from:     by.to,
		streamed: streamed,
		filtered: header.Get("X-Consul-Results-Filtered-By-Acls") == "true",
		date:     dateOf(header),
		early:    index > 0 && n == index && time.Since(begin) < wait*9/10,
	}, nil
}

// dateOf returns the time at which a server wrote an answer.
func dateOf(header http.Header) time.Time {
	if header.Get("Age") != "" {
		return time.Time{}
	}
	date, _ := http.ParseTime(header.Get("Date"))
	return date
}

// tokenFor returns the token for a query.
func (c *Client) tokenFor(ctx context.Context, t *queryType) (gateway.Secret, error) {
	if login := c.tokens.login; t.public && login != nil {
		token, _ := login.current() // it can do without
		return token, nil
	}
	return c.tokens.current(ctx)
}

// noteUnknownToken makes Usher log in again if the error says that Consul does not know its token.
func (c *Client) noteUnknownToken(token gateway.Secret, err error) {
	if failsForToken(err) {
		c.tokens.reportUnknown(token)
	}
}

// params returns all URL parameters. Any server may answer a watch (stale), as for Consul's own proxies. Otherwise the
// leader would have to answer all of them. What needs the leader waits until it has its newest state (consistent): in the
// default mode, a new leader may answer with an older one
// (https://developer.hashicorp.com/consul/api-docs/features/consistency).
func (c *Client) params(q query, index uint64, wait time.Duration) url.Values {
	p := url.Values{}
	q.namespace, q.partition = c.tenancy(q.namespace, q.partition)
	for _, pair := range q.parameters() {
		if pair[1] != "" {
			p.Set(pair[0], pair[1])
		}
	}
	for _, key := range q.queryType.params {
		p.Set(key, "")
	}
	switch {
	case q.queryType.local:
	case q.queryType.leader:
		p.Set("consistent", "")
	default:
		p.Set("stale", "")
	}
	if index > 0 {
		p.Set("index", strconv.FormatUint(index, 10))
		p.Set("wait", strconv.FormatInt(wait.Milliseconds(), 10)+"ms")
	}
	return p
}

// tenancy returns the namespace and partition to send. Consul without Enterprise refuses even "default", so they are
// left out unless the client has others. Consul Enterprise takes a missing one from the token. So if one is sent, the
// other one is, too, and a token of another partition than the default needs CONSUL_PARTITION.
func (c *Client) tenancy(namespace, partition string) (toNamespace, toPartition string) {
	own := gateway.ServiceName{Namespace: c.namespace, Partition: c.partition}.OmitDefaults()
	namespace, partition = chooseTenancy(namespace, own.Namespace), chooseTenancy(partition, own.Partition)
	if namespace == "" && partition == "" {
		return "", ""
	}
	return gateway.OrDefault(namespace), gateway.OrDefault(partition)
}

// chooseTenancy returns the namespace or partition to send, "" for none. own is the client's.
func chooseTenancy(name, own string) string {
	if name == "" || own == "" {
		return cmp.Or(own, gateway.OmitDefault(name))
	}
	return name
}
