package consul

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// kind is one of the things that can be read of Consul.
type queryType struct {
	name string // in logs and metrics
	path string // what stands before the query's name
	// params are sent beside those of the query.
	params []string
	// local reads are answered by the agent, in its own namespace and
	// partition's view, from its cache.
	local bool
	// optional reads are done without where Consul refuses them: that is an empty
	// answer.
	optional bool
	// every is how often a question is asked that Consul cannot block on; zero
	// means several times a second.
	interval time.Duration
	// decode makes the value of an answer. prev is the value before, nil at
	// first; what did not change keeps its pointer.
	decode func(prev any, a answer) (any, error)
}

// mayStream reports whether Consul answers blocking queries of this kind from its
// streaming backend. That backend does not end them when a snapshot is restored,
// and does not report filtering by ACLs.
func (k *queryType) mayStream() bool { return strings.HasPrefix(k.path, "/v1/health/") }

// query is one question to Consul. Equal queries are asked once, whoever needs
// them.
type query struct {
	queryType  *queryType
	name       string // of a service or a gateway; empty where the kind takes none
	namespace  string // empty: the client's own
	partition  string // empty: the client's own
	datacenter string // empty: the local one
	peer       string
	filter     string
}

// String gives the query as logs name it: "health:web dc=dc2". The default
// namespace and partition are left out.
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

// answer is what Consul says to a query.
type answer struct {
	body  []byte
	index uint64 // 0: there is none
	// streamed says that it comes from the streaming backend, which answers
	// health queries that block.
	streamed bool
	// filtered says that Consul's ACLs left something out.
	filtered bool
	// refused says that there was none, and that the kind is optional.
	refused bool
	// early says that the answer has the index of its query, and came before the
	// wait time was over.
	early bool
}

// errNoLeader is the answer of a server that knows no leader, whose state may be
// empty or old, and of Consul 1.15 to a health query that its ACLs refuse.
var errNoLeader = errors.New("the consul server has no leader, or refuses to answer Usher's token")

// errHidden says that an empty list is empty because of ACLs.
var errHidden = &callError{
	outcome: outcomeDenied,
	err:     errors.New("consul's ACLs hide the whole answer; give Usher's token service:read and node:read"),
}

// askTimeout bounds a query that does not block.
const queryTimeout = 30 * time.Second

// ask sends the query. With an index it blocks until the answer has a later
// one, or for about wait.
//
// An empty list from Consul's streaming backend is asked for again without it:
// that backend also answers one, and nothing else, when Usher's token has lost
// the right to read the service.
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
		// Consul adds up to a sixteenth of its own.
		timeout += wait + wait/16
	} else {
		leave, err := c.reads.acquire(ctx)
		if err != nil {
			return answer{}, err
		}
		defer leave()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer cancel()
	return c.send(ctx, c.watchHTTP, q, index, wait)
}

