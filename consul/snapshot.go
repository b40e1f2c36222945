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

// build is a snapshot in the making.
type snapshotBuilder struct {
	*source
	now      time.Time
	snapshot *gateway.Snapshot
	// endpoints become those of the snapshot.
	endpoints map[string]*gateway.Endpoints
	agent     agent
	// activeRoot is the ID of the root that signs certificates.
	activeRoot string
	entryKnown bool // snapshot.Entry is what Consul says
	// missing are the facts without which there is no snapshot, and the
	// disagreements between facts that arrive at different times.
	missing []string
	// unsettled are the targets whose health Usher has never read.
	pending []string
	// lacks maps each thing that is wrong to the time when it began; see lasted.
	// The first of them has lasted long enough after again.
	wrong map[string]time.Time
	delay time.Duration
	// asked are the queries for instances, with the targets that they answer for.
	endpointQueries map[query][]string
	// failing says that some of them gave nothing when they were asked last.
	failing bool
}

// answers are the queries that patch may go by.
func (b *snapshotBuilder) patchable() map[query][]string {
	if len(b.missing)+len(b.pending) > 0 || b.failing || b.delay < noDelay {
		return nil
	}
	return b.endpointQueries
}

// keep gives the lists and maps of the snapshot before where they say the same,
// as all other parts do by themselves.
func (b *snapshotBuilder) reuse(last *gateway.Snapshot) *gateway.Snapshot {
	s := b.snapshot
	if last == nil {
		return s
	}
	if slices.EqualFunc(last.Services, s.Services, equalServices) {
		s.Services = last.Services
	}
	if maps.Equal(last.Chains, s.Chains) {
		s.Chains = last.Chains
	}
	s.Endpoints = s.Endpoints.OrSame(last.Endpoints)
	if maps.Equal(last.Peers, s.Peers) {
		s.Peers = last.Peers
	}
	return s
}

// build asks for every fact that the gateway needs, and puts together what is
// known. It starts all queries before it gives up for any reason, so that they run
// at the same time. Only the registration comes first: any caller can make up the
// name of a gateway, so Usher reads nothing else about one that was never
// registered.
func (s *source) build(now time.Time) *snapshotBuilder {
	b := &snapshotBuilder{source: s, now: now, endpointQueries: map[query][]string{}, snapshot: &gateway.Snapshot{
		ID:     s.id,
		Chains: map[gateway.ServiceName]*gateway.Chain{},
	}, endpoints: map[string]*gateway.Endpoints{}, wrong: map[string]time.Time{}, delay: noDelay}
	if a := required[agent](b, query{queryType: agentType}); a != nil {
		b.agent, b.snapshot.DualStack = *a, a.dualStack
	}
	b.addInstances()
	b.addEntry()
	b.addRoots()
	if b.wasRegistered {
		b.addServices()
	}
	slices.SortFunc(b.snapshot.Problems, compareProblems)
	b.snapshot.Problems = slices.Compact(b.snapshot.Problems)
	return b
}

// whole reads what only a gateway with instances needs.
func (b *snapshotBuilder) addServices() {
	// Read it only once: it may change before the steps below are done.
	list := b.gatewayServices()
	b.addLeaf(list)
	b.addGatewayServices(list)
	b.addDatacenter()
	b.addTargets()
	b.snapshot.Endpoints = ordered.From(b.endpoints)
	b.addCertificate()
}

// of gives the query of a kind about the gateway itself.
func (b *snapshotBuilder) queryFor(k *queryType) query {
	return query{queryType: k, name: b.id.Name, namespace: gateway.OrDefault(b.id.Namespace), partition: gateway.OrDefault(b.id.Partition)}
}

// inPartition gives the query of a kind that a partition has one answer to: it
// belongs to the default namespace.
func partitionQuery(k *queryType, partition string) query {
	return query{queryType: k, namespace: gateway.DefaultTenancy, partition: gateway.OrDefault(partition)}
}

// required gives a fact without which there is no snapshot.
func required[T any](b *snapshotBuilder, q query) *T {
	v, f := read[T](b.subscription, q)
	if v == nil {
		b.addMissing(q.String(), f.err)
	}
	return v
}

// miss notes that something is missing, with the reason if there is one.
func (b *snapshotBuilder) addMissing(what string, err error) {
	if err != nil {
		what = fmt.Sprintf("%s (%v)", what, err)
	}
	b.missing = append(b.missing, what)
}

func (b *snapshotBuilder) addProblem(where, what string) {
	b.snapshot.Problems = append(b.snapshot.Problems, problem.Problem{Where: where, What: what})
}

