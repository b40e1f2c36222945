package consul

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
)

// input is what a snapshot is built from, besides the state.
type input struct {
	id          gateway.ID
	now         time.Time
	results     map[query]queryResult // of the queries that the last build needed
	certificate *certState            // of the certificate for clients; nil while there is none
	options     WatcherOptions        // without zero values
	keyless     bool                  // there is a state directory without private keys
}

// state is what the next snapshot of a gateway depends on besides the input. Nothing modifies the maps of a state.
type state struct {
	last       *gateway.Snapshot // the last published one; nil before the first
	registered bool              // an instance of the gateway was registered once
	datacenter string            // the local one; empty until it is known
	// instances are those of the last build. Each has the last valid settings in its registration.
	instances map[instanceID]*gateway.Instance
	// since maps each thing that is wrong, or waited for, to the time when that began.
	since map[string]time.Time
	// endpointQueries are the queries for endpoints with the IDs of their targets. It is nil unless the last build was
	// complete in every respect.
	endpointQueries map[query][]string
	certificate     *certState // that the last build used
	expiryChanges   time.Time  // when the problems of expiring certificates change; zero: never
	roots           caRoots    // the mesh's, of which the snapshot has those in all
}

// snapshotBuild is the result of buildSnapshot, or one in the making.
type snapshotBuild struct {
	input
	prev state

	snapshot   *gateway.Snapshot
	next       state
	queries    map[query]bool // that the snapshot needs
	unanswered []query        // those of them that have no result
	// missing are the results without which there is no snapshot, and disagreements between results that arrive at
	// different times.
	missing        []string
	missingForLong bool // something has been missing for the health timeout
	// waits is true while the snapshot waits for the first response about the health of a target, or for the
	// certificate.
	waits        bool
	rebuildAfter time.Duration // until the earliest deadline, after which the result is another one
	certRequest  *certRequest  // the certificate that the gateway needs for its clients; nil: none

	endpoints  map[string]*gateway.Endpoints // of the snapshot
	agent      agent
	entryKnown bool // snapshot.Entry is from Consul
	// unknownOfChains are the fields that Usher does not know, by the services in whose chains they are.
	unknownOfChains map[gateway.ServiceName][]string
	patchable       bool // no query for endpoints has failed, and no target waits
	// keepsLast means that roots and certificate are not those of the results, but of the last snapshot.
	keepsLast bool
	// unregistered means that Consul has no instance of the gateway.
	unregistered bool
	restored     restoredParts
	// confirmedDomain is the trust domain that Consul has given to this process; empty before.
	confirmedDomain string
}

// buildSnapshot makes a snapshot of a gateway. It modifies nothing, and starts nothing. It names all the queries that
// it can before it gives up for any reason, so that they run at the same time. Only the registration comes first: any
// caller can make up the name of a gateway, so Usher reads nothing else about one that was never registered.
func buildSnapshot(in input, prev state) *snapshotBuild {
	b := newSnapshotBuild(in, prev)
	b.confirmedDomain = confirmedDomainOf(in.results[query{queryType: rootsType}])
	if a := require[agent](b, query{queryType: agentType}); a != nil {
		b.agent, b.snapshot.DualStack, b.snapshot.NormalizePath = *a, a.dualStack, a.major >= 2
	}
	b.addRegistrations()
	b.addEntry()
	if r := require[caRoots](b, query{queryType: rootsType}); r != nil {
		b.snapshot.Roots, b.next.roots = r.all, *r
	}
	if b.next.registered {
		b.addServices()
	}
	b.addExpiries()
	slices.SortFunc(b.snapshot.Problems, func(a, b problem.Problem) int {
		return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.What, b.What))
	})
	b.snapshot.Problems = slices.Compact(b.snapshot.Problems)
	b.snapshot.Restored, b.snapshot.Keep = b.restored.oldest, b.keep()
	b.missingForLong = len(b.missing) > 0 && b.deadlineExceeded("an incomplete snapshot", b.options.HealthTimeout)
	if len(b.missing) > 0 || !b.patchable || b.rebuildAfter < noDeadline {
		b.next.endpointQueries = nil
	}
	b.snapshot = reuseSnapshot(prev.last, b.snapshot)
	return b
}

