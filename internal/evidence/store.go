package evidence

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/settings"
)

// What a Store keeps at most.
const (
	bucketTime = 10 * time.Second // what a Window is counted in
	numBuckets = int(Window / bucketTime)
	// reportDelay is how late a report can be: Envoy collects entries for a second. Kubernetes rounds the time of a change
	// down to a second as well, and a connection must not seem to begin after a change that it did not follow.
	reportDelay = 2 * time.Second
	headerTime  = 30 * time.Second // for which an address sends headers after it has begun a connection with one
	maxPeers    = 256              // connecting addresses of a port
	maxPorts    = 2000
	// minMalformed is how many connections of one address in a row have to be malformed: a load balancer that sends
	// headers to a listener that is off has only such ones.
	minMalformed = 3
	// maxChecks is how many connections of one address that sends headers can be health checks in a bucketTime, if it is
	// not known how often it checks.
	maxChecks = 5
)

// Store counts connections. Its methods may be called from any goroutine. Use NewStore.
type Store struct {
	connections *prometheus.CounterVec
	now         func() time.Time

	mu       sync.Mutex // guards the rest, and the ports
	ports    map[portKey]*port
	watchers map[*watcher]struct{}
}

// portKey is what is counted together: all instances of a gateway behind one load balancer, as far as their listeners
// follow it, or as far as they do not.
type portKey struct {
	gateway        gateway.ID
	kubernetes     gateway.KubernetesService
	followsService bool
	number         int
}

// watcher waits for changes of a gateway's ports behind a Service.
type watcher struct {
	gateway gateway.ID
	service gateway.KubernetesService
	changed latest.Value[struct{}] // put with the store's mu locked
}

// NewStore returns an empty store, and registers its metric.
func NewStore(r prometheus.Registerer) *Store {
	s := &Store{
		connections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "usher_reported_connections_total",
			Help: "Connections to a gateway's port that its Envoys have reported to this Usher, by what they show about PROXY headers: " +
				"header, no_header, refused (by a strict listener, for want of a header), malformed (neither HTTP nor TLS, as a PROXY header is " +
				"for a listener that is off), untrusted (from outside trusted_cidrs), ambiguous (a header without an address, as health checks have it, or none) " +
				"or unknown (without data, such as a TCP health check).",
		}, []string{"gateway", "port", "type"}),
		now: time.Now, ports: map[portKey]*port{}, watchers: map[*watcher]struct{}{},
	}
	if r != nil {
		r.MustRegister(s)
	}
	return s
}

// Describe implements prometheus.Collector.
func (s *Store) Describe(ch chan<- *prometheus.Desc) { s.connections.Describe(ch) }

// Collect implements prometheus.Collector. The series of a port end a Window after its last report.
func (s *Store) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	s.forgetOld(s.now())
	s.mu.Unlock()
	s.connections.Collect(ch)
}

// typeNames are the types' values of the metric's label.
var typeNames = [numTypes]string{"unknown", "header", "no_header", "refused", "malformed", "ambiguous", "untrusted", "untrusted"}

// Watch calls put with the summaries of a gateway's listeners that follow a Service, by port, whenever they have changed, at most once a second,
// until ctx ends; put must not block. Summaries age only when something is reported: a reader compares Last with its
// own clock.
func (s *Store) Watch(ctx context.Context, id gateway.ID, service gateway.KubernetesService, put func(Ports)) {
	w := &watcher{gateway: id, service: service, changed: latest.New[struct{}]()}
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	w.changed.Put(struct{}{}) // there may be some already
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, w)
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.changed.C():
		}
		ports := s.following(id, service)
		if len(ports) == 0 {
			continue
		}
		put(ports)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// Gateway returns the summaries of a gateway's listeners that follow no Service, by port and mode. Connections to
// listeners of a mode that no instance has any more are there until a Window after the last of them has ended.
func (s *Store) Gateway(id gateway.ID) PortModes {
	all := PortModes{}
	s.summarize(func(k portKey) bool { return k.gateway == id && !k.followsService }, func(of PortMode, summary Summary) {
		all[of] = all[of].merge(summary)
	})
	return all
}

func (s *Store) following(id gateway.ID, service gateway.KubernetesService) Ports {
	all := Ports{}
	s.summarize(func(k portKey) bool { return k.gateway == id && k.kubernetes == service && k.followsService }, func(of PortMode, summary Summary) {
		all[of.Port] = summary
	})
	return all
}

