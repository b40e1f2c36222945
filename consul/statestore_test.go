package consul

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/statedir"
)

// storedTest is a store without a Consul.
func newTestStore(t *testing.T, state *savedState) (*stateStore, *logRecorder) {
	t.Helper()
	log := &logRecorder{}
	return openStateStore(state.open(t), newTestClient(t, Config{HTTPAddr: "http://consul:8500", Logger: slog.New(log)})), log
}

var testGateway = gateway.ID{Name: "gateway"}

// resultsOf are results with the same answer to one query.
func resultsOf(body string) map[query]queryResult {
	return map[query]queryResult{{queryType: meshType}: {value: &mesh{}, answer: &answer{body: []byte(body)}}}
}

var testSnapshot = &gateway.Snapshot{Roots: &gateway.Roots{}}

func (s *stateStore) bodyOnDisk(t *testing.T, id gateway.ID) string {
	t.Helper()
	payload, written, err := s.dir.Read(savedName(id))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	g, err := decodeSaved(payload, written)
	if err != nil {
		t.Fatal(err)
	}
	return string(g.answers[query{queryType: meshType}].body)
}

// start runs the store until stop is called.
func (s *stateStore) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.run(ctx) }()
	return func() { cancel(); <-done }
}

func TestManyChangesAreFewWrites(t *testing.T) {
	state := newSavedState(t, nil)
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestStore(t, state)
		stop := s.start()
		s.begin(testGateway)
		s.replace(testGateway, resultsOf("0"), nil, testSnapshot)
		time.Sleep(saveDelay)
		synctest.Wait()
		if got := s.bodyOnDisk(t, testGateway); got != "0" {
			t.Errorf("on the disk after %v: %q", saveDelay, got)
		}
		writes, last := 0, "0"
		for i := range 600 {
			s.update(testGateway, resultsOf(fmt.Sprint(i)))
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			if now := s.bodyOnDisk(t, testGateway); now != last {
				writes, last = writes+1, now
			}
		}
		if most := int(time.Minute/saveInterval) + 1; writes > most || writes < most/2 {
			t.Errorf("%d writes in a minute with a change every 100 ms, want about %d", writes, most)
		}
		s.update(testGateway, resultsOf("the last one"))
		stop()
		if got := s.bodyOnDisk(t, testGateway); got != "the last one" {
			t.Errorf("on the disk after the end: %q", got)
		}
		s.dir.Close()
	})
}

