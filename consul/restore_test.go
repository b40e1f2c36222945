package consul

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/statedir"
)

var stateKey = []byte("a secret of the operator")

// savedState is a state directory whose Ushers run one after the other.
type savedState struct {
	path string
	key  []byte
}

func newSavedState(t *testing.T, key []byte) *savedState {
	t.Helper()
	return &savedState{path: filepath.Join(t.TempDir(), "state"), key: key}
}

func (s *savedState) open(t *testing.T) *statedir.Dir {
	t.Helper()
	dir, err := statedir.Open(s.path, s.key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

// file returns the path of the only file of a gateway.
func (s *savedState) file(t *testing.T) string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(s.path, savedPrefix+"*.state"))
	if err != nil || len(list) != 1 {
		t.Fatalf("files %q, %v; want one", list, err)
	}
	return list[0]
}

// statefulUsher is a Watcher with a state directory that watches the gateway, until stop.
type statefulUsher struct {
	*testWatch
	watcher *Watcher
	log     *logRecorder
	client  *Client
	stop    func() // saves what is not saved yet
}

// usherWithState returns one with a long answer timeout.
func (c *fakeConsul) usherWithState(t *testing.T, s *savedState, restoreAfter time.Duration) *statefulUsher {
	t.Helper()
	return c.startStateful(t, s, restoreAfter, time.Minute)
}

func (c *fakeConsul) startStateful(t *testing.T, s *savedState, restoreAfter, answerTimeout time.Duration) *statefulUsher {
	t.Helper()
	u := &statefulUsher{log: &logRecorder{}}
	u.client = c.client(t, u.log)
	if c.report != nil {
		u.client.report = c.report
	}
	dir := s.open(t)
	u.watcher = NewWatcher(u.client, WatcherOptions{HealthTimeout: time.Minute, AnswerTimeout: answerTimeout, State: dir})
	u.watcher.manager.restoreAfter = restoreAfter
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- u.watcher.Run(ctx) }()
	u.testWatch = start(t, u.watcher, "gateway")
	stopWatch := u.testWatch.stop
	ended := false
	u.stop = func() {
		if ended {
			return
		}
		ended = true
		stopWatch()
		cancel()
		if err := errors.Join(<-done, dir.Close()); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(u.stop)
	return u
}

// save runs an Usher until the gateway is saved, and returns its snapshot.
func (c *fakeConsul) save(t *testing.T, s *savedState) *gateway.Snapshot {
	t.Helper()
	u := c.usherWithState(t, s, time.Minute)
	saved := u.next(t, anyOne)
	u.stop()
	if !saved.Restored.IsZero() {
		t.Fatalf("Consul answers, and the snapshot is from %v", saved.Restored)
	}
	return saved
}

// asBefore compares snapshots but for whether they are restored.
var asBefore = append(slices.Clone(snapshots), cmpopts.IgnoreFields(gateway.Snapshot{}, "Restored", "Keep", "Problems"))

// outages are ways in which Consul gives no answer.
var outages = map[string]func(c *fakeConsul){
	"refuses connections": func(c *fakeConsul) { c.server.Close() },
	"is silent":           func(c *fakeConsul) { c.setAll(reply{silent: true}) },
	"answers 500":         func(c *fakeConsul) { c.setAll(reply{status: http.StatusInternalServerError, body: "no"}) },
	"answers 403":         func(c *fakeConsul) { c.setAll(reply{status: http.StatusForbidden, body: "Permission denied"}) },
	"answers garbage":     func(c *fakeConsul) { c.setAll(reply{body: "<html>"}) },
	"has no leader":       func(c *fakeConsul) { c.setAll(reply{leaderless: true, body: "[]"}) },
}

// setAll gives all paths the same reply. It returns the replies before.
func (c *fakeConsul) setAll(r reply) (before map[string]reply) {
	c.mu.Lock()
	before = c.replies
	c.replies = map[string]reply{}
	c.mu.Unlock()
	for path := range before {
		c.set(path, r)
	}
	return before
}

func TestAGatewayIsTheSameAfterARestartWithoutConsul(t *testing.T) {
	for name, begin := range outages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, state := newFakeGatewayWithEverything(t), newSavedState(t, stateKey)
			want := c.save(t, state)
			begin(c)
			u := c.usherWithState(t, state, 10*time.Millisecond)
			got := u.next(t, anyOne)
			if diff := cmp.Diff(want, got, asBefore); diff != "" {
				t.Errorf("before -, after the restart +:\n%s", diff)
			}
			if age := time.Since(got.Restored); age < 0 || age > time.Hour {
				t.Errorf("restored from %v", got.Restored)
			}
			if !u.watcher.HasSaved() {
				t.Error("the watcher says that nothing is saved")
			}
		})
	}
}

