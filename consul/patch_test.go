package consul

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
)

// told is a source whose facts are told to it by hand: its questions are never
// answered.
type told struct {
	*source
	snapshots []*gateway.Snapshot
}

// newTold tells a source everything of a gateway with n services.
func newTold(t testing.TB, n int) *told {
	t.Helper()
	client, err := NewClient(Config{HTTPAddr: "https://127.0.0.1:1", Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	client.http.Transport = silent{}
	s := &told{}
	s.source = &source{
		id: gateway.ID{Name: "edge"}, client: client, lease: newHub(client, time.Minute).lease(), hold: time.Minute, patience: time.Minute,
		put: func(next *gateway.Snapshot) { s.snapshots = append(s.snapshots, next) },
	}
	t.Cleanup(s.lease.close)

	listener := gateway.Listener{Port: 8080, Protocol: "http"}
	all := &rows{}
	for i := range n {
		listener.Services = append(listener.Services, gateway.ListenerService{Name: service(i).Name})
		all.services = append(all.services, gateway.Service{Service: service(i), Port: 8080, Protocol: "http"})
	}
	slices.SortFunc(all.services, compareRows)
	reg := &registration{}
	reg.Node.Node, reg.Node.Datacenter, reg.Service.Kind, reg.Service.ID = "a", "dc1", ingressKind, "edge"
	facts := map[*kind]any{
		agentKind:     &agent{},
		rootsKind:     &meshRoots{all: &gateway.Roots{}},
		leafKind:      &gateway.Leaf{},
		meshKind:      &mesh{},
		defaultKind:   &defaults{},
		entriesKind:   &entries{byName: map[string]*gateway.Entry{"edge": {Name: "edge", Listeners: []gateway.Listener{listener}}}},
		rowsKind:      all,
		instancesKind: &registrations{list: []*registration{reg}},
	}
	// Each step asks for what the facts before lead to.
	known := map[query]bool{}
	for range 4 {
		s.step(time.Now())
		for q := range s.lease.held {
			if known[q] {
				continue
			}
			known[q] = true
			value := facts[q.kind]
			switch q.kind {
			case chainKind:
				value = chain(q.name)
			case healthKind:
				value = &gateway.Endpoints{}
			}
			s.tell(q, fact{value: value})
		}
	}
	s.step(time.Now())
	if len(s.snapshots) != 1 {
		t.Fatalf("%d snapshots once everything is told, want 1", len(s.snapshots))
	}
	return s
}

func service(i int) gateway.ServiceName {
	return gateway.ServiceName{Name: fmt.Sprintf("service-%d", i)}
}

func chain(service string) *gateway.Chain {
	return &gateway.Chain{ServiceName: service, Datacenter: "dc1", Targets: map[string]*gateway.Target{
		service: {ID: service, Service: service, Datacenter: "dc1"},
	}}
}

func (s *told) tell(q query, f fact) { s.lease.hub.learn(s.lease.held[q].watch, f, true) }

// health is the query for the instances of the ith service.
func (s *told) health(i int) query {
	return healthOf(chain(service(i).Name).Targets[service(i).Name], "dc1")
}

func instanceAt(port int) *gateway.Endpoints {
	return &gateway.Endpoints{Endpoints: []gateway.Endpoint{{Address: "10.0.0.1", Port: port}}}
}

// A change of instances is handed on without looking at the rest, and what is
// handed on is what looking at everything gives.
func TestChangedInstancesAreHandedOnAlone(t *testing.T) {
	s := newTold(t, 5)
	news := instanceAt(1)
	s.tell(s.health(3), fact{value: news})
	if next := s.patch(s.lease.take()); next == nil || next.Endpoints.Get(service(3).Name) != news {
		t.Fatal("the instances of a service changed, and everything is looked at")
	}
	s.tell(s.health(3), fact{value: news})
	s.step(time.Now())
	last := s.snapshots[len(s.snapshots)-1]
	if diff := cmp.Diff(s.build(time.Now()).snapshot, last, snapshots); diff != "" {
		t.Errorf("everything says -, handed on +:\n%s", diff)
	}
	if first := s.snapshots[0]; first.Endpoints.Get(service(3).Name) == news {
		t.Error("the snapshot before was modified")
	}
}

// A fact that was looked at whole before its news were taken is not handed on
// again.
func TestInstancesThatAreThereAlreadyAreNotHandedOn(t *testing.T) {
	s := newTold(t, 3)
	news := instanceAt(1)
	for range 2 {
		s.tell(s.health(1), fact{value: news})
		s.step(time.Now())
	}
	if len(s.snapshots) != 2 {
		t.Errorf("%d snapshots, want the first and one with the instance", len(s.snapshots))
	}
}

func TestOtherChangesAreLookedAtWhole(t *testing.T) {
	for name, change := range map[string]func(s *told){
		"a chain":                    func(s *told) { s.tell(chainOf(service(1)), fact{value: chain(service(1).Name)}) },
		"instances that are refused": func(s *told) { s.tell(s.health(1), fact{value: instanceAt(1), err: errHidden, failures: 3}) },
		"instances, and a chain": func(s *told) {
			s.tell(s.health(1), fact{value: instanceAt(1)})
			s.tell(chainOf(service(1)), fact{value: chain(service(1).Name)})
		},
		"instances after some refusal": func(s *told) {
			s.tell(s.health(1), fact{err: errHidden, failures: 3})
			s.step(time.Now())
			s.tell(s.health(1), fact{value: instanceAt(1)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTold(t, 3)
			change(s)
			if s.patch(s.lease.take()) != nil {
				t.Error("only instances were looked at")
			}
		})
	}
}

// While a gateway's first answers come in, they are gathered; the last of them,
// and whatever is no first answer, is looked at right away.
func TestFirstAnswersAreGathered(t *testing.T) {
	s := newTold(t, 3)
	more := &rows{services: slices.Clone(s.last.Services)}
	for i := range 3 {
		more.services = append(more.services, gateway.Service{Service: service(10 + i), Port: 8080, Protocol: "http"})
	}
	listeners := []gateway.Listener{{Port: 8080, Protocol: "http", Services: []gateway.ListenerService{{Name: "*"}}}}
	wildcard := &entries{byName: map[string]*gateway.Entry{"edge": {Name: "edge", Listeners: listeners}}}
	now := time.Now()
	s.tell(query{kind: entriesKind, namespace: gateway.DefaultTenancy, partition: gateway.DefaultTenancy}, fact{value: wildcard})
	s.tell(query{kind: rowsKind, name: "edge", namespace: gateway.DefaultTenancy, partition: gateway.DefaultTenancy}, fact{value: more})
	s.step(now) // asks for three chains
	for _, step := range []struct {
		what   string
		tell   query
		value  any
		after  time.Duration
		looked bool
	}{
		{"one chain of three", chainOf(service(10)), chain(service(10).Name), time.Millisecond, false},
		{"instances that are not the first", s.health(1), instanceAt(1), time.Millisecond, true},
		{"another chain", chainOf(service(11)), chain(service(11).Name), time.Millisecond, false},
		{"the instances behind the first chain", s.health(10), instanceAt(1), time.Millisecond, false},
		{"the last one", chainOf(service(12)), chain(service(12).Name), time.Millisecond, true},
		{"instances, much later", s.health(11), instanceAt(1), gatherTime, true},
	} {
		now = now.Add(step.after)
		before := s.built
		s.tell(step.tell, fact{value: step.value})
		again := s.step(now)
		if looked := s.built != before; looked != step.looked {
			t.Errorf("%s: everything was looked at: %v, want %v", step.what, looked, step.looked)
		}
		if !step.looked && again > gatherTime {
			t.Errorf("%s: looked at after %s at the latest", step.what, again)
		}
	}
}

// BenchmarkChange is what a source does with a change: of the instances of one
// service, and of one chain.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("instances/services=%d", n), func(b *testing.B) {
			s := newTold(b, n)
			for i := 0; b.Loop(); i++ {
				s.tell(s.health(7), fact{value: instanceAt(i)})
				s.step(time.Now())
			}
		})
		b.Run(fmt.Sprintf("chain/services=%d", n), func(b *testing.B) {
			s := newTold(b, n)
			for b.Loop() {
				s.tell(chainOf(service(7)), fact{value: chain(service(7).Name)})
				s.step(time.Now())
			}
		})
	}
}
