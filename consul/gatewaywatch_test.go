package consul

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
)

// manualWatch is a gatewayWatch whose results the test sets. Its queries are never answered.
type manualWatch struct {
	*gatewayWatch
	snapshots []*gateway.Snapshot
}

// newManualWatch returns a gatewayWatch with all results for a gateway with n services.
func newManualWatch(t testing.TB, n int) *manualWatch {
	t.Helper()
	client, err := NewClient(Config{HTTPAddr: "https://127.0.0.1:1", Getenv: func(string) string { return "" }})
	if err != nil {
		t.Fatal(err)
	}
	client.watchHTTP.Transport = silent{}
	s := &manualWatch{}
	s.gatewayWatch = &gatewayWatch{
		id: gateway.ID{Name: "edge"}, client: client, subscription: newWatchManager(client, time.Minute).subscribe(), options: WatcherOptions{HealthTimeout: time.Minute, AnswerTimeout: time.Minute},
		publishSnapshot: func(next *gateway.Snapshot) { s.snapshots = append(s.snapshots, next) },
	}
	t.Cleanup(s.subscription.close)

	listener := gateway.Listener{Port: 8080, Protocol: "http"}
	all := &gatewayServices{}
	for i := range n {
		listener.Services = append(listener.Services, gateway.ListenerService{Name: service(i).Name})
		all.services = append(all.services, gateway.Service{Service: service(i), Port: 8080, Protocol: "http"})
	}
	slices.SortFunc(all.services, compareServices)
	reg := &registration{}
	reg.Node.Node, reg.Node.Datacenter, reg.Service.Kind, reg.Service.ID = "a", "dc1", ingressGatewayKind, "edge"
	values := map[*queryType]any{
		agentType:         &agent{},
		rootsType:         &caRoots{all: &gateway.Roots{}},
		leafType:          &gateway.Leaf{},
		meshType:          &mesh{},
		proxyDefaultsType: &proxyDefaults{},
		entriesType:       &entries{byName: map[string]*gateway.Entry{"edge": {Name: "edge", Listeners: []gateway.Listener{listener}}}},
		servicesType:      all,
		instancesType:     &[]*registration{reg},
	}
	// Each step needs the queries that follow from the results before.
	known := map[query]bool{}
	for range 4 {
		s.step(time.Now())
		for q := range s.subscription.watches {
			if known[q] {
				continue
			}
			known[q] = true
			value := values[q.queryType]
			switch q.queryType {
			case chainType:
				value = chain(q.name)
			case healthType:
				value = &gateway.Endpoints{}
			}
			s.update(q, queryResult{value: value})
		}
	}
	s.step(time.Now())
	if len(s.snapshots) != 1 {
		t.Fatalf("%d snapshots with all results, want 1", len(s.snapshots))
	}
	return s
}

func service(i int) gateway.ServiceName {
	return gateway.ServiceName{Name: fmt.Sprintf("service-%d", i)}
}

func chain(service string) *discoveryChain {
	return &discoveryChain{Chain: &gateway.Chain{ServiceName: service, Datacenter: "dc1", Targets: map[string]*gateway.Target{
		service: {ID: service, Service: service, Datacenter: "dc1"},
	}}}
}

func (s *manualWatch) update(q query, f queryResult) {
	s.subscription.manager.setResult(s.subscription.watches[q], f, true)
}

// health is the query for the instances of the ith service.
func (s *manualWatch) health(i int) query {
	return healthQuery(chain(service(i).Name).Targets[service(i).Name], "dc1")
}

func instanceAt(port int) *gateway.Endpoints {
	return &gateway.Endpoints{Endpoints: []gateway.Endpoint{{Address: "10.0.0.1", Port: port}}}
}

// A change of instances is published without building everything, and the result is
// the same as that of building everything.
func TestChangedInstancesArePublishedAlone(t *testing.T) {
	s := newManualWatch(t, 5)
	news := instanceAt(1)
	s.update(s.health(3), queryResult{value: news})
	updates, _ := s.subscription.takeUpdates()
	if next := s.patchEndpoints(updates, time.Now()); next == nil || next.Endpoints.Get(service(3).Name) != news {
		t.Fatal("the instances of a service changed, and everything is built")
	}
	s.update(s.health(3), queryResult{value: news})
	s.step(time.Now())
	last := s.snapshots[len(s.snapshots)-1]
	everything := s.state
	everything.last = nil
	built := buildSnapshot(input{id: s.id, now: time.Now(), results: s.subscription.results}, everything).snapshot
	if diff := cmp.Diff(built, last, snapshots); diff != "" {
		t.Errorf("built -, published +:\n%s", diff)
	}
	if first := s.snapshots[0]; first.Endpoints.Get(service(3).Name) == news {
		t.Error("the snapshot before was modified")
	}
}