func (b *snapshotBuilder) addRoots() {
	if r := required[caRoots](b, query{queryType: rootsType}); r != nil {
		b.snapshot.Roots, b.activeRoot = r.all, r.active
	}
}

func (b *snapshotBuilder) addLeaf(list *gatewayServices) {
	// A gateway without services has nobody to show a certificate to.
	if list != nil && (len(list.services) > 0 || list.hidden) {
		b.snapshot.Leaf = required[gateway.Leaf](b, b.queryFor(leafType))
	}
}

// registered reads the instances, and Usher's own settings in them and in
// proxy-defaults.
func (b *snapshotBuilder) addInstances() {
	regs := required[registrations](b, b.queryFor(instancesType))
	d := required[proxyDefaults](b, partitionQuery(proxyDefaultsType, b.id.Partition))
	if d != nil {
		b.snapshot.ProxyDefaults = d.layer
		b.snapshot.Problems = append(b.snapshot.Problems, d.problems...)
	}
	b.wasRegistered = b.wasRegistered || regs != nil && len(regs.list) > 0
	if regs == nil || d == nil {
		return
	}
	var problems []problem.Problem
	b.snapshot.Instances, problems = b.instances(regs, d, b.now)
	b.snapshot.Problems = append(b.snapshot.Problems, problems...)
	for _, r := range regs.list {
		b.datacenter = r.Node.Datacenter
	}
}

func (b *snapshotBuilder) addEntry() {
	if m := required[mesh](b, partitionQuery(meshType, b.id.Partition)); m != nil {
		b.snapshot.Mesh = m.entry
	}
	list := required[entries](b, query{queryType: entriesType, namespace: gateway.OrDefault(b.id.Namespace), partition: gateway.OrDefault(b.id.Partition)})
	if list == nil {
		return
	}
	b.snapshot.Entry, b.entryKnown = list.byName[b.id.Name], true
	if b.snapshot.Entry == nil && list.hidden {
		b.addMissing(b.queryFor(entriesType).String(), errHidden)
	}
}

// rows reads the rows of gateway-services. If Consul's ACLs hide all of them, it
// returns the last known ones.
func (b *snapshotBuilder) gatewayServices() *gatewayServices {
	q := b.queryFor(servicesType)
	list, f := read[gatewayServices](b.subscription, q)
	switch {
	case errors.Is(f.err, errHidden):
		known := gatewayServices{hidden: true}
		if list != nil {
			known.services = list.services
		}
		return &known
	case list == nil:
		b.addMissing(q.String(), f.err)
	}
	return list
}

// services reads the rows and their chains, and checks that the rows agree with
// the entry.
func (b *snapshotBuilder) addGatewayServices(list *gatewayServices) {
	if list == nil {
		return
	}
	if list.hidden {
		b.addProblem(fmt.Sprintf("services of gateway %q", b.id.String()),
			"consul's ACLs hide some of them; give Usher's token service:read on all services of the gateway")
	}
	entry := listenerServicesOf(b.snapshot.Entry)
	all := list.withHidden(b.last, entry)
	for _, row := range all {
		if b.entryKnown && !entry.has(row) {
			b.addMissing(fmt.Sprintf("a listener for %s on port %d in the ingress-gateway entry", row.Service, row.Port), nil)
			continue
		}
		b.addChain(row.Service)
		b.snapshot.Services = append(b.snapshot.Services, row)
	}
	if hidden := b.missingServices(all, list.hidden); len(hidden) > 0 {
		b.snapshot.Services = append(b.snapshot.Services, hidden...)
		slices.SortFunc(b.snapshot.Services, compareServices)
	}
}

// unlisted handles services that the entry names and that have no row. For the time
// of the source's patience, the answer counts as incomplete. After that, Usher
// accepts that there is no row, unless Consul's ACLs hide rows. In that case
// unlisted returns a row for the service. The row has no chain, so that its port is
// withheld.
//
// A wildcard gets such a row only if its port has no visible row. Usher cannot know
// which services the wildcard matches, and Consul shows a token only the services
// that it may read.
func (b *snapshotBuilder) missingServices(listed []gateway.Service, hidden bool) []gateway.Service {
	if b.snapshot.Entry == nil {
		return nil
	}
	var out []gateway.Service
	for _, l := range b.snapshot.Entry.Listeners {
		for _, s := range l.Services {
			row := serviceOf(l, s)
			if row.FromWildcard && !hidden || containsService(listed, row) {
				continue
			}
			what := fmt.Sprintf("a row for %s on port %d in gateway-services", row.Service, row.Port)
			if !b.lasted(what) {
				b.addMissing(what, nil)
			} else if hidden {
				b.addProblem(fmt.Sprintf("service %q on port %d of gateway %q", row.Service.String(), row.Port, b.id.String()),
					"consul's ACLs hide it, so that the listener of the port is withheld: Envoys keep the one that they have; give Usher's token service:read on it")
				out = append(out, row)
			}
		}
	}
	return out
}

