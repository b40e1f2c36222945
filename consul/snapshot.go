package consul

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// input is what a snapshot is compiled from, besides the state.
type input struct {
	id  gateway.ID
	now time.Time
	// results has the results of the queries that the last compilation needed.
	results     map[query]watchResult
	certificate *certState // of the certificate for clients; nil while there is none
	// grpcAddress returns where the agent's gRPC port is.
	grpcAddress                  func(agent) address
	healthTimeout, answerTimeout time.Duration // see WatcherOptions
}

// state is what the next snapshot of a gateway depends on besides the input. Nothing
// modifies the maps of a state.
type state struct {
	last *gateway.Snapshot // the last published one; nil before the first
	// registered is true once an instance of the gateway was registered.
	registered bool
	datacenter string // the local one; empty until it is known
	// settings are the last good settings in the registrations of the instances.
	settings map[instanceID]settings.Layer
	// since maps each thing that is wrong, or waited for, to the time when that began.
	since map[string]time.Time
	// endpointQueries are the queries for endpoints with the IDs of their targets. It is
	// nil unless the last compilation was complete in every respect.
	endpointQueries map[query][]string
	certificate     *certState // that the last compilation used
}

// compilation is the result of compile, or one in the making.
type compilation struct {
	input
	prev state

	snapshot *gateway.Snapshot
	next     state
	queries  map[query]bool // that the snapshot needs
	// unanswered are those of them that have no result.
	unanswered []query
	// missing are the results without which there is no snapshot, and disagreements
	// between results that arrive at different times.
	missing []string
	// incompleteLong is true if something has been missing for the health timeout.
	incompleteLong bool
	// waits is true while the snapshot waits for the first answer about the health of a
	// target, or for the certificate.
	waits bool
	// delay is when the first time limit ends after which the result is another one.
	delay time.Duration
	// certRequest is the certificate that the gateway needs for its clients; nil: none.
	certRequest *certRequest

	endpoints  map[string]*gateway.Endpoints // of the snapshot
	agent      agent
	activeRoot string // the ID of the root that signs certificates
	entryKnown bool   // snapshot.Entry is from Consul
	// complete is false if a query for endpoints has failed, or a target waits.
	complete bool
}

// compile makes a snapshot of a gateway. It modifies nothing, and starts nothing. It
// names all the queries that it can before it gives up for any reason, so that they
// run at the same time. Only the registration comes first: any caller can make up the
// name of a gateway, so Usher reads nothing else about one that was never registered.
func compile(in input, prev state) *compilation {
	c := newCompilation(in, prev)
	if a := require[agent](c, query{queryType: agentType}); a != nil {
		c.agent, c.snapshot.DualStack = *a, a.dualStack
	}
	c.addRegistrations()
	c.addEntry()
	if r := require[caRoots](c, query{queryType: rootsType}); r != nil {
		c.snapshot.Roots, c.activeRoot = r.all, r.active
	}
	if c.next.registered {
		c.addServices()
	}
	slices.SortFunc(c.snapshot.Problems, func(a, b problem.Problem) int {
		return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.What, b.What))
	})
	c.snapshot.Problems = slices.Compact(c.snapshot.Problems)
	c.incompleteLong = len(c.missing) > 0 && c.lasted("an incomplete snapshot", c.healthTimeout)
	if len(c.missing) > 0 || !c.complete || c.delay < noDelay {
		c.next.endpointQueries = nil
	}
	c.snapshot = reuseSnapshot(prev.last, c.snapshot)
	return c
}

func newCompilation(in input, prev state) *compilation {
	n := len(prev.endpointQueries)
	c := &compilation{
		input: in, prev: prev, next: prev, queries: make(map[query]bool, len(in.results)), delay: noDelay, complete: true,
		snapshot:  &gateway.Snapshot{ID: in.id, Chains: make(map[gateway.ServiceName]*gateway.Chain, n)},
		endpoints: make(map[string]*gateway.Endpoints, n),
	}
	c.next.since, c.next.endpointQueries, c.next.certificate = map[string]time.Time{}, make(map[query][]string, n), in.certificate
	return c
}