func newSnapshotBuild(in input, prev state) *snapshotBuild {
	n := len(prev.endpointQueries)
	b := &snapshotBuild{
		input: in, prev: prev, next: prev, patchable: true, rebuildAfter: noDeadline,
		queries:   make(map[query]bool, len(in.results)),
		snapshot:  &gateway.Snapshot{ID: in.id, Chains: make(map[gateway.ServiceName]*gateway.Chain, n)},
		endpoints: make(map[string]*gateway.Endpoints, n), unknownOfChains: map[gateway.ServiceName][]string{},
	}
	b.next.since, b.next.endpointQueries, b.next.certificate = map[string]time.Time{}, make(map[query][]string, n), in.certificate
	return b
}

// reuseSnapshot returns next, with the lists and maps of last that are equal. All other parts have kept their pointers
// already. If everything is equal, it returns last.
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
	next.Endpoints = next.Endpoints.OrSame(last.Endpoints)
	if !maps.Equal(last.Chains, next.Chains) {
		return next
	}
	next.Chains = last.Chains
	return reuse(last, next)
}

// read returns the value and the result of a query that the snapshot needs. The value is nil before the first good
// response.
func read[T any](b *snapshotBuild, q query) (*T, queryResult) {
	b.queries[q] = true
	r := b.results[q]
	if r.isEmpty() {
		b.unanswered = append(b.unanswered, q)
	}
	if at := r.restored(); !at.IsZero() {
		if b.confirmedDomain != "" && r.answer.trustDomain != b.confirmedDomain {
			return nil, queryResult{err: errOtherCluster}
		}
		b.restored.add(q, at)
	}
	v, _ := r.value.(*T)
	return v, r
}

// restoredParts are the saved answers that a build has used.
type restoredParts struct {
	oldest time.Time    // when the oldest was saved; zero without any
	keep   gateway.Keep // because of those that are not spare
	spare  bool         // there is one that Usher can do without
}

// notOfEndpoints are the query types from whose answers no content of endpoints follows.
var notOfEndpoints = []*queryType{entriesType, servicesType, meshType, leafType}

func (p *restoredParts) add(q query, at time.Time) {
	if p.oldest.IsZero() || at.Before(p.oldest) {
		p.oldest = at
	}
	switch {
	case q.queryType.optional || q.datacenter != "":
		p.spare = true
	case slices.Contains(notOfEndpoints, q.queryType):
		p.keep = max(p.keep, gateway.KeepConfiguration)
	default:
		p.keep = gateway.KeepAll
	}
}

// keep returns Snapshot.Keep. Envoys keep what they have for as long as Consul does not answer, even if it answers other
// queries: it may be coming back. But another datacenter may be away for ever, and the token may never get an optional
// permission. So after the answer timeout, saved answers to such queries are the last valid ones, as without a restart.
func (b *snapshotBuild) keep() gateway.Keep {
	p := b.restored
	if p.spare && p.keep < gateway.KeepAll && !b.deadlineExceeded("saved answers that Usher can do without", b.options.AnswerTimeout) {
		return gateway.KeepAll
	}
	return p.keep
}

// errOtherCluster means that a saved answer is from a Consul with another trust domain than the one that answers.
var errOtherCluster = errors.New("there is no answer yet, and the saved one is from another Consul cluster; Usher waits for the answer")

// confirmedDomainOf returns the trust domain in a result of rootsType that Consul gave to this process; empty for another.
func confirmedDomainOf(r queryResult) string {
	if roots, ok := r.value.(*caRoots); ok && r.restored().IsZero() {
		return roots.all.TrustDomain
	}
	return ""
}

// require returns the value of a query without which there is no snapshot.
func require[T any](b *snapshotBuild, q query) *T {
	v, r := read[T](b, q)
	if v == nil {
		b.addMissing(q.String(), r.err)
	}
	return v
}

// addMissing records that something is missing. err is the reason; it may be nil.
func (b *snapshotBuild) addMissing(what string, err error) {
	if err != nil {
		what = fmt.Sprintf("%s (%v)", what, err)
	}
	b.missing = append(b.missing, what)
}

