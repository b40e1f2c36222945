package consul

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/usherproxy/usher/gateway"
	"github.com/usherproxy/usher/internal/ordered"
)

// build is a snapshot in the making.
type build struct {
	*source
	snapshot *gateway.Snapshot
	// endpoints become those of the snapshot.
	endpoints map[string]*gateway.Endpoints
	agent     agent
	// activeRoot is the ID of the root that signs certificates.
	activeRoot string
	answered   bool // snapshot.Entry is what Consul says
	// missing are the facts without which there is no snapshot, and the
	// disagreements between facts that arrive at different times.
	missing []string
	// unsettled are the targets whose health was never answered nor refused.
	unsettled []string
	// asked are the queries for instances, with the targets that they answer for.
	asked map[query][]string
	// failing says that some of them gave nothing when they were asked last.
	failing bool
}

// answers are the queries that patch may go by.
func (b *build) answers() map[query][]string {
	if len(b.missing)+len(b.unsettled) > 0 || b.failing {
		return nil
	}
	return b.asked
}

// keep gives the lists and maps of the snapshot before where they say the same,
// as all other parts do by themselves.
func (b *build) keep(last *gateway.Snapshot) *gateway.Snapshot {
	s := b.snapshot
	if last == nil {
		return s
	}
	if slices.EqualFunc(last.Services, s.Services, sameService) {
		s.Services = last.Services
	}
	if maps.Equal(last.Chains, s.Chains) {
		s.Chains = last.Chains
	}
	s.Endpoints = s.Endpoints.Or(last.Endpoints)
	if maps.Equal(last.Peers, s.Peers) {
		s.Peers = last.Peers
	}
	return s
}

// build asks for every fact that the gateway needs, and puts together what is
// known. Asking comes before every reason to give up, so that all questions are
// under way at once.
func (s *source) build() *build {
	b := &build{source: s, asked: map[query][]string{}, snapshot: &gateway.Snapshot{
		ID:     s.id,
		Chains: map[gateway.ServiceName]*gateway.Chain{},
	}, endpoints: map[string]*gateway.Endpoints{}}
	if a := required[agent](b, query{kind: agentKind}); a != nil {
		b.agent, b.snapshot.DualStack = *a, a.dualStack
	}
	// Once, for all that follows from it: it may change while this goes on.
	list := required[rows](b, b.of(rowsKind))
	b.certificates(list)
	b.registered()
	b.entry()
	b.services(list)
	b.datacenter()
	b.targets()
	b.snapshot.Endpoints = ordered.From(b.endpoints)
	b.serve()
	slices.SortFunc(b.snapshot.Problems, compareProblems)
	b.snapshot.Problems = slices.Compact(b.snapshot.Problems)
	return b
}

// of gives the query of a kind about the gateway itself.
func (b *build) of(k *kind) query {
	return query{kind: k, name: b.id.Name, namespace: absolute(b.id.Namespace), partition: absolute(b.id.Partition)}
}

// inPartition gives the query of a kind that a partition has one answer to: it
// belongs to the default namespace.
func inPartition(k *kind, partition string) query {
	return query{kind: k, namespace: defaultScope, partition: absolute(partition)}
}

// required gives a fact without which there is no snapshot.
func required[T any](b *build, q query) *T {
	v, f := read[T](b.lease, q)
	if v == nil {
		b.miss(q.String(), f.err)
	}
	return v
}

// miss notes that something is missing, with the reason if there is one.
func (b *build) miss(what string, err error) {
	if err != nil {
		what = fmt.Sprintf("%s (%v)", what, err)
	}
	b.missing = append(b.missing, what)
}

func (b *build) problem(where, what string) {
	b.snapshot.Problems = append(b.snapshot.Problems, gateway.Problem{Where: where, What: what})
}

func (b *build) certificates(list *rows) {
	if r := required[meshRoots](b, query{kind: rootsKind}); r != nil {
		b.snapshot.Roots, b.activeRoot = r.all, r.active
	}
	// A gateway without services has nobody to show a certificate to.
	if list != nil && len(list.services) > 0 {
		b.snapshot.Leaf = required[gateway.Leaf](b, b.of(leafKind))
	}
}