// reuseSnapshot returns next, with the lists and maps of last that are equal. All other
// parts have kept their pointers already. If everything is equal, it returns last.
func reuseSnapshot(last, next *gateway.Snapshot) *gateway.Snapshot {
	if last == nil {
		return next
	}
	equal := func(a, b gateway.Service) bool {
		return a.Service == b.Service && a.Port == b.Port && a.Protocol == b.Protocol &&
			a.FromWildcard == b.FromWildcard && slices.Equal(a.Hosts, b.Hosts)
	}
	if slices.EqualFunc(last.Services, next.Services, equal) {
		next.Services = last.Services
	}
	if maps.Equal(last.Peers, next.Peers) {
		next.Peers = last.Peers
	}
	next.Endpoints = next.Endpoints.OrSame(last.Endpoints)
	if !maps.Equal(last.Chains, next.Chains) {
		return next
	}
	next.Chains = last.Chains
	if reflect.DeepEqual(last, next) {
		return last
	}
	return next
}

// read returns the value and the result of a query that the snapshot needs. The value
// is nil before the first good answer.
func read[T any](c *compilation, q query) (*T, watchResult) {
	c.queries[q] = true
	r := c.results[q]
	if r.isEmpty() {
		c.unanswered = append(c.unanswered, q)
	}
	v, _ := r.value.(*T)
	return v, r
}

// require returns the value of a query without which there is no snapshot.
func require[T any](c *compilation, q query) *T {
	v, r := read[T](c, q)
	if v == nil {
		c.addMissing(q.String(), r.err)
	}
	return v
}

// addMissing records that something is missing. err is the reason; it may be nil.
func (c *compilation) addMissing(what string, err error) {
	if err != nil {
		what = fmt.Sprintf("%s (%v)", what, err)
	}
	c.missing = append(c.missing, what)
}

func (c *compilation) addProblem(where, what string) {
	c.snapshot.Problems = append(c.snapshot.Problems, problem.Problem{Where: where, What: what})
}

// lasted reports whether every compilation has called it with this text for the time
// limit. If not, it lets the next compilation follow at the end of that time.
func (c *compilation) lasted(what string, limit time.Duration) bool {
	begin, known := c.prev.since[what]
	if !known {
		begin = c.now
	}
	c.next.since[what] = begin
	left := limit - c.now.Sub(begin)
	if left > 0 {
		c.delay = min(c.delay, left)
	}
	return left <= 0
}

// waitFor lets the snapshot wait for the health timeout. If a chain was published
// before the health of its new target, its routes would lead to a cluster that Envoy
// cannot use yet. But a target without an answer must not delay everything else.
func (c *compilation) waitFor(what string) {
	c.complete = false
	if !c.lasted("the wait for "+what, c.healthTimeout) {
		c.waits = true
	}
}

// refusedLong reports whether Consul has refused a query for the answer timeout.
func (c *compilation) refusedLong(q query, r watchResult) bool {
	switch outcomeOf(r.err) {
	case outcomeOK, outcomeUnreachable, outcomeLimited:
		return false
	}
	return c.lasted("the refusal of "+q.String(), c.answerTimeout)
}

// heldBack returns the text of a problem: a query was never answered, so listeners are
// held back.
func heldBack(q query, r watchResult) string {
	why, remedy := "no answer from consul yet", "check what consul answers to GET "+q.queryType.path+q.name
	if r.err != nil {
		why = r.err.Error()
	}
	if outcomeOf(r.err) == outcomeDenied {
		remedy = "give Usher's token the right to read it"
	}
	return why + "; the listeners that need it are held back: running Envoys keep theirs, new ones start without; " + remedy
}