func (b *snapshotBuild) addProblem(where, what string) {
	b.addProblemOf(problem.Degraded, where, what)
}

func (b *snapshotBuild) addProblemOf(severity problem.Severity, where, what string) {
	b.snapshot.Problems = append(b.snapshot.Problems, problem.Problem{Where: where, What: what, Severity: severity})
}

// deadlineExceeded reports whether every build has called it with this text for the time limit. If not, the next build
// follows at the latest when that time ends.
func (b *snapshotBuild) deadlineExceeded(what string, limit time.Duration) bool {
	begin, known := b.prev.since[what]
	if !known {
		begin = b.now
	}
	b.next.since[what] = begin
	left := limit - b.now.Sub(begin)
	if left > 0 {
		b.rebuildAfter = min(b.rebuildAfter, left)
	}
	return left <= 0
}

// waitFor lets the snapshot wait for a time limit. If a chain was published before the health of its new target, its
// routes would lead to a cluster that Envoy cannot use yet. But a target without a response must not delay everything
// else.
func (b *snapshotBuild) waitFor(what string, limit time.Duration) {
	b.patchable = false
	if !b.deadlineExceeded("the wait for "+what, limit) {
		b.waits = true
	}
}

// waitOrGoOn lets the snapshot wait for the first good response to a query, and then go on without it. If the query fails
// as any other would, it waits for the answer timeout: what fails will be over for all of them, and this one may be asked
// again a little later than those whose responses are in the snapshot already. what and name say what the query reads.
func (b *snapshotBuild) waitOrGoOn(q query, r queryResult, what, name string) {
	b.reportRefusal(q, r, what, name)
	if r.value != nil {
		return
	}
	limit := b.options.HealthTimeout
	if o := outcomeOf(r.err); o == outcomeUnreachable || o == outcomeLimited || failsForToken(r.err) {
		limit = max(limit, b.options.AnswerTimeout)
	}
	b.waitFor(q.String(), limit)
}

// waitOrHoldBack counts a query without a good response as missing until the answer timeout, and then as a problem:
// listeners are held back.
func (b *snapshotBuild) waitOrHoldBack(q query, r queryResult, what, name string) {
	switch {
	case r.value != nil:
		b.reportRefusal(q, r, what, name)
	case b.deadlineExceeded(q.String(), b.options.AnswerTimeout):
		b.addProblem(fmt.Sprintf("%s %q", what, name), heldBack(q, r))
	default:
		b.addMissing(q.String(), r.err)
	}
}

// reportRefusal adds a problem if Consul has refused a query for the answer timeout.
func (b *snapshotBuild) reportRefusal(q query, r queryResult, what, name string) {
	switch outcomeOf(r.err) {
	case outcomeOK, outcomeUnreachable, outcomeLimited:
		return
	}
	if b.deadlineExceeded("the refusal of "+q.String(), b.options.AnswerTimeout) {
		b.addProblem(fmt.Sprintf("%s %q", what, name), r.err.Error())
	}
}

// heldBack returns the text of a problem: a query had no good response, so listeners are held back.
func heldBack(q query, r queryResult) string {
	why, remedy := "no answer from consul yet", "check what consul answers to GET "+q.queryType.path+q.name
	if r.err != nil {
		why = r.err.Error()
	}
	held := "the listeners that need it are held back: running Envoys keep theirs, new ones start without"
	if outcomeOf(r.err) == outcomeDenied {
		return held + ", because " + why
	}
	return why + "; " + held + "; " + remedy
}

// queryFor returns the query of a type about the gateway itself.
func (b *snapshotBuild) queryFor(t *queryType) query {
	return serviceQuery(t, gateway.ServiceName(b.id))
}

// serviceQuery returns the query of a type about a service.
func serviceQuery(t *queryType, service gateway.ServiceName) query {
	service = service.OrDefaults()
	return query{queryType: t, name: service.Name, namespace: service.Namespace, partition: service.Partition}
}

// partitionQuery returns the query of a type that concerns a whole partition. It belongs to the default namespace.
func partitionQuery(t *queryType, partition string) query {
	return query{queryType: t, namespace: gateway.DefaultTenancy, partition: gateway.OrDefault(partition)}
}