// registered reads the instances, and Usher's own settings in them and in
// proxy-defaults.
func (b *build) registered() {
	regs := required[registrations](b, b.of(instancesKind))
	d := required[defaults](b, inPartition(defaultKind, b.id.Partition))
	if d != nil {
		b.snapshot.Defaults = d.layer
		b.snapshot.Problems = append(b.snapshot.Problems, d.problems...)
	}
	if regs == nil || d == nil {
		return
	}
	var problems []gateway.Problem
	b.snapshot.Instances, problems = b.instances(regs, d, time.Now())
	b.snapshot.Problems = append(b.snapshot.Problems, problems...)
	for _, r := range regs.list {
		b.local = r.Node.Datacenter
	}
}

func (b *build) entry() {
	if m := required[mesh](b, inPartition(meshKind, b.id.Partition)); m != nil {
		b.snapshot.Mesh = m.entry
	}
	list := required[entries](b, query{kind: entriesKind, namespace: absolute(b.id.Namespace), partition: absolute(b.id.Partition)})
	if list == nil {
		return
	}
	b.snapshot.Entry, b.answered = list.byName[b.id.Name], true
	if b.snapshot.Entry == nil && list.hidden {
		b.miss(b.of(entriesKind).String(), errHidden)
	}
}

// services reads the rows and their chains, and checks that the rows agree with
// the entry.
func (b *build) services(list *rows) {
	if list == nil {
		return
	}
	if list.hidden {
		b.problem(fmt.Sprintf("services of gateway %q", b.id.String()),
			"consul's ACLs hide some of them; give Usher's token service:read on all services of the gateway")
	}
	entry := listingOf(b.snapshot.Entry)
	for _, row := range list.withHidden(b.lastServices(), entry) {
		if b.answered && !entry.has(row) {
			b.miss(fmt.Sprintf("a listener for %s on port %d in the ingress-gateway entry", row.Service, row.Port), nil)
			continue
		}
		if b.chain(row.Service) {
			b.snapshot.Services = append(b.snapshot.Services, row)
		}
	}
}

// lastServices are the rows of the snapshot that was handed on last.
func (b *build) lastServices() []gateway.Service {
	if b.last == nil {
		return nil
	}
	return b.last.Services
}

// chain reads the chain of a service. It gives false when there is none: it is
// still to come, or Consul has refused it so often that the service has to be
// left out for the others to go on.
func (b *build) chain(service gateway.ServiceName) bool {
	if b.snapshot.Chains[service] != nil {
		return true
	}
	q := chainOf(service)
	c, f := read[gateway.Chain](b.lease, q)
	if final(f) {
		what := f.err.Error()
		if c == nil {
			what += "; the service is left out until that is mended"
		}
		b.problem(fmt.Sprintf("discovery chain of %q", service.String()), what)
	}
	if c == nil {
		if !final(f) {
			b.miss(q.String(), f.err)
		}
		return false
	}
	b.snapshot.Chains[service] = c
	return true
}

// open says whether a fact without a value may still get one: Consul has not
// answered, rather than refused.
func open(f fact) bool {
	switch outcomeOf(f.err) {
	case outcomeOK, outcomeUnreachable, outcomeLimited:
		return true
	}
	return false
}

// final says whether Consul itself has refused an answer several times in a
// row.
func final(f fact) bool { return f.failures >= patience && !open(f) }

func compareProblems(a, b gateway.Problem) int {
	return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.What, b.What))
}

// datacenter needs the local datacenter, which stands in every registration and
// every chain.
func (b *build) datacenter() {
	for _, c := range b.snapshot.Chains {
		if b.local == "" {
			b.local = c.Datacenter
		}
	}
	b.snapshot.Datacenter = b.local
	if b.local == "" && len(b.missing) == 0 {
		b.miss(fmt.Sprintf("an instance of %s; none is registered with kind %s", b.id, ingressKind), nil)
	}
}

// targets reads the instances of every target of every chain.
func (b *build) targets() {
	if b.local == "" {
		return
	}
	for _, c := range b.snapshot.Chains {
		for id, t := range c.Targets {
			b.meshGateways(c, t)
			b.target(id, t)
		}
	}
}

func (b *build) target(id string, t *gateway.Target) {
	if b.endpoints[id] != nil {
		return
	}
	q := healthOf(t, b.local)
	e, f := read[gateway.Endpoints](b.lease, q)
	b.asked[q] = append(b.asked[q], id)
	b.failing = b.failing || f.err != nil
	if e != nil {
		b.endpoints[id] = e
	} else if open(f) {
		b.unsettled = append(b.unsettled, q.String())
	}
	if final(f) {
		b.problem(fmt.Sprintf("instances of %q", id), f.err.Error())
	}
	b.peer(t)
}