// An update that is in the snapshot already is not published again.
func TestInstancesThatAreThereAlreadyAreNotPublished(t *testing.T) {
	s := newManualWatch(t, 3)
	news := instanceAt(1)
	for range 2 {
		s.update(s.health(1), queryResult{value: news})
		s.step(time.Now())
	}
	if len(s.snapshots) != 2 {
		t.Errorf("%d snapshots, want the first and one with the instance", len(s.snapshots))
	}
}

func TestOtherChangesBuildEverything(t *testing.T) {
	for name, change := range map[string]func(s *manualWatch){
		"a chain": func(s *manualWatch) {
			s.update(serviceQuery(chainType, service(1)), queryResult{value: chain(service(1).Name)})
		},
		"instances that are refused": func(s *manualWatch) {
			s.update(s.health(1), queryResult{value: instanceAt(1), err: errAllFiltered, failures: 3})
		},
		"instances, and a chain": func(s *manualWatch) {
			s.update(s.health(1), queryResult{value: instanceAt(1)})
			s.update(serviceQuery(chainType, service(1)), queryResult{value: chain(service(1).Name)})
		},
		"instances after some refusal": func(s *manualWatch) {
			s.update(s.health(1), queryResult{err: errAllFiltered, failures: 3})
			s.step(time.Now())
			s.update(s.health(1), queryResult{value: instanceAt(1)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newManualWatch(t, 3)
			change(s)
			updates, _ := s.subscription.takeUpdates()
			if s.patchEndpoints(updates, time.Now()) != nil {
				t.Error("only the instances were changed")
			}
		})
	}
}

// While first answers of a gateway are outstanding, the gatewayWatch waits for more of them.
// It builds at once after the last one, and after any other update.
func TestFirstAnswersAreDebounced(t *testing.T) {
	s := newManualWatch(t, 3)
	more := &gatewayServices{services: slices.Clone(s.state.last.Services)}
	for i := range 3 {
		more.services = append(more.services, gateway.Service{Service: service(10 + i), Port: 8080, Protocol: "http"})
	}
	listeners := []gateway.Listener{{Port: 8080, Protocol: "http", Services: []gateway.ListenerService{{Name: "*"}}}}
	wildcard := &entries{byName: map[string]*gateway.Entry{"edge": {Name: "edge", Listeners: listeners}}}
	now := time.Now()
	s.update(query{queryType: entriesType, namespace: gateway.DefaultTenancy, partition: gateway.DefaultTenancy}, queryResult{value: wildcard})
	s.update(query{queryType: servicesType, name: "edge", namespace: gateway.DefaultTenancy, partition: gateway.DefaultTenancy}, queryResult{value: more})
	s.step(now) // asks for three chains
	for _, step := range []struct {
		what  string
		query query
		value any
		after time.Duration
		built bool
	}{
		{"one chain of three", serviceQuery(chainType, service(10)), chain(service(10).Name), time.Millisecond, false},
		{"instances that are not the first", s.health(1), instanceAt(1), time.Millisecond, true},
		{"another chain", serviceQuery(chainType, service(11)), chain(service(11).Name), time.Millisecond, false},
		{"the instances behind the first chain", s.health(10), instanceAt(1), time.Millisecond, false},
		{"the last one", serviceQuery(chainType, service(12)), chain(service(12).Name), time.Millisecond, true},
		{"instances, much later", s.health(11), instanceAt(1), debounceTime, true},
	} {
		now = now.Add(step.after)
		before := s.builtAt
		s.update(step.query, queryResult{value: step.value})
		again := s.step(now)
		if built := s.builtAt != before; built != step.built {
			t.Errorf("%s: everything was built: %v, want %v", step.what, built, step.built)
		}
		if !step.built && again > debounceTime {
			t.Errorf("%s: built after %s at the latest", step.what, again)
		}
	}
}

// BenchmarkChange is what a gatewayWatch does with a change: of the instances of one
// service, and of one chain.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} {
		b.Run(fmt.Sprintf("instances/services=%d", n), func(b *testing.B) {
			s := newManualWatch(b, n)
			for i := 0; b.Loop(); i++ {
				s.update(s.health(7), queryResult{value: instanceAt(i)})
				s.step(time.Now())
			}
		})
		b.Run(fmt.Sprintf("chain/services=%d", n), func(b *testing.B) {
			s := newManualWatch(b, n)
			for b.Loop() {
				s.update(serviceQuery(chainType, service(7)), queryResult{value: chain(service(7).Name)})
				s.step(time.Now())
			}
		})
	}
}