// addServices adds what only a gateway with instances needs.
func (b *snapshotBuild) addServices() {
	list := b.readGatewayServices()
	// A gateway without services needs no certificate.
	if list != nil && (len(list.services) > 0 || list.filtered) {
		b.addLeaf()
		b.keepTrustDomain()
	}
	b.addGatewayServices(list)
	b.addDatacenter()
	if b.next.datacenter != "" {
		for _, chain := range b.snapshot.Chains {
			for id, t := range chain.Targets {
				b.addMeshGateways(chain, t)
				b.addTarget(id, t)
			}
		}
	}
	b.snapshot.Endpoints = ordered.From(b.endpoints)
	b.addCertificate()
}

// addLeaf adds the certificate towards the mesh. While Consul does not answer and no private keys are saved, there is
// none: its listeners are held back, and the rest is served.
func (b *snapshotBuild) addLeaf() {
	q := b.queryFor(leafType)
	leaf, r := read[gateway.Leaf](b, q)
	b.snapshot.Leaf = leaf
	switch {
	case leaf != nil:
	case b.keyless && !b.restored.oldest.IsZero() && b.confirmedDomain == "":
		b.snapshot.Problems = append(b.snapshot.Problems, problem.Problem{
			Where: fmt.Sprintf("certificate of gateway %q", b.id.String()),
			What: "there is none, because Consul has not answered since Usher started, and the state directory has no private keys: " +
				"running Envoys keep what they have, new ones start without listeners; restore Consul, " +
				"and set --state-key-file or USHER_STATE_KEY, so that Usher saves private keys, too",
			Severity: problem.Outage,
		})
	default:
		b.addMissing(q.String(), r.err)
	}
}

// addRegistrations adds the instances, and Usher's settings in their registrations and in proxy-defaults.
func (b *snapshotBuild) addRegistrations() {
	regs := require[[]*registration](b, b.queryFor(instancesType))
	d := require[proxyDefaults](b, partitionQuery(proxyDefaultsType, b.id.Partition))
	if d != nil {
		b.snapshot.ProxyDefaults = d.layer
		b.snapshot.Problems = append(b.snapshot.Problems, d.problems...)
		b.addUnknownFields("config entry proxy-defaults/global", d.unknown)
	}
	if regs == nil {
		return
	}
	b.next.registered = b.prev.registered || len(*regs) > 0
	b.unregistered = len(*regs) == 0
	if d == nil {
		return
	}
	b.addInstances(*regs, d)
	for _, r := range *regs {
		b.next.datacenter = r.Node.Datacenter
	}
}

func (b *snapshotBuild) addEntry() {
	if m := require[mesh](b, partitionQuery(meshType, b.id.Partition)); m != nil {
		b.snapshot.Mesh = m.entry
		b.addUnknownFields("config entry mesh/mesh", m.unknown)
	}
	q := b.queryFor(entriesType)
	all := q
	all.name = ""
	list := require[entries](b, all)
	if list == nil {
		return
	}
	b.snapshot.Entry, b.entryKnown = list.byName[b.id.Name], true
	if b.snapshot.Entry == nil && list.filtered {
		b.addMissing(q.String(), errAllFiltered)
	}
	b.addUnknownFields(fmt.Sprintf("config entry ingress-gateway/%s", b.id), list.unknown[b.id.Name])
}

// gatewayServices reads the services of the gateway. If Consul's ACLs hide all of them, it returns the last known ones.
func (b *snapshotBuild) readGatewayServices() *gatewayServices {
	q := b.queryFor(servicesType)
	list, r := read[gatewayServices](b, q)
	switch {
	case errors.Is(r.err, errAllFiltered):
		return &gatewayServices{services: cmp.Or(list, &gatewayServices{}).services, filtered: true}
	case list == nil:
		b.addMissing(q.String(), r.err)
	}
	return list
}