func TestConsulsAnswersReplaceTheSavedOnes(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithEverything(t), newSavedState(t, stateKey)
	want := c.save(t, state)
	replies := c.setAll(reply{status: http.StatusInternalServerError, body: "no"})
	u := c.usherWithState(t, state, time.Minute)
	u.next(t, func(s *gateway.Snapshot) bool { return !s.Restored.IsZero() })
	for path, r := range replies {
		c.set(path, r)
	}
	c.set("/v1/health/connect/api", sidecar(9999, "passing"))
	s := u.next(t, func(s *gateway.Snapshot) bool {
		return s.Endpoints.Get("api").Endpoints[0].Port == 9999 && s.Restored.IsZero()
	})
	wantEqual(t, want.Chains, s.Chains)
	u.stop()

	c.setAll(reply{status: http.StatusInternalServerError, body: "no"})
	s = c.usherWithState(t, state, time.Minute).next(t, anyOne)
	if got := s.Endpoints.Get("api").Endpoints[0].Port; got != 9999 {
		t.Errorf("port %d after another restart, want the last one", got)
	}
}

func TestTheSavedStateIsNotUsedIfConsulAnswers(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithEverything(t), newSavedState(t, stateKey)
	c.save(t, state)
	c.set("/v1/health/connect/api", sidecar(9999, "passing"))
	u := c.usherWithState(t, state, time.Minute)
	s := u.next(t, anyOne)
	if got := s.Endpoints.Get("api").Endpoints[0].Port; got != 9999 || !s.Restored.IsZero() {
		t.Errorf("port %d, restored from %v; want only what Consul says", got, s.Restored)
	}
}

// One query that Consul does not answer takes nothing away. Running Envoys keep what may be newer than the saved answer.
func TestOneRefusalAfterARestartTakesNothingAway(t *testing.T) {
	t.Parallel()
	newFake := func(t *testing.T) *fakeConsul {
		c := newFakeGatewayWithEverything(t)
		c.set("/v1/agent/self", reply{body: `{"Config": {"BindAddr": "::"}, "DebugConfig": {"DNSDomain": "example."}}`})
		return c
	}
	want := newFake(t).save(t, newSavedState(t, stateKey))
	keeps := map[string]gateway.Keep{
		"/v1/agent/self":                    gateway.KeepNothing,
		"/v1/health/connect/web?dc=dc2":     gateway.KeepNothing,
		"/v1/config/ingress-gateway":        gateway.KeepConfiguration,
		"/v1/config/mesh":                   gateway.KeepConfiguration,
		"/v1/agent/connect/ca/leaf/gateway": gateway.KeepConfiguration,
		servicesPath:                        gateway.KeepConfiguration,
	}
	for path := range newFake(t).replies {
		keep, known := keeps[path]
		if !known {
			keep = gateway.KeepAll
		}
		for name, refusal := range map[string]reply{
			"403":       {status: http.StatusForbidden, body: "Permission denied"},
			"no leader": {leaderless: true, body: "[]"},
		} {
			t.Run(path+" "+name, func(t *testing.T) {
				t.Parallel()
				c, state := newFake(t), newSavedState(t, stateKey)
				c.save(t, state)
				c.set(path, refusal)
				for range 2 { // what is saved meanwhile is as good
					u := c.startStateful(t, state, time.Minute, time.Second)
					u.next(t, func(got *gateway.Snapshot) bool {
						wantNothingLost(t, want, got)
						return !got.Restored.IsZero() && got.Keep == keep && cmp.Equal(want, got, asBefore)
					})
					if u.log.has("INFO consul has answered everything") {
						t.Error("the log says that nothing is from the state directory any more")
					}
					u.stop()
				}
			})
		}
	}
}

// A token that never had an optional permission lacks nothing after a restart: the saved refusal is no answer to fall back on.
func TestARefusalBeforeAndAfterARestartIsNoOutage(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithEverything(t), newSavedState(t, stateKey)
	c.set("/v1/agent/self", reply{status: http.StatusForbidden, body: "Permission denied"})
	c.save(t, state)
	u := c.usherWithState(t, state, time.Minute)
	u.next(t, func(got *gateway.Snapshot) bool { return got.Restored.IsZero() && got.Keep == gateway.KeepNothing })
	if u.log.has("WARN cannot read from consul") {
		t.Error("the log says that consul cannot be read")
	}
	u.stop()
}

