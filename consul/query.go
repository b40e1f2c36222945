package consul

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// queryType is an API endpoint of Consul that Usher reads from.
type queryType struct {
	name string // in logs and metrics
	path string // without the query's name
	// params are sent in addition to those of the query.
	params []string
	// local is true if the agent answers from its own cache or configuration.
	local bool
	// optional is true if Usher can do without the answer. If Consul refuses it, the
	// answer is empty.
	optional bool
	// interval is how often Usher sends a query that cannot block; 0 means several
	// times a second.
	interval time.Duration
	// decode returns the value of an answer. prev is the value before, nil at first.
	// Parts that did not change keep their pointers.
	decode func(prev any, a answer) (any, error)
}

// decodeAs adapts a typed decode function for queryType.decode.
func decodeAs[T any](f func(prev *T, a answer) (*T, error)) func(any, answer) (any, error) {
	return func(prev any, a answer) (any, error) {
		p, _ := prev.(*T)
		v, err := f(p, a)
		if err != nil {
			return nil, err
		}
		return v, nil
	}
}

// mayStream reports whether Consul answers blocking queries of this type from its
// streaming backend. That backend does not end them when a snapshot is restored,
// and does not report filtering by ACLs.
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

// String returns the query for logs: "health:web dc=dc2". It leaves out the default
// namespace and partition.
func (q query) String() string {
	var b strings.Builder
	b.WriteString(q.queryType.name)
	if q.name != "" {
		b.WriteString(":" + q.name)
	}
	for _, p := range [][2]string{
		{"ns", q.namespace}, {"partition", q.partition}, {"dc", q.datacenter}, {"peer", q.peer}, {"filter", q.filter},
	} {
		if p[1] != "" && p[1] != gateway.DefaultTenancy {
			b.WriteString(" " + p[0] + "=" + p[1])
		}
	}
	return b.String()
}

// answer is Consul's answer to a query.
type answer struct {
	body     []byte
	index    uint64 // 0: there is none
	streamed bool   // it is from the streaming backend, which answers blocking health queries
	filtered bool   // Consul's ACLs left something out
	refused  bool   // Consul refused it, and the query type is optional
	early    bool   // it has the index of the query, and came before the wait time was over
}

// errNoLeader means that a server knows no leader, so that its state may be empty or
// old. Consul 1.15 also answers so to a health query that its ACLs refuse.
var errNoLeader = errors.New("the consul server has no leader, or its ACLs refuse the answer to Usher's token")

// errHidden means that a list is empty because of ACLs.
var errHidden = &callError{
	outcome: outcomeDenied,
	err:     errors.New("consul's ACLs hide the whole answer; give Usher's token service:read and node:read"),
}

// queryTimeout bounds a query that does not block.
const queryTimeout = 30 * time.Second

// query sends the query. If index is not 0, the query blocks until Consul has a later
// index, or for about wait.
//
// If Consul's streaming backend answers with an empty list, query sends a second
// query that does not use that backend. The backend also answers so if Usher's token
// has lost the right to read the service.
func (c *Client) query(ctx context.Context, q query, index uint64, wait time.Duration) (answer, error) {
	a, err := c.queryOnce(ctx, q, index, wait)
	if err == nil && index > 0 && a.streamed && string(bytes.TrimSpace(a.body)) == "[]" {
		return c.queryOnce(ctx, q, 0, wait)
	}
	return a, err
}

func (c *Client) queryOnce(ctx context.Context, q query, index uint64, wait time.Duration) (answer, error) {
	timeout := queryTimeout
	if index > 0 {
		timeout += wait + wait/16 // Consul adds up to a sixteenth
	} else {
		release, err := c.reads.acquire(ctx)
		if err != nil {
			return answer{}, err
		}
		defer release()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer cancel()
	return c.send(ctx, c.watchHTTP, q, index, wait)
}

// send sends the query with one of the client's HTTP clients.
func (c *Client) send(ctx context.Context, client *http.Client, q query, index uint64, wait time.Duration) (answer, error) {
	begin := time.Now()
	res, err := c.do(ctx, call{
		client: client,
		method: http.MethodGet,
		path:   q.queryType.path,
		name:   q.name,
		params: c.params(q, index, wait),
		token:  c.tokens.current(),
	})
	if err != nil {
		return answer{}, err
	}
	streamed := res.header.Get("X-Consul-Query-Backend") == "streaming"
	// The streaming backend never sets X-Consul-Knownleader to true.
	if res.header.Get("X-Consul-Knownleader") == "false" && !streamed {
		return answer{}, &callError{outcome: outcomeUnreachable, err: errNoLeader}
	}
	n, _ := strconv.ParseUint(res.header.Get("X-Consul-Index"), 10, 64)
	return answer{
		body:     res.body,
		index:    n,
		streamed: streamed,
		filtered: res.header.Get("X-Consul-Results-Filtered-By-Acls") == "true",
		early:    index > 0 && n == index && time.Since(begin) < wait*9/10,
	}, nil
}

// params returns the query's parameters. Any server may answer (stale), as for
// Consul's own proxies. Otherwise the leader would have to answer every watch.
func (c *Client) params(q query, index uint64, wait time.Duration) url.Values {
	p := url.Values{}
	set := func(key, value string) {
		if value != "" {
			p.Set(key, value)
		}
	}
	namespace, partition := c.tenancy(q.namespace, q.partition)
	set("ns", namespace)
	set("partition", partition)
	set("dc", q.datacenter)
	set("peer", q.peer)
	set("filter", q.filter)
	for _, key := range q.queryType.params {
		p.Set(key, "")
	}
	if !q.queryType.local {
		p.Set("stale", "")
	}
	if index > 0 {
		p.Set("index", strconv.FormatUint(index, 10))
		p.Set("wait", strconv.FormatInt(wait.Milliseconds(), 10)+"ms")
	}
	return p
}

// tenancy returns the namespace and partition to send. Consul without Enterprise
// refuses even "default", so they are left out unless the client has others. Consul
// Enterprise takes a missing one from the token. So if one is sent, the other one is,
// too, and a token of another partition than the default needs CONSUL_PARTITION.
func (c *Client) tenancy(namespace, partition string) (toNamespace, toPartition string) {
	own := gateway.ServiceName{Namespace: c.namespace, Partition: c.partition}.OmitDefaults()
	namespace, partition = chooseTenancy(namespace, own.Namespace), chooseTenancy(partition, own.Partition)
	if namespace == "" && partition == "" {
		return "", ""
	}
	return gateway.OrDefault(namespace), gateway.OrDefault(partition)
}

// chooseTenancy returns the namespace or partition to send, "" for none. own is the
// client's.
func chooseTenancy(name, own string) string {
	if name == "" || own == "" {
		return cmp.Or(own, gateway.OmitDefault(name))
	}
	return name
}