// summarize calls add with the summaries of the selected ports.
func (s *Store) summarize(selected func(portKey) bool, add func(PortMode, Summary)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for k, p := range s.ports {
		if !selected(k) {
			continue
		}
		for mode, c := range p.counts {
			if recent(c.updated, now) {
				add(PortMode{k.number, mode}, p.summary(c, now))
			}
		}
	}
}

// add counts connections to a listener.
func (s *Store) add(l Listener, connections []connection) {
	if len(connections) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	p := s.port(portKey{l.Gateway, l.Kubernetes, l.FollowsService, l.Port}, now)
	if p == nil {
		return
	}
	for _, c := range connections {
		t := p.add(l, c, now)
		s.connections.WithLabelValues(l.Gateway.String(), strconv.Itoa(l.Port), typeNames[t]).Inc()
	}
	for w := range s.watchers {
		if l.FollowsService && w.gateway == l.Gateway && w.service == l.Kubernetes {
			w.changed.Put(struct{}{})
		}
	}
}

// port returns the counts of a port; nil if there is no room. mu is locked.
func (s *Store) port(k portKey, now time.Time) *port {
	if p := s.ports[k]; p != nil {
		return p
	}
	if len(s.ports) >= maxPorts {
		s.forgetOld(now)
	}
	if len(s.ports) >= maxPorts {
		return nil
	}
	peers, err := simplelru.NewLRU[netip.Addr, *peer](maxPeers, nil)
	if err != nil {
		panic(err) // the size is a constant
	}
	p := &port{counts: map[settings.Mode]*counts{}, peers: peers}
	s.ports[k] = p
	return p
}

// forgetOld forgets the ports without a report in the last Window, and the series of those that are not counted under
// another key either. mu is locked.
func (s *Store) forgetOld(now time.Time) {
	type series struct{ gateway, port string }
	seriesOf := func(k portKey) series { return series{k.gateway.String(), strconv.Itoa(k.number)} }
	old, kept := map[series]struct{}{}, map[series]struct{}{}
	for k, p := range s.ports {
		if recent(p.updated, now) {
			kept[seriesOf(k)] = struct{}{}
			continue
		}
		old[seriesOf(k)] = struct{}{}
		delete(s.ports, k)
	}
	for of := range old {
		if _, ok := kept[of]; !ok {
			s.connections.DeletePartialMatch(prometheus.Labels{"gateway": of.gateway, "port": of.port})
		}
	}
}

// port are the connections to one port over the last Window.
type port struct {
	updated time.Time
	counts  map[settings.Mode]*counts // by countedMode
	// What is known of an address holds for listeners of all modes: a strict one cannot tell a health check by itself.
	peers *simplelru.LRU[netip.Addr, *peer]
}

// counts are connections that are counted together.
type counts struct {
	updated     time.Time
	restricted  time.Time          // when a listener with trusted_cidrs last had one
	buckets     [numBuckets]bucket // by time modulo Window
	first, last [numTypes]time.Time
	began       [numTypes]time.Time // when the newest one began, at the earliest
	// refusedTrusted says whether trusted_cidrs named networks when the last connection was refused.
	refusedTrusted bool
	untrusted      netip.Addr // of the last UntrustedHeader
}

// bucket counts the connections of a bucketTime.
type bucket struct {
	begin  time.Time
	counts [numTypes]int
}

// peer is what is known of a connecting address.
type peer struct {
	header     time.Time // when its newest connection with a header began
	malformed  int       // connections, since the last one that Envoy understood
	since      time.Time // of the first one of these
	trusted    bool      // trusted_cidrs names it
	last       [numTypes]time.Time
	counts     [numTypes]int
	idle       rate // connections without data to a listener that is not strict: health checks
	closed     rate // by a strict listener, for want of a header
	ambiguous  rate
	maxIdle    int       // of one bucketTime
	lastChecks time.Time // when it was last known that it checks
}

// rate counts the connections of a bucketTime.
type rate struct {
	begin time.Time
	count int
}

func (r *rate) add(now time.Time) int {
	if begin := now.Truncate(bucketTime); begin != r.begin {
		*r = rate{begin: begin}
	}
	r.count++
	return r.count
}