// The entry is newer in Consul than what is saved, and at first Consul answers everything else. Envoys keep theirs until it
// answers that, too, however long that takes.
func TestEnvoysKeepTheirsUntilConsulHasAnsweredEverything(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithEverything(t), newSavedState(t, stateKey)
	c.save(t, state)
	const path = "/v1/config/ingress-gateway"
	c.mu.Lock()
	entry := c.replies[path]
	c.mu.Unlock()
	c.set(path, reply{status: http.StatusInternalServerError, body: "no"})
	u := c.startStateful(t, state, time.Minute, 10*time.Millisecond)
	u.next(t, func(s *gateway.Snapshot) bool { return s.Keep == gateway.KeepConfiguration })
	c.set("/v1/health/connect/api", sidecar(9999, "passing"))
	s := u.next(t, func(s *gateway.Snapshot) bool { return s.Endpoints.Get("api").Endpoints[0].Port == 9999 })
	if s.Keep != gateway.KeepConfiguration || s.Restored.IsZero() {
		t.Errorf("Envoys keep %d, restored from %v", s.Keep, s.Restored)
	}
	c.set(path, entry)
	u.next(t, func(s *gateway.Snapshot) bool { return s.Keep == gateway.KeepNothing && s.Restored.IsZero() })
}

func TestAnExpiredCertificateIsNotServedAfterARestart(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithInstances(t, "web"), newSavedState(t, stateKey)
	c.set("/v1/agent/connect/ca/leaf/gateway", reply{body: `{"CertPEM": "old", "PrivateKeyPEM": "key", "ValidBefore": "2020-01-02T03:04:05Z"}`})
	c.save(t, state)
	replies := c.setAll(reply{status: http.StatusInternalServerError, body: "no"})
	u := c.usherWithState(t, state, time.Minute)
	until(t, func() bool { return u.log.has("WARN usher does not use a saved answer, and waits for consul's") })
	if u.watcher.HasSaved() {
		t.Error("the watcher says that it can serve new Envoys with an expired certificate")
	}
	for path, r := range replies {
		c.set(path, r)
	}
	c.set("/v1/agent/connect/ca/leaf/gateway", reply{body: `{"CertPEM": "new", "PrivateKeyPEM": "key"}`})
	if s := u.next(t, anyOne); s.Leaf.CertPEM != "new" {
		t.Errorf("the first snapshot has the certificate %q", s.Leaf.CertPEM)
	}
}