// chain reads the chain of a service. The snapshot waits for a chain that was never
// read. After the source's patience the snapshot goes on without it, and the ports
// of the service are withheld.
func (b *snapshotBuilder) addChain(service gateway.ServiceName) {
	if b.snapshot.Chains[service] != nil {
		return
	}
	q := chainQuery(service)
	c, f := read[gateway.Chain](b.subscription, q)
	if c != nil {
		b.snapshot.Chains[service] = c
		if b.refusedLong(q, f) {
			b.addProblem(fmt.Sprintf("discovery chain of %q", service.String()), f.err.Error())
		}
		return
	}
	if b.lasted(q.String()) {
		b.addProblem(fmt.Sprintf("discovery chain of %q", service.String()), heldBack(q, f))
	} else {
		b.addMissing(q.String(), f.err)
	}
}

// withheld returns the text of a problem: a fact was never read, and listeners are
// withheld.
func heldBack(q query, f watchResult) string {
	why, remedy := "no answer yet", "see what consul answers to "+q.queryType.path+q.name
	if f.err != nil {
		why = f.err.Error()
	}
	if outcomeOf(f.err) == outcomeDenied {
		remedy = "give Usher's token the right to read it"
	}
	return why + "; the listeners that need it are withheld: Envoys keep those that they have; " + remedy
}

// open reports whether Consul does not refuse the fact: Consul answers, or Usher
// cannot reach it.
func notRefused(f watchResult) bool {
	switch outcomeOf(f.err) {
	case outcomeOK, outcomeUnreachable, outcomeLimited:
		return true
	}
	return false
}

// refused reports whether Consul has refused a fact for some time.
func (b *snapshotBuilder) refusedLong(q query, f watchResult) bool {
	return f.err != nil && !notRefused(f) && b.lasted("the answer to "+q.String())
}

// lasted reports whether something has been wrong in every build for the time of
// the source's patience. If not, it schedules another build for the end of that
// time.
func (b *snapshotBuilder) lasted(what string) bool {
	begin, known := b.wrongSince[what]
	if !known {
		begin = b.now
	}
	b.wrong[what] = begin
	left := b.answerTimeout - b.now.Sub(begin)
	if left > 0 {
		b.delay = min(b.delay, left)
	}
	return left <= 0
}

func compareProblems(a, b problem.Problem) int {
	return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.What, b.What))
}

// datacenter needs the local datacenter, which stands in every registration and
// every chain.
func (b *snapshotBuilder) addDatacenter() {
	for _, c := range b.snapshot.Chains {
		if b.datacenter == "" {
			b.datacenter = c.Datacenter
		}
	}
	b.snapshot.Datacenter = b.datacenter
	if b.datacenter == "" && len(b.missing) == 0 {
		b.addMissing(fmt.Sprintf("an instance of %s; none is registered with kind %s", b.id, ingressGatewayKind), nil)
	}
}

// targets reads the instances of every target of every chain.
func (b *snapshotBuilder) addTargets() {
	if b.datacenter == "" {
		return
	}
	for _, c := range b.snapshot.Chains {
		for id, t := range c.Targets {
			b.addMeshGateways(c, t)
			b.addTarget(id, t)
		}
	}
}

func (b *snapshotBuilder) addTarget(id string, t *gateway.Target) {
	if b.endpoints[id] != nil {
		return
	}
	b.addPeer(t)
	q := healthQuery(t, b.datacenter)
	e, f := read[gateway.Endpoints](b.subscription, q)
	b.endpointQueries[q] = append(b.endpointQueries[q], id)
	b.failing = b.failing || f.err != nil
	switch {
	case e != nil:
		b.endpoints[id] = e
	case !b.hasRoots(t.Peer):
		b.pending = append(b.pending, q.String())
	case b.lasted(q.String()):
		// The instances in a cluster peer contain the name of their cluster.
		b.addProblem(fmt.Sprintf("instances of %q", id), heldBack(q, f))
		return
	default:
		b.addMissing(q.String(), f.err)
	}
	if b.refusedLong(q, f) {
		b.addProblem(fmt.Sprintf("instances of %q", id), f.err.Error())
	}
}