// addGatewayServices adds the services and their chains, and checks that the services agree with the config entry.
func (b *snapshotBuild) addGatewayServices(list *gatewayServices) {
	if list == nil {
		return
	}
	if list.filtered {
		b.addProblem(fmt.Sprintf("services of gateway %q", b.id.String()),
			"consul's ACLs hide some of them; give Usher's token service:read on all services of the gateway")
	}
	inEntry := listenerServicesOf(b.snapshot.Entry)
	all := list.withHidden(b.prev.last, inEntry)
	for _, s := range all {
		if b.entryKnown && !inEntry.has(s) {
			b.addMissing(fmt.Sprintf("a listener for %s on port %d in the ingress-gateway entry", s.Service, s.Port), nil)
			continue
		}
		b.addChain(s.Service)
		b.snapshot.Services = append(b.snapshot.Services, s)
	}
	b.addUnknownFieldsOfChains()
	if missing := b.missingServices(all, list.filtered); len(missing) > 0 {
		b.snapshot.Services = append(b.snapshot.Services, missing...)
		slices.SortFunc(b.snapshot.Services, compareServices)
	}
}

// missingServices handles services that are in the entry and not in listed. For the answer timeout, the list counts as
// incomplete. After that, Usher accepts that there is no such service, unless Consul's ACLs filter the list. In that
// case missingServices returns the service. It has no chain, so its port is held back. It returns a wildcard only if no
// service of its port is visible, because Usher cannot know which services the wildcard matches.
func (b *snapshotBuild) missingServices(listed []gateway.Service, filtered bool) []gateway.Service {
	if b.snapshot.Entry == nil {
		return nil
	}
	var out []gateway.Service
	for _, l := range b.snapshot.Entry.Listeners {
		for _, inEntry := range l.Services {
			s := serviceOf(l, inEntry)
			if s.FromWildcard && !filtered || containsService(listed, s) {
				continue
			}
			what := fmt.Sprintf("%s on port %d in the list of gateway services", s.Service, s.Port)
			if !b.deadlineExceeded(what, b.options.AnswerTimeout) {
				b.addMissing(what, nil)
			} else if filtered {
				b.addProblem(fmt.Sprintf("service %q on port %d of gateway %q", s.Service.String(), s.Port, b.id.String()),
					"consul's ACLs hide it, so the listener on that port is held back: "+
						"running Envoys keep theirs, new ones start without; give Usher's token service:read on it")
				out = append(out, s)
			}
		}
	}
	return out
}

// addChain adds the chain of a service. Without it, the ports of the service are held back.
func (b *snapshotBuild) addChain(service gateway.ServiceName) {
	if b.snapshot.Chains[service] != nil {
		return
	}
	q := serviceQuery(chainType, service)
	chain, r := read[discoveryChain](b, q)
	b.waitOrHoldBack(q, r, "discovery chain of", service.String())
	if chain != nil {
		b.snapshot.Chains[service] = chain.Chain
		if len(chain.unknown) > 0 {
			b.unknownOfChains[service] = chain.unknown
		}
	}
}

// addDatacenter adds the local datacenter, which is in every registration and every chain.
func (b *snapshotBuild) addDatacenter() {
	for _, chain := range b.snapshot.Chains {
		b.next.datacenter = cmp.Or(b.next.datacenter, chain.Datacenter)
	}
	b.snapshot.Datacenter = b.next.datacenter
	if b.next.datacenter == "" && len(b.missing) == 0 {
		b.addMissing(fmt.Sprintf("an instance of %s that is registered with kind %s", b.id, ingressGatewayKind), nil)
	}
}

// addTarget adds the endpoints of a target.
func (b *snapshotBuild) addTarget(id string, t *gateway.Target) {
	if b.endpoints[id] != nil {
		return
	}
	b.addPeer(t)
	q := healthQuery(t, b.next.datacenter)
	e, r := read[gateway.Endpoints](b, q)
	b.next.endpointQueries[q] = append(b.next.endpointQueries[q], id)
	b.patchable = b.patchable && r.err == nil
	if e != nil {
		b.endpoints[id] = e
	}
	// The instances in a cluster peer contain the name of their cluster, without which no listener can be built. A target
	// of this cluster has no roots in Peers.
	if roots := b.snapshot.Peers[t.Peer]; roots != nil && len(roots.PEMs) > 0 {
		b.waitOrHoldBack(q, r, "instances of", id)
	} else {
		b.waitOrGoOn(q, r, "instances of", id)
	}
}