func TestWithoutAKeyNoPrivateKeyIsSaved(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithInstances(t, "web"), newSavedState(t, nil)
	c.set("/v1/agent/connect/ca/leaf/gateway", reply{body: `{"CertPEM": "cert", "PrivateKeyPEM": "the-private-key"}`})
	want := c.save(t, state)
	content, err := os.ReadFile(state.file(t))
	if err != nil {
		t.Fatal(err)
	}
	_, payload, _ := bytes.Cut(content, []byte("\n"))
	_, payload, _ = bytes.Cut(payload, []byte("\n"))
	g, err := decodeSaved(payload, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for q, a := range g.answers {
		if bytes.Contains(a.body, []byte("the-private-key")) {
			t.Errorf("the answer to %s is saved with a private key", q)
		}
	}

	replies := c.setAll(reply{status: http.StatusInternalServerError, body: "no"})
	u := c.usherWithState(t, state, time.Minute)
	s := u.next(t, anyOne)
	if s.Leaf != nil {
		t.Errorf("there is a certificate: %v", s.Leaf)
	}
	wantEqual(t, want.Chains, s.Chains)
	wantProblem(t, s, `certificate of gateway "gateway"`, "--state-key-file")
	if u.watcher.HasSaved() {
		t.Error("the watcher says that it can serve new Envoys without a certificate")
	}
	for path, r := range replies {
		c.set(path, r)
	}
	s = u.next(t, func(s *gateway.Snapshot) bool { return s.Leaf != nil })
	wantEqual(t, nil, s.Problems)
}

func TestAStateOfAnotherConsulIsNotUsed(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithInstances(t, "web"), newSavedState(t, stateKey)
	c.save(t, state)
	other := newFakeGatewayWithInstances(t, "web", "api")
	other.setAll(reply{status: http.StatusInternalServerError, body: "no"})
	u := other.usherWithState(t, state, time.Minute)
	until(t, func() bool { return u.log.has("WARN usher does not use a saved state, and waits for consul's answers") })
	if u.watcher.HasSaved() {
		t.Error("the watcher says that it can serve from another Consul's state")
	}
	u.stop()
	if len(u.snapshots) > 0 {
		t.Errorf("a snapshot: %v", <-u.snapshots)
	}
}

// Consul at the same address can be another cluster, which its trust domain shows.
func TestAStateOfAnotherClusterIsNotUsed(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithInstances(t, "web"), newSavedState(t, stateKey)
	c.save(t, state)
	replies := c.setAll(reply{status: http.StatusInternalServerError, body: "no"})
	c.set("/v1/connect/ca/roots", roots("another"))
	u := c.usherWithState(t, state, time.Minute)
	c.waitHandled(t, "/v1/connect/ca/roots", "/v1/agent/self", "/v1/config/mesh")
	for path, r := range replies {
		if path != "/v1/connect/ca/roots" {
			c.set(path, r)
		}
	}
	s := u.next(t, anyOne)
	if s.Roots.TrustDomain != "another.consul" || !s.Restored.IsZero() {
		t.Errorf("the first snapshot has the trust domain %s, and is restored from %v", s.Roots.TrustDomain, s.Restored)
	}
}

func TestADamagedFileIsNotUsed(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithInstances(t, "web"), newSavedState(t, stateKey)
	c.save(t, state)
	content, err := os.ReadFile(state.file(t))
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	if err := os.WriteFile(state.file(t), content, 0o600); err != nil {
		t.Fatal(err)
	}
	replies := c.setAll(reply{status: http.StatusInternalServerError, body: "no"})
	u := c.usherWithState(t, state, time.Minute)
	if u.watcher.HasSaved() || !u.log.has("WARN usher does not use a saved state") {
		t.Errorf("the log has no line about the damaged file")
	}
	for path, r := range replies {
		c.set(path, r)
	}
	if s := u.next(t, anyOne); !s.Restored.IsZero() {
		t.Errorf("restored from %v", s.Restored)
	}
}

// A saved answer that the decoder refuses is left out alone. Another release of Usher may have saved it.
func TestAnAnswerThatCannotBeDecodedIsNotUsed(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithInstances(t, "web"), newSavedState(t, nil)
	c.save(t, state)
	dir := state.open(t)
	client := c.client(t, slog.DiscardHandler)
	store := openStateStore(dir, client)
	store.begin(gateway.ID{Name: "gateway"})
	store.update(gateway.ID{Name: "gateway"}, map[query]queryResult{
		healthQuery(&gateway.Target{Service: "web", Datacenter: "dc1"}, "dc1"): {answer: &answer{body: []byte("null")}},
	})
	store.writeAll()
	dir.Close()
	replies := c.setAll(reply{status: http.StatusInternalServerError, body: "no"})
	u := c.usherWithState(t, state, time.Minute)
	until(t, func() bool { return u.log.has("WARN usher does not use a saved answer, and waits for consul's") })
	c.set("/v1/health/connect/web", replies["/v1/health/connect/web"])
	if s := u.next(t, anyOne); s.Endpoints.Get("web") == nil || s.Entry == nil {
		t.Errorf("endpoints %v, entry %v", s.Endpoints, s.Entry)
	}
}

func TestAGatewayThatIsNotRegisteredIsForgotten(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithInstances(t, "web"), newSavedState(t, stateKey)
	c.save(t, state)
	u := c.usherWithState(t, state, time.Minute)
	u.next(t, anyOne)
	c.set("/v1/health/service/gateway", reply{body: "[]"})
	u.next(t, func(s *gateway.Snapshot) bool { return len(s.Instances) == 0 })
	u.stop()
	if list, err := filepath.Glob(filepath.Join(state.path, savedPrefix+"*")); err != nil || len(list) > 0 {
		t.Errorf("files %q, %v", list, err)
	}
}

func TestTheProblemSaysWhatIsServed(t *testing.T) {
	t.Parallel()
	c, state := newFakeGatewayWithInstances(t, "web"), newSavedState(t, stateKey)
	c.save(t, state)
	c.server.Close()
	problems := make(chan []problem.Problem, 1000)
	c.report = func(source string, found []problem.Problem) {
		if source == "queries to consul" {
			problems <- found
		}
	}
	u := c.usherWithState(t, state, time.Minute)
	s := u.next(t, anyOne)
	want := "Usher uses what it saved at " + s.Restored.UTC().Format(time.RFC3339)
	end := time.After(10 * time.Second)
	for {
		select {
		case found := <-problems:
			if len(found) == 1 && found[0].Severity == problem.Degraded && strings.Contains(found[0].What, want) {
				return
			}
		case <-end:
			t.Fatalf("no problem that says %q", want)
		}
	}
}
