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
type kind struct {
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
	every time.Duration
	// decode makes the value of an answer. prev is the value before, nil at
	// first; what did not change keeps its pointer.
	decode func(prev any, a answer) (any, error)
}

// mayStream reports whether Consul answers blocking queries of this kind from its
// streaming backend. That backend does not end them when a snapshot is restored,
// and does not report filtering by ACLs.
func (k *kind) mayStream() bool { return strings.HasPrefix(k.path, "/v1/health/") }

// query is one question to Consul. Equal queries are asked once, whoever needs
// them.
type query struct {
	kind       *kind
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
	b.WriteString(q.kind.name)
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
var errHidden = &askError{
	outcome: outcomeDenied,
	err:     errors.New("consul's ACLs hide the whole answer; give Usher's token service:read and node:read"),
}

// askTimeout bounds a query that does not block.
const askTimeout = 30 * time.Second

// ask sends the query. With an index it blocks until the answer has a later
// one, or for about wait.
//
// An empty list from Consul's streaming backend is asked for again without it:
// that backend also answers one, and nothing else, when Usher's token has lost
// the right to read the service.
func (c *Client) ask(ctx context.Context, q query, index uint64, wait time.Duration) (answer, error) {
	a, err := c.askOnce(ctx, q, index, wait)
	if err == nil && index > 0 && a.streamed && string(bytes.TrimSpace(a.body)) == "[]" {
		return c.askOnce(ctx, q, 0, wait)
	}
	return a, err
}

func (c *Client) askOnce(ctx context.Context, q query, index uint64, wait time.Duration) (answer, error) {
	timeout := askTimeout
	if index > 0 {
		// Consul adds up to a sixteenth of its own.
		timeout += wait + wait/16
	} else {
		leave, err := c.gate.enter(ctx)
		if err != nil {
			return answer{}, err
		}
		defer leave()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer cancel()
	return c.send(ctx, c.http, q, index, wait)
}

// send sends the query over one of the client's HTTP clients.
func (c *Client) send(ctx context.Context, over *http.Client, q query, index uint64, wait time.Duration) (answer, error) {
	begin := time.Now()
	res, err := c.do(ctx, call{
		over:   over,
		method: http.MethodGet,
		path:   q.kind.path,
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
		return answer{}, &askError{outcome: outcomeUnreachable, err: errNoLeader}
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
	namespace, partition := c.scopes(q.namespace, q.partition)
	set("ns", namespace)
	set("partition", partition)
	set("dc", q.datacenter)
	set("peer", q.peer)
	set("filter", q.filter)
	for _, key := range q.kind.params {
		p.Set(key, "")
	}
	if !q.kind.local {
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
func (c *Client) scopes(namespace, partition string) (toNamespace, toPartition string) {
	own := gateway.ServiceName{Namespace: c.namespace, Partition: c.partition}.OmitDefaults()
	namespace, partition = tenancy(namespace, own.Namespace), tenancy(partition, own.Partition)
	if namespace == "" && partition == "" {
		return "", ""
	}
	return gateway.OrDefault(namespace), gateway.OrDefault(partition)
}

// tenancy returns the namespace or partition to send, "" for none. own is the client's.
func tenancy(name, own string) string {
	if name == "" || own == "" {
		return cmp.Or(own, gateway.OmitDefault(name))
	}
	return name
}

// fact is what is known of a query.
type fact struct {
	value any // of the last good answer; nil before the first
	// err says why the latest attempt gave nothing; nil when it did.
	err      error
	failures int // attempts that failed since the last good one
}

// loop keeps a fact up to date with blocking queries
// (https://developer.hashicorp.com/consul/api-docs/features/blocking).
type loop struct {
	ask    func(ctx context.Context, index uint64) (answer, error)
	decode func(prev any, a answer) (any, error)
	// learn is told the fact after each attempt; changed says that a value or
	// the state of failure is new.
	learn func(f fact, changed bool)
	every time.Duration // see kind.every
	// replaced is called when Consul's state looks as if it was replaced. It may be
	// nil.
	replaced func()
	refresh  refresh
	filtered *filteredAnswers // may be nil

	fact  fact
	index uint64
	known uint64            // the latest index that Consul gave
	sum   [sha256.Size]byte // of the last body
	pace  pace
	// filteredUntil is when to send a non-blocking query because Consul's ACLs
	// filtered the last answer. It is zero if they did not.
	filteredUntil time.Time
}

// run asks until ctx ends.
func (l *loop) run(ctx context.Context) {
	defer func() { l.filtered.count(l.isFiltered(), false) }()
	for ctx.Err() == nil {
		turn, due := l.refresh.begin(ctx)
		if due || l.isFiltered() && time.Until(l.filteredUntil) < firstPause {
			l.index = 0
		}
		asked := l.index
		a, err := l.ask(turn, asked)
		if turn.Err() == nil {
			pause := l.take(a, err)
			l.refresh.answered(asked == 0 && err == nil, l.isFiltered())
			sleep(turn, pause)
		}
		l.refresh.end()
	}
}

func (l *loop) isFiltered() bool { return !l.filteredUntil.IsZero() }

// longest returns how long the next query may block, wait at most. Consul filters
// an answer by the rights that the token had when the query came. So a query whose
// answer was filtered blocks until filteredUntil only.
func (l *loop) longest(wait time.Duration) time.Duration {
	if !l.isFiltered() {
		return wait
	}
	return min(wait, max(time.Until(l.filteredUntil), firstPause)) // Consul takes 0 for its own default
}

// take learns of one attempt, and says how long to wait before the next.
func (l *loop) take(a answer, err error) time.Duration {
	value, same := l.fact.value, false
	if err == nil {
		sum := sha256.Sum256(a.body)
		if same = l.fact.value != nil && sum == l.sum && l.fact.err == nil; !same {
			value, err = l.decode(l.fact.value, a)
		}
		l.sum = sum
	}
	if err != nil {
		return l.fail(err)
	}
	recovered := l.fact.err != nil
	same = same || l.fact.value != nil && (value == l.fact.value || reflect.DeepEqual(value, l.fact.value))
	if !same {
		l.fact.value = value
	}
	l.fact.err, l.fact.failures = nil, 0
	l.index = l.next(a, same, recovered)
	l.learn(l.fact, !same || recovered)
	if a.index == 0 {
		// Without an index the next query cannot block.
		return max(l.every, backOff(3))
	}
	return l.pace.next(time.Now())
}

// fail keeps the last good value. The next query does not block: after an
// outage the index may have gone back, and waiting for a higher one would take
// for ever.
func (l *loop) fail(err error) time.Duration {
	another := outcomeOf(err) != outcomeOf(l.fact.err)
	l.fact.err = err
	l.fact.failures++
	l.index = 0
	l.learn(l.fact, l.fact.failures <= newFailures || another)
	return backOff(l.fact.failures)
}

// newFailures is how many failures in a row learn reports as changes.
const newFailures = 3

// next returns the index for the next query. It returns 0 if that must not block.
//
// A restored snapshot ends blocking queries at once: with the index that they were
// sent with, and the content from before. The new state may take a long time to
// reach that index. If the index is the same and the content is not, the rights of
// Usher's token have changed.
func (l *loop) next(a answer, same, recovered bool) uint64 {
	l.noteFiltered(a, same)
	// A non-blocking answer may come from a server that is a little behind.
	wentBack := a.index < l.known && a.index > 0 && (l.index > 0 || recovered)
	l.known = a.index
	if (wentBack || a.early) && l.replaced != nil {
		l.replaced()
	}
	if l.index > 0 && (a.index < l.index || a.early || a.index == l.index && !same) {
		return 0
	}
	return a.index
}

// noteFiltered records whether Consul's ACLs filtered the answer. Answers of the
// streaming backend do not say so.
func (l *loop) noteFiltered(a answer, same bool) {
	was := l.isFiltered()
	switch {
	case a.streamed:
	case !a.filtered:
		l.filteredUntil = time.Time{}
	case l.index == 0 || !was:
		pause := l.filtered.pause()
		l.filteredUntil = time.Now().Add(pause - rand.N(pause/5))
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
func decoding[T any](f func(prev *T, a answer) (*T, error)) func(any, answer) (any, error) {
	return func(prev any, a answer) (any, error) {
		p, _ := prev.(*T)
		v, err := f(p, a)
		if err != nil {
			return nil, err
		}
		return v, nil
	}
}