// add counts a connection and returns its type, which what is known of its address can change.
func (p *port) add(l Listener, c connection, now time.Time) Type {
	p.updated = now
	of := p.countsOf(l, now)
	t, mayBeCheck := c.classify(l)
	if !c.counts(l) { // such addresses must not displace others
		of.add(t, c.duration, now)
		if t == UntrustedHeader {
			of.untrusted = c.peer
		}
		return t
	}
	from, _ := p.peers.Get(c.peer)
	if from == nil {
		from = &peer{}
		p.peers.Add(c.peer, from)
	}
	from.trusted = len(l.Trusted) > 0 && trusts(l.Trusted, c.peer)
	t = from.typeOf(t, mayBeCheck, l, c, now)
	if t == Refused {
		of.refusedTrusted = len(l.Trusted) > 0
	}
	from.counts[t]++
	from.last[t] = now
	of.add(t, c.duration, now)
	return t
}

// countsOf returns where a listener's connections are counted.
func (p *port) countsOf(l Listener, now time.Time) *counts {
	of := p.counts[l.countedMode()]
	if of == nil {
		of = &counts{}
		p.counts[l.countedMode()] = of
	}
	if len(l.Trusted) > 0 {
		of.restricted = now
	}
	return of
}

// countedMode is what keeps the connections to listeners of one mode apart from others: "" for all modes of listeners that
// follow a Service, because their mode follows from what connections have shown before.
func (l Listener) countedMode() settings.Mode {
	if l.FollowsService {
		return ""
	}
	return l.Mode
}

// typeOf returns the type of a connection after what is known of its address, and adds to that.
func (f *peer) typeOf(t Type, mayBeCheck bool, l Listener, c connection, now time.Time) Type {
	switch {
	case t == WithHeader:
		f.malformed = 0
		if began := now.Add(-c.duration); began.After(f.header) {
			f.header = began
		}
	case mayBeCheck && f.isCheck(now):
		return Unknown
	case t == WithoutHeader && l.Mode != settings.Off && f.sendsHeaders(now) && f.ambiguous.add(now) <= maxChecks:
		return Ambiguous
	case t == WithoutHeader:
		f.malformed = 0
	case t == Malformed:
		if f.malformed == 0 {
			f.since = now
		}
		if f.malformed++; f.malformed < minMalformed {
			return Unknown // a client with a fault, perhaps behind a load balancer
		}
	case t == Unknown && !c.sentData:
		f.maxIdle, f.lastChecks = max(f.maxIdle, f.idle.add(now)), now
	}
	return t
}

// isCheck reports whether a connection that a strict listener has closed is a health check, as far as it is known. The
// listener's log does not show whether data came. So it is one if its address had sent nothing to the listener before
// that was strict, and does not come much more often now, or if the address sends headers otherwise.
func (f *peer) isCheck(now time.Time) bool {
	most := 0
	switch {
	case recent(f.lastChecks, now):
		most = 2*f.maxIdle + 1
	case f.sendsHeaders(now):
		most = maxChecks
	}
	if f.closed.add(now) > most {
		return false
	}
	if f.maxIdle > 0 {
		f.lastChecks = now // it goes on to check
	}
	return true
}

func (f *peer) sendsHeaders(now time.Time) bool {
	return !f.header.IsZero() && now.Sub(f.header) < headerTime
}

func recent(t, now time.Time) bool { return !t.IsZero() && now.Sub(t) < Window }

// add counts a connection in its bucket.
func (c *counts) add(t Type, duration time.Duration, now time.Time) {
	begin := now.Truncate(bucketTime)
	b := &c.buckets[int(begin.Unix()/int64(bucketTime.Seconds()))%numBuckets]
	if b.begin != begin {
		*b = bucket{begin: begin}
	}
	b.counts[t]++
	if !recent(c.last[t], now) {
		c.first[t] = now
	}
	c.last[t], c.updated = now, now
	if began := now.Add(-duration - reportDelay); began.After(c.began[t]) {
		c.began[t] = began
	}
}

// summary returns what counts say, and the addresses of the connections.
func (p *port) summary(c *counts, now time.Time) Summary {
	tally := func(t Type) Tally { return p.tally(c, t, now) }
	headers := tally(UntrustedHeader)
	if headers.Count > 0 {
		headers.Addresses = []netip.Addr{c.untrusted}
	}
	return Summary{
		Restricted: recent(c.restricted, now),
		WithHeader: tally(WithHeader), WithoutHeader: tally(WithoutHeader), Refused: tally(Refused),
		Malformed: tally(Malformed), Ambiguous: tally(Ambiguous), Untrusted: tally(Untrusted).merge(headers), UntrustedHeaders: headers,
		Unknown: tally(Unknown), OnlyMalformed: p.onlyMalformed(now),
		RefusedTrusted: c.refusedTrusted && recent(c.last[Refused], now), RefusedHeaderSenders: p.refusesHeaderSenders(now),
	}
}