// queryFor returns the query of a type about the gateway itself.
func (c *compilation) queryFor(t *queryType) query {
	id := gateway.ServiceName(c.id).OrDefaults()
	return query{queryType: t, name: id.Name, namespace: id.Namespace, partition: id.Partition}
}

// partitionQuery returns the query of a type that has one answer for a partition. It
// belongs to the default namespace.
func partitionQuery(t *queryType, partition string) query {
	return query{queryType: t, namespace: gateway.DefaultTenancy, partition: gateway.OrDefault(partition)}
}

// addServices adds what only a gateway with instances needs.
func (c *compilation) addServices() {
	list := c.gatewayServices()
	// A gateway without services needs no certificate.
	if list != nil && (len(list.services) > 0 || list.hidden) {
		c.snapshot.Leaf = require[gateway.Leaf](c, c.queryFor(leafType))
	}
	c.addGatewayServices(list)
	c.addDatacenter()
	if c.next.datacenter != "" {
		for _, chain := range c.snapshot.Chains {
			for id, t := range chain.Targets {
				c.addMeshGateways(chain, t)
				c.addTarget(id, t)
			}
		}
	}
	c.snapshot.Endpoints = ordered.From(c.endpoints)
	c.addCertificate()
}

// addRegistrations adds the instances, and Usher's settings in their registrations and
// in proxy-defaults.
func (c *compilation) addRegistrations() {
	regs := require[registrations](c, c.queryFor(instancesType))
	d := require[proxyDefaults](c, partitionQuery(proxyDefaultsType, c.id.Partition))
	if d != nil {
		c.snapshot.ProxyDefaults = d.layer
		c.snapshot.Problems = append(c.snapshot.Problems, d.problems...)
	}
	if regs == nil {
		return
	}
	c.next.registered = c.prev.registered || len(regs.list) > 0
	if d == nil {
		return
	}
	c.addInstances(regs, d)
	for _, r := range regs.list {
		c.next.datacenter = r.Node.Datacenter
	}
}

func (c *compilation) addEntry() {
	if m := require[mesh](c, partitionQuery(meshType, c.id.Partition)); m != nil {
		c.snapshot.Mesh = m.entry
	}
	q := c.queryFor(entriesType)
	all := q
	all.name = ""
	list := require[entries](c, all)
	if list == nil {
		return
	}
	c.snapshot.Entry, c.entryKnown = list.byName[c.id.Name], true
	if c.snapshot.Entry == nil && list.hidden {
		c.addMissing(q.String(), errHidden)
	}
}

// gatewayServices reads the services of the gateway. If Consul's ACLs hide all of
// them, it returns the last known ones.
func (c *compilation) gatewayServices() *gatewayServices {
	q := c.queryFor(servicesType)
	list, r := read[gatewayServices](c, q)
	switch {
	case errors.Is(r.err, errHidden):
		known := gatewayServices{hidden: true}
		if list != nil {
			known.services = list.services
		}
		return &known
	case list == nil:
		c.addMissing(q.String(), r.err)
	}
	return list
}

// addGatewayServices adds the services and their chains, and checks that the services
// agree with the config entry.
func (c *compilation) addGatewayServices(list *gatewayServices) {
	if list == nil {
		return
	}
	if list.hidden {
		c.addProblem(fmt.Sprintf("services of gateway %q", c.id.String()),
			"consul's ACLs hide some of them; give Usher's token service:read on all services of the gateway")
	}
	inEntry := listenerServicesOf(c.snapshot.Entry)
	all := list.withHidden(c.prev.last, inEntry)
	for _, s := range all {
		if c.entryKnown && !inEntry.has(s) {
			c.addMissing(fmt.Sprintf("a listener for %s on port %d in the ingress-gateway entry", s.Service, s.Port), nil)
			continue
		}
		c.addChain(s.Service)
		c.snapshot.Services = append(c.snapshot.Services, s)
	}
	if hidden := c.missingServices(all, list.hidden); len(hidden) > 0 {
		c.snapshot.Services = append(c.snapshot.Services, hidden...)
		slices.SortFunc(c.snapshot.Services, compareServices)
	}
}