// send sends the query over one of the client's HTTP clients.
func (c *Client) send(ctx context.Context, over *http.Client, q query, index uint64, wait time.Duration) (answer, error) {
	begin := time.Now()
	res, err := c.do(ctx, call{
		client: over,
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
	// The streaming backend never fills in that header.
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

// params gives the query's parameters. Any server may answer (stale), as
// Consul's own proxies have it: the leader would otherwise carry every watch.
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

// scopes gives the namespace and partition to send. Consul without Enterprise
// refuses even "default", so that is left out unless the client's own is another
// one. Enterprise takes what is missing from the token; so both are sent where
// one is, and a token of another partition than the default one needs
// CONSUL_PARTITION to be set.
func (c *Client) tenancy(namespace, partition string) (toNamespace, toPartition string) {
	own := gateway.ServiceName{Namespace: c.namespace, Partition: c.partition}.OmitDefaults()
	namespace, partition = chooseTenancy(namespace, own.Namespace), chooseTenancy(partition, own.Partition)
	if namespace == "" && partition == "" {
		return "", ""
	}
	return gateway.OrDefault(namespace), gateway.OrDefault(partition)
}

// tenancy returns the namespace or partition to send, "" for none. own is the client's.
func chooseTenancy(name, own string) string {
	if name == "" || own == "" {
		return cmp.Or(own, gateway.OmitDefault(name))
	}
	return name
}

// fact is what is known of a query.
type watchResult struct {
	value any // of the last good answer; nil before the first
	// err says why the latest attempt gave nothing; nil when it did.
	err      error
	failures int // attempts that failed since the last good one
}

// loop keeps a fact up to date with blocking queries
// (https://developer.hashicorp.com/consul/api-docs/features/blocking).
type watchLoop struct {
	query  func(ctx context.Context, index uint64) (answer, error)
	decode func(prev any, a answer) (any, error)
	// learn is told the fact after each attempt; changed says that a value or
	// the state of failure is new.
	update   func(f watchResult, changed bool)
	interval time.Duration // see kind.every
	// replaced is called when Consul's state looks as if it was replaced. It may be
	// nil.
	stateReplaced func()
	refresh       refresh
	filtered      *filteredAnswers // may be nil

	result    watchResult
	index     uint64
	lastIndex uint64            // the latest index that Consul gave
	bodyHash  [sha256.Size]byte // of the last body
	pace      pace
	// filteredUntil is when to send a non-blocking query because Consul's ACLs
	// filtered the last answer. It is zero if they did not.
	rereadAt time.Time
}

// run asks until ctx ends.
func (l *watchLoop) run(ctx context.Context) {
	defer func() { l.filtered.count(l.isFiltered(), false) }()
	for ctx.Err() == nil {
		turn, due := l.refresh.begin(ctx)
		if due || l.isFiltered() && time.Until(l.rereadAt) < firstPause {
			l.index = 0
		}
		asked := l.index
		a, err := l.query(turn, asked)
		if turn.Err() == nil {
			pause := l.handle(a, err)
			l.refresh.answered(asked == 0 && err == nil, l.isFiltered())
			sleep(turn, pause)
		}
		l.refresh.end()
	}
}

func (l *watchLoop) isFiltered() bool { return !l.rereadAt.IsZero() }

// longest returns how long the next query may block, wait at most. Consul filters
// an answer by the rights that the token had when the query came. So a query whose
// answer was filtered blocks until filteredUntil only.
func (l *watchLoop) maxWait(wait time.Duration) time.Duration {
	if !l.isFiltered() {
		return wait
	}
	return min(wait, max(time.Until(l.rereadAt), firstPause)) // Consul takes 0 for its own default
}

// take learns of one attempt, and says how long to wait before the next.
func (l *watchLoop) handle(a answer, err error) time.Duration {
	value, same := l.result.value, false
	if err == nil {
		sum := sha256.Sum256(a.body)
		if same = l.result.value != nil && sum == l.bodyHash && l.result.err == nil; !same {
			value, err = l.decode(l.result.value, a)
		}
		l.bodyHash = sum
	}
	if err != nil {
		return l.handleError(err)
	}
	recovered := l.result.err != nil
	same = same || l.result.value != nil && (value == l.result.value || reflect.DeepEqual(value, l.result.value))
	if !same {
		l.result.value = value
	}
	l.result.err, l.result.failures = nil, 0
	l.index = l.nextIndex(a, same, recovered)
	l.update(l.result, !same || recovered)
	if a.index == 0 {
		// Without an index the next query cannot block.
		return max(l.interval, backOff(3))
	}
	return l.pace.next(time.Now())
}

// fail keeps the last good value. The next query does not block: after an
// outage the index may have gone back, and waiting for a higher one would take
// for ever.
func (l *watchLoop) handleError(err error) time.Duration {
	another := outcomeOf(err) != outcomeOf(l.result.err)
	l.result.err = err
	l.result.failures++
	l.index = 0
	l.update(l.result, l.result.failures <= maxReportedFailures || another)
	return backOff(l.result.failures)
}

// newFailures is how many failures in a row learn reports as changes.
const maxReportedFailures = 3

// next returns the index for the next query. It returns 0 if that must not block.
//
// A restored snapshot ends blocking queries at once: with the index that they were
// sent with, and the content from before. The new state may take a long time to
// reach that index. If the index is the same and the content is not, the rights of
// Usher's token have changed.
func (l *watchLoop) nextIndex(a answer, same, recovered bool) uint64 {
	l.recordFiltered(a, same)
	// A non-blocking answer may come from a server that is a little behind.
	wentBack := a.index < l.lastIndex && a.index > 0 && (l.index > 0 || recovered)
	l.lastIndex = a.index
	if (wentBack || a.early) && l.stateReplaced != nil {
		l.stateReplaced()
	}
	if l.index > 0 && (a.index < l.index || a.early || a.index == l.index && !same) {
		return 0
	}
	return a.index
}

// noteFiltered records whether Consul's ACLs filtered the answer. Answers of the
// streaming backend do not say so.
func (l *watchLoop) recordFiltered(a answer, same bool) {
	was := l.isFiltered()
	switch {
	case a.streamed:
	case !a.filtered:
		l.rereadAt = time.Time{}
	case l.index == 0 || !was:
		pause := l.filtered.pause()
		l.rereadAt = time.Now().Add(pause - rand.N(pause/5))
	}
	l.filtered.count(was, l.isFiltered())
	if was && l.index == 0 && !same {
		l.filtered.showsMore()
	}
}

// Back-off after errors: from firstPause doubling up to longestPause.
const (
	firstPause   = 100 * time.Millisecond
	longestPause = 10 * time.Second
)

// backOff gives the pause after so many failures in a row, with up to half of
// it taken away at random, so that watches do not come back all at once.
func backOff(failures int) time.Duration {
	d := longestPause
	if failures < 8 {
		d = min(d, firstPause<<(failures-1))
	}
	return d - rand.N(d/2)
}

// pace slows a query down whose answer changes all the time. It lets burst
// answers through at once, and then one every interval.
type pace struct {
	full time.Time // when all of the burst may be used again
}

const (
	paceBurst    = 20
	paceInterval = 50 * time.Millisecond
)

// next gives the pause before the next query.
func (p *pace) next(now time.Time) time.Duration {
	if p.full.Before(now) {
		p.full = now
	}
	p.full = p.full.Add(paceInterval)
	return max(0, p.full.Sub(now)-paceBurst*paceInterval)
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// decoding adapts a typed decode function to a kind.
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