// onlyMalformed is the longest run of one address, and the addresses of all.
func (p *port) onlyMalformed(now time.Time) (longest Tally) {
	var addresses []netip.Addr
	for _, a := range p.peers.Keys() {
		f, _ := p.peers.Peek(a)
		if !f.trusted || f.malformed < minMalformed || !recent(f.last[Malformed], now) {
			continue
		}
		addresses = append(addresses, a)
		if run := (Tally{Count: f.malformed, First: f.since, Last: f.last[Malformed]}); run.isLonger(longest) {
			longest = run
		}
	}
	longest.Addresses = firstAddresses(addresses)
	return longest
}

// isLonger compares how long connections have come, and then their number.
func (t Tally) isLonger(other Tally) bool {
	if d := t.Last.Sub(t.First) - other.Last.Sub(other.First); d != 0 {
		return d > 0
	}
	return t.Count > other.Count
}

func (p *port) refusesHeaderSenders(now time.Time) bool {
	return slices.ContainsFunc(p.peers.Values(), func(f *peer) bool {
		return recent(f.last[Refused], now) && recent(f.last[WithHeader], now)
	})
}

// tally returns the zero Tally if there was no such connection in the last Window.
func (p *port) tally(c *counts, t Type, now time.Time) Tally {
	if !recent(c.last[t], now) {
		return Tally{}
	}
	tally := Tally{First: c.first[t], Last: c.last[t], Began: c.began[t]}
	for _, b := range c.buckets {
		if recent(b.begin, now) {
			tally.Count += b.counts[t]
		}
	}
	tally.Addresses = p.addresses(t, now)
	return tally
}

// addresses returns the first few addresses of a type's connections, by their number.
func (p *port) addresses(t Type, now time.Time) []netip.Addr {
	var all []netip.Addr
	for _, a := range p.peers.Keys() {
		if from, _ := p.peers.Peek(a); recent(from.last[t], now) {
			all = append(all, a)
		}
	}
	slices.SortFunc(all, func(a, b netip.Addr) int {
		x, _ := p.peers.Peek(a)
		y, _ := p.peers.Peek(b)
		return cmp.Or(cmp.Compare(y.counts[t], x.counts[t]), a.Compare(b))
	})
	return firstAddresses(all)
}

func firstAddresses(all []netip.Addr) []netip.Addr {
	return slices.Clip(all[:min(len(all), MaxAddresses)])
}

// merge joins the summaries of a gateway's port behind two load balancers.
func (s Summary) merge(other Summary) Summary {
	refusedTrusted := s.RefusedTrusted
	if other.Refused.Last.After(s.Refused.Last) {
		refusedTrusted = other.RefusedTrusted
	}
	return Summary{
		Restricted: s.Restricted || other.Restricted,
		WithHeader: s.WithHeader.merge(other.WithHeader), WithoutHeader: s.WithoutHeader.merge(other.WithoutHeader),
		Refused: s.Refused.merge(other.Refused), Malformed: s.Malformed.merge(other.Malformed),
		Ambiguous: s.Ambiguous.merge(other.Ambiguous), Untrusted: s.Untrusted.merge(other.Untrusted), UntrustedHeaders: s.UntrustedHeaders.merge(other.UntrustedHeaders),
		Unknown: s.Unknown.merge(other.Unknown), OnlyMalformed: s.OnlyMalformed.merge(other.OnlyMalformed),
		RefusedTrusted: refusedTrusted, RefusedHeaderSenders: s.RefusedHeaderSenders || other.RefusedHeaderSenders,
	}
}

func (t Tally) merge(other Tally) Tally {
	switch {
	case t.Count == 0:
		return other
	case other.Count == 0:
		return t
	}
	if other.First.Before(t.First) {
		t.First = other.First
	}
	t.Last, t.Began = Latest(t.Last, other.Last), Latest(t.Began, other.Began)
	t.Count += other.Count
	all := slices.Clone(t.Addresses)
	for _, a := range other.Addresses {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	t.Addresses = firstAddresses(all)
	return t
}