// missingServices handles services that are in the entry and not in listed. For the
// answer timeout, the list counts as incomplete. After that, Usher accepts that it has
// no such service, unless Consul's ACLs hide some. In that case missingServices
// returns the service. It has no chain, so that its port is held back.
//
// It returns a wildcard only if no service of its port is visible. Usher cannot know
// which services the wildcard matches, and Consul shows a token only the services
// that it may read.
func (c *compilation) missingServices(listed []gateway.Service, hidden bool) []gateway.Service {
	if c.snapshot.Entry == nil {
		return nil
	}
	var out []gateway.Service
	for _, l := range c.snapshot.Entry.Listeners {
		for _, inEntry := range l.Services {
			s := serviceOf(l, inEntry)
			if s.FromWildcard && !hidden || containsService(listed, s) {
				continue
			}
			what := fmt.Sprintf("%s on port %d in the list of gateway services", s.Service, s.Port)
			if !c.lasted(what, c.answerTimeout) {
				c.addMissing(what, nil)
			} else if hidden {
				c.addProblem(fmt.Sprintf("service %q on port %d of gateway %q", s.Service.String(), s.Port, c.id.String()),
					"consul's ACLs hide it, so the listener on that port is held back: "+
						"running Envoys keep theirs, new ones start without; give Usher's token service:read on it")
				out = append(out, s)
			}
		}
	}
	return out
}

// addChain adds the chain of a service. The snapshot waits for a chain that was never
// read. After the answer timeout it goes on without it, and the ports of the service
// are held back.
func (c *compilation) addChain(service gateway.ServiceName) {
	if c.snapshot.Chains[service] != nil {
		return
	}
	q := chainQuery(service)
	chain, r := read[gateway.Chain](c, q)
	switch {
	case chain != nil:
		c.snapshot.Chains[service] = chain
		if c.refusedLong(q, r) {
			c.addProblem(fmt.Sprintf("discovery chain of %q", service.String()), r.err.Error())
		}
	case c.lasted(q.String(), c.answerTimeout):
		c.addProblem(fmt.Sprintf("discovery chain of %q", service.String()), heldBack(q, r))
	default:
		c.addMissing(q.String(), r.err)
	}
}

// addDatacenter adds the local datacenter, which is in every registration and every
// chain.
func (c *compilation) addDatacenter() {
	for _, chain := range c.snapshot.Chains {
		c.next.datacenter = cmp.Or(c.next.datacenter, chain.Datacenter)
	}
	c.snapshot.Datacenter = c.next.datacenter
	if c.next.datacenter == "" && len(c.missing) == 0 {
		c.addMissing(fmt.Sprintf("an instance of %s that is registered with kind %s", c.id, ingressGatewayKind), nil)
	}
}

// addTarget adds the endpoints of a target.
func (c *compilation) addTarget(id string, t *gateway.Target) {
	if c.endpoints[id] != nil {
		return
	}
	c.addPeer(t)
	q := healthQuery(t, c.next.datacenter)
	e, r := read[gateway.Endpoints](c, q)
	c.next.endpointQueries[q] = append(c.next.endpointQueries[q], id)
	c.complete = c.complete && r.err == nil
	switch {
	case e != nil:
		c.endpoints[id] = e
	case !c.hasRoots(t.Peer):
		c.waitFor(q.String())
	case c.lasted(q.String(), c.answerTimeout):
		// The instances in a cluster peer contain the name of their cluster.
		c.addProblem(fmt.Sprintf("instances of %q", id), heldBack(q, r))
		return
	default:
		c.addMissing(q.String(), r.err)
	}
	if c.refusedLong(q, r) {
		c.addProblem(fmt.Sprintf("instances of %q", id), r.err.Error())
	}
}