func TestAFailedWriteIsAProblemWhileItLasts(t *testing.T) {
	state := newSavedState(t, nil)
	synctest.Test(t, func(t *testing.T) {
		s, log := newTestStore(t, state)
		var last atomic.Pointer[[]problem.Problem]
		s.client.report = func(_ string, found []problem.Problem) { last.Store(&found) }
		stop := s.start()
		others := gateway.ID{Name: "other"}
		for _, id := range []gateway.ID{testGateway, others} {
			s.begin(id)
			s.replace(id, resultsOf("one"), nil, testSnapshot)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		// A file in the place of the directory.
		if err := errors.Join(os.RemoveAll(state.path), os.WriteFile(state.path, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		s.update(testGateway, resultsOf("two"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if problems := *last.Load(); len(problems) != 1 || !strings.Contains(problems[0].What, "make room on the disk") || !log.has("WARN cannot save the state of a gateway") {
			t.Errorf("problems %v", problems)
		}
		if err := os.Remove(state.path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if problems := *last.Load(); len(problems) > 0 || !log.has("INFO the state of gateways can be saved again") {
			t.Errorf("problems %v after the recovery", problems)
		}
		if got := s.bodyOnDisk(t, testGateway) + s.bodyOnDisk(t, others); got != "twoone" {
			t.Errorf("on the disk: %q, want both gateways", got)
		}
		// Another user of the directory is the first to write into a new one.
		if err := errors.Join(os.RemoveAll(state.path), s.dir.Write("another", nil)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := s.bodyOnDisk(t, testGateway) + s.bodyOnDisk(t, others); got != "twoone" {
			t.Errorf("on the disk of a new directory: %q, want both gateways", got)
		}
		stop()
		s.dir.Close()
	})
}

// A directory that cannot be used is a problem from the start, until it can.
func TestADirectoryThatCannotBeUsedIsAProblem(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithInstances(t, "web"), newSavedState(t, stateKey)
	if err := os.MkdirAll(filepath.Join(state.path, ".lock"), 0o700); err != nil { // as good as any fault of a disk, for root also
		t.Fatal(err)
	}
	u := c.usherWithState(t, state, time.Minute)
	if !u.log.has("WARN cannot list the files of the state directory") {
		t.Error("the log does not say that the directory cannot be used")
	}
	u.next(t, anyOne)
	if err := os.Remove(filepath.Join(state.path, ".lock")); err != nil {
		t.Fatal(err)
	}
	until(t, func() bool { return u.log.has("INFO the state of gateways can be saved again") })
	state.file(t)
}

func TestOldFilesAreRemoved(t *testing.T) {
	state := newSavedState(t, nil)
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestStore(t, state)
		s.begin(testGateway)
		s.replace(testGateway, resultsOf("one"), nil, testSnapshot)
		s.writeAll()
		s.end(testGateway)
		s.dir.Close()
		time.Sleep(savedMaxAge + time.Hour)
		s, _ = newTestStore(t, state)
		if names, err := s.dir.Names(); s.canServe(time.Now()) || err != nil || len(names) > 0 {
			t.Errorf("usable %v, files %q, %v", s.usable, names, err)
		}
		s.dir.Close()
	})
}

// A gateway that stays as it is is written once a day, so that its file is not too old.
func TestAFileOfAQuietGatewayStaysNew(t *testing.T) {
	state := newSavedState(t, nil)
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestStore(t, state)
		stop := s.start()
		s.begin(testGateway)
		s.replace(testGateway, resultsOf("one"), nil, testSnapshot)
		time.Sleep(2*savedMaxAge + time.Hour)
		synctest.Wait()
		if _, written, err := s.dir.Read(savedName(testGateway)); err != nil || time.Since(written) > 2*savedRefresh {
			t.Errorf("written %v ago, %v", time.Since(written), err)
		}
		stop()
		s.dir.Close()
	})
}

// What is saved again before Consul has confirmed it keeps the time of the first file.
func TestAnAnswerKeepsTheTimeWhenConsulGaveIt(t *testing.T) {
	state := newSavedState(t, nil)
	synctest.Test(t, func(t *testing.T) {
		s, _ := newTestStore(t, state)
		s.begin(testGateway)
		s.replace(testGateway, resultsOf("one"), nil, testSnapshot)
		s.writeAll()
		s.end(testGateway)
		first, _ := s.begin(testGateway)
		time.Sleep(time.Hour)
		q := query{queryType: meshType}
		s.replace(testGateway, map[query]queryResult{
			q:                      {value: &mesh{}, answer: first[q]},
			{queryType: rootsType}: {value: &caRoots{}, answer: &answer{body: []byte("{}")}},
		}, nil, testSnapshot)
		s.writeAll()
		s.end(testGateway)
		again, _ := s.begin(testGateway)
		if was, is := first[q].saved, again[q].saved; !was.Equal(is) || again[query{queryType: rootsType}].saved.Sub(was) != time.Hour {
			t.Errorf("saved at %v, and after another save at %v", was, is)
		}
		s.dir.Close()
	})
}

func TestTheCertificateForClientsIsRestored(t *testing.T) {
	t.Parallel()
	state := newSavedState(t, stateKey)
	ca := newFakeCA(t)
	request := requestFor("one", "a.example")
	leaf, err := requestCertificate(t.Context(), request, func(ctx context.Context, csr string) (string, error) { return ca.sign(ctx, agent{}, csr) })
	if err != nil {
		t.Fatal(err)
	}
	s, _ := newTestStore(t, state)
	s.begin(testGateway)
	s.replace(testGateway, resultsOf("{}"), &certState{leaf: leaf, request: request}, testSnapshot)
	s.writeAll()
	s.end(testGateway)
	_, saved := s.begin(testGateway)
	if saved == nil {
		t.Fatal("it is not saved")
	}
	ca.fail(errors.New("no authority"))
	for name, test := range map[string]struct {
		request certRequest
		want    *gateway.Leaf
	}{
		"the same":    {request, leaf},
		"other names": {requestFor("one", "a.example", "b.example"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			wake := make(chan struct{}, 1)
			c := (&certificate{id: testGateway, sign: ca.sign, client: newTestClient(t, Config{}), wake: wake, saved: saved}).start()
			defer c.close()
			c.requests.Put(test.request)
			<-wake
			got := c.current()
			if diff := cmp.Diff(test.want, got.leaf); diff != "" || got.err == nil {
				t.Errorf("error %v, certificate (-want +got):\n%s", got.err, diff)
			}
		})
	}
}

func FuzzDecodeSaved(f *testing.F) {
	g := &savedGateway{
		id: testGateway, consul: []string{"http://consul:8500"}, trustDomain: "td.consul", certificate: &gateway.Leaf{CertPEM: "cert", KeyPEM: "key"},
		answers: map[query]*answer{{queryType: meshType, partition: "default"}: {body: []byte("[]")}, {queryType: leafType, name: "gateway"}: {body: []byte("{}")}},
	}
	payload, err := g.encode(true)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Add(payload[:len(payload)/2])
	f.Fuzz(func(t *testing.T, payload []byte) {
		g, err := decodeSaved(payload, time.Unix(1, 0))
		if err != nil {
			return
		}
		again, err := g.encode(true)
		if err != nil {
			t.Fatal(err)
		}
		same, err := decodeSaved(again, time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		wantEqual(t, len(g.answers), len(same.answers))
	})
}

func TestSavedNames(t *testing.T) {
	t.Parallel()
	seen := map[string]gateway.ID{}
	for _, id := range []gateway.ID{
		{Name: "edge"},
		{Name: "Edge"},
		{Name: "edge", Namespace: "a"},
		{Name: "a-edge"},
		{Name: "../edge"},
		{Name: ".._edge"},
		{Name: strings.Repeat("long", 100)},
		{Name: strings.Repeat("long", 101)},
		{Name: "ü"},
		{Name: "."},
	} {
		name := savedName(id)
		if other, taken := seen[name]; taken {
			t.Errorf("%v and %v have the file %s", id, other, name)
		}
		seen[name] = id
		if strings.ContainsAny(name, "/\\ ") || len(name) > 120 {
			t.Errorf("%v has the file %q", id, name)
		}
	}
}

// BenchmarkSavedChange is what a gatewayWatch does with a change of the instances of one service, without and with a state
// directory. The writes of the store are in it: they use the same processors.
func BenchmarkSavedChange(b *testing.B) {
	body := []byte(sidecar(20000, "passing").body)
	for _, n := range []int{100, 5000} {
		for _, saved := range []bool{false, true} {
			b.Run(fmt.Sprintf("services=%d/saved=%v", n, saved), func(b *testing.B) {
				s := newManualWatch(b, n)
				if saved {
					s.saveInto(b, body)
				}
				for i := 0; b.Loop(); i++ {
					r := queryResult{value: instanceAt(i)}
					if saved {
						r.answer = newAnswer(response{body: body})
					}
					s.update(s.health(7), r)
					s.step(time.Now())
				}
			})
		}
	}
}

// saveInto gives the watch a store, with an answer for each query.
func (s *manualWatch) saveInto(b *testing.B, body []byte) {
	b.Helper()
	dir, err := statedir.Open(filepath.Join(b.TempDir(), "state"), stateKey)
	if err != nil {
		b.Fatal(err)
	}
	s.store = openStateStore(dir, s.client)
	s.store.begin(s.id)
	stop := s.store.start()
	b.Cleanup(func() {
		stop()
		dir.Close()
	})
	results := map[query]queryResult{}
	for q, r := range s.subscription.results {
		r.answer = newAnswer(response{body: body})
		results[q] = r
	}
	s.store.replace(s.id, results, nil, s.state.last)
}

// BenchmarkSave is one write of a gateway.
func BenchmarkSave(b *testing.B) {
	for _, n := range []int{100, 5000} {
		b.Run(fmt.Sprintf("services=%d", n), func(b *testing.B) {
			s := newManualWatch(b, n)
			s.saveInto(b, []byte(sidecar(20000, "passing").body))
			for b.Loop() {
				s.store.mu.Lock()
				content := s.store.gateways[s.id].content
				s.store.mu.Unlock()
				if _, err := content.encode(true); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
