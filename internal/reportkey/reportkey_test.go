package reportkey

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/kubeapi"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/messages"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeServer is an API server with one Secret.
type fakeServer struct {
	url string

	mu      sync.Mutex
	secret  *corev1.Secret // nil: there is none
	refuses bool
	garbage bool // it answers every request with an object without a name
	writes  int
	readers *sync.WaitGroup // what the first readers wait for; nil: nothing
}

func newFakeServer(t *testing.T, secret *corev1.Secret) *fakeServer {
	f := &fakeServer{secret: secret}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.url = server.URL
	return f
}

func (f *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fail := func(code int, reason string) {
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": %q, "code": %d, "message": "no"}`, reason, code)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case r.URL.Path != "/api/v1/namespaces/consul/secrets/usher-report-key" || f.secret == nil:
		fail(http.StatusNotFound, "NotFound")
		return
	case f.refuses:
		fail(http.StatusForbidden, "Forbidden")
		return
	case r.Method == http.MethodPut:
		var next corev1.Secret
		if err := json.NewDecoder(r.Body).Decode(&next); err != nil || next.ResourceVersion != f.secret.ResourceVersion {
			fail(http.StatusConflict, "Conflict")
			return
		}
		f.writes++
		next.ResourceVersion = fmt.Sprint(f.writes)
		f.secret = &next
	}
	answer := *f.secret
	answer.Name = "usher-report-key"
	if f.garbage {
		answer = corev1.Secret{}
	}
	if readers := f.readers; readers != nil && r.Method == http.MethodGet && f.writes == 0 {
		f.mu.Unlock()
		readers.Done()
		readers.Wait()
		f.mu.Lock()
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (f *fakeServer) change(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// replica returns a replica's Secret, and the problems that it reports.
func (f *fakeServer) replica(t *testing.T) (*Secret, <-chan []problem.Problem) {
	t.Helper()
	client, err := kubeapi.Connect(apiserver.KubeconfigFor(t, f.url))
	if err != nil {
		t.Fatal(err)
	}
	problems := make(chan []problem.Problem, 100)
	return New(Options{
		Client: client, Logger: slog.New(slog.DiscardHandler), Secret: types.NamespacedName{Namespace: "consul", Name: "usher-report-key"},
		Report: func(found []problem.Problem) { problems <- found },
	}), problems
}

func secretWith(data string) *corev1.Secret {
	return &corev1.Secret{Data: map[string][]byte{DataKey: []byte(data), "other": []byte("stays")}}
}

const random = "0123456789abcdef"

// TestReplicasThatStartTogetherHaveOneKey has two replicas read the empty Secret before either writes.
func TestReplicasThatStartTogetherHaveOneKey(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, &corev1.Secret{})
	f.readers = &sync.WaitGroup{}
	f.readers.Add(2)
	var keys [2]evidence.Key
	var both sync.WaitGroup
	for i := range keys {
		s, _ := f.replica(t)
		both.Go(func() { keys[i] = s.Attempt(t.Context()) })
	}
	both.Wait()
	if keys[0].IsZero() || keys[0] != keys[1] || f.writes != 1 {
		t.Errorf("the keys are equal: %t, none: %t, after %d writes", keys[0] == keys[1], keys[0].IsZero(), f.writes)
	}
	if n := len(f.secret.Data[DataKey]); n != 32 {
		t.Errorf("the key has %d bytes, want 32", n)
	}
}

func TestAKeyThatExistsStays(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, secretWith(random+"\n"))
	s, problems := f.replica(t)
	if got := s.Attempt(t.Context()); got != evidence.NewKey([]byte(random)) || f.writes != 0 {
		t.Errorf("got %v after %d writes", got, f.writes)
	}
	if found := <-problems; found != nil {
		t.Errorf("problems: %v", found)
	}
}

func TestAnotherDataKeyStaysBesideTheKey(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, &corev1.Secret{Data: map[string][]byte{"other": []byte("stays")}})
	s, _ := f.replica(t)
	if s.Attempt(t.Context()).IsZero() || string(f.secret.Data["other"]) != "stays" {
		t.Errorf("the Secret has %v", f.secret.Data)
	}
}

// TestTheKeyComesLater starts without a key for each reason, and removes the reason.
func TestTheKeyComesLater(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		secret  *corev1.Secret
		refuses bool
		want    string
		writes  int
	}{
		"no Secret":  {want: "it does not exist; create an empty one (docs/kubernetes-report-key.yaml)"},
		"no rights":  {secret: secretWith(random), refuses: true, want: "give Usher get and update on this Secret (docs/kubernetes-report-key.yaml)"},
		"15 bytes":   {secret: secretWith(random[1:]), want: `its data key "key" is no key: it has 15 bytes; use at least 16 random ones`},
		"empty data": {secret: secretWith(""), want: "it has 0 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeServer(t, c.secret)
			f.refuses = c.refuses
			s, problems := f.replica(t)
			if got := s.Attempt(t.Context()); !got.IsZero() {
				t.Error("there is a key")
			}
			if found := <-problems; len(found) != 1 || !strings.Contains(found[0].String(), c.want) {
				t.Errorf("problems %v, want one with %q", found, c.want)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			keys, ended := make(chan evidence.Key), make(chan error)
			go func() { ended <- s.Run(ctx, func(k evidence.Key) { keys <- k }) }()
			<-problems // it tries again
			f.change(func() { f.secret, f.refuses = secretWith(random), false })
			if got := <-keys; got != evidence.NewKey([]byte(random)) {
				t.Errorf("got %v", got)
			}
			last := <-problems
			for last != nil { // attempts before the change
				last = <-problems
			}
			f.change(func() { f.secret = secretWith("another key, which takes a restart") })
			cancel()
			if err := <-ended; err != nil || f.writes != 0 {
				t.Errorf("Run returned %v, after %d writes", err, f.writes)
			}
		})
	}
}

// TestAttemptsEnd has an API server that never answers.
func TestAttemptsEnd(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, &corev1.Secret{})
	f.readers = &sync.WaitGroup{}
	f.readers.Add(2) // one never comes
	s, problems := f.replica(t)
	if got := s.Attempt(t.Context()); !got.IsZero() {
		t.Error("there is a key")
	}
	if found := <-problems; len(found) != 1 || !strings.Contains(found[0].String(), "the API server does not answer in time") {
		t.Errorf("problems %v", found)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if s.Attempt(stopped); len(problems) > 0 {
		t.Errorf("an Usher that ends reports %v", <-problems)
	}
	f.readers.Done()
}

// memory is a state directory with one file.
type memory struct {
	payload []byte
	err     error // of Write
	// again receives what OnReplaced is given, and written each payload; both may be nil.
	again   chan func()
	written chan []byte
}

func (m *memory) OnReplaced(f func()) (stop func()) {
	if m.again != nil {
		m.again <- f
	}
	return func() {}
}

func (m *memory) Read(string) ([]byte, time.Time, error) {
	if m.payload == nil {
		return nil, time.Time{}, fs.ErrNotExist
	}
	return m.payload, time.Time{}, nil
}

func (m *memory) Write(_ string, payload []byte) error {
	if m.err == nil {
		m.payload = payload
	}
	if m.written != nil {
		m.written <- payload
	}
	return m.err
}

func TestAKeyIsWrittenAgainWhenTheMemoryIsLost(t *testing.T) {
	t.Parallel()
	f, m := newFakeServer(t, secretWith(random)), &memory{again: make(chan func(), 1), written: make(chan []byte, 2)}
	s, _ := f.replica(t)
	s.options.Memory = m
	s.Start(t.Context())
	<-m.written
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx, func(evidence.Key) {}) }()
	(<-m.again)()
	if got := <-m.written; string(got) != random {
		t.Errorf("%q is written", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestARememberedKeyIsUsedWhileTheAPIServerIsAway restarts an Usher that had the key, while nothing answers.
func TestARememberedKeyIsUsedWhileTheAPIServerIsAway(t *testing.T) {
	t.Parallel()
	f, m := newFakeServer(t, secretWith(random)), &memory{}
	s, _ := f.replica(t)
	s.options.Memory = m
	want := evidence.NewKey([]byte(random))
	if got := s.Start(t.Context()); got != want || string(m.payload) != random {
		t.Fatalf("the key is another one, and %q is remembered", m.payload)
	}
	f.change(func() { f.refuses = true })
	s, problems := f.replica(t)
	s.options.Memory = m
	if got := s.Start(t.Context()); got != want {
		t.Error("the remembered key is not used")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	keys, ended := make(chan evidence.Key), make(chan error)
	go func() { ended <- s.Run(ctx, func(k evidence.Key) { keys <- k }) }()
	if found := <-problems; len(found) != 1 || !strings.Contains(found[0].What, "uses the key that it remembers") {
		t.Errorf("problems %v", found)
	}
	const other = "another key than the remembered one"
	f.change(func() { f.refuses, f.secret = false, secretWith(other) })
	if got := <-keys; got != evidence.NewKey([]byte(other)) || string(m.payload) != other {
		t.Errorf("the Secret's key is not used, or not remembered: %q", m.payload)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestAnAnswerWithoutTheSecretGivesNoKey has something that answers everything with 200: its Secret would have no key, and
// Usher would make one that no other replica has.
func TestAnAnswerWithoutTheSecretGivesNoKey(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, &corev1.Secret{})
	f.garbage = true
	s, problems := f.replica(t)
	if got := s.Attempt(t.Context()); !got.IsZero() || f.writes != 0 {
		t.Errorf("there is a key, after %d writes", f.writes)
	}
	if found := <-problems; len(found) != 1 || !strings.Contains(found[0].What, "the answer is not the object that was asked for") {
		t.Errorf("problems %v", found)
	}
}

func TestAKeyThatIsRememberedBadlyIsRead(t *testing.T) {
	t.Parallel()
	f := newFakeServer(t, secretWith(random))
	s, _ := f.replica(t)
	s.options.Memory = &memory{payload: []byte("short"), err: errors.New("the disk is full")}
	if got := s.Start(t.Context()); got != evidence.NewKey([]byte(random)) {
		t.Error("the Secret's key is not used")
	}
}

func TestMessages(t *testing.T) {
	t.Parallel()
	_, short := evidence.ParseKey(nil)
	var lines []string
	s := New(Options{
		Secret: types.NamespacedName{Namespace: "consul", Name: "usher-report-key"}, Report: func([]problem.Problem) {},
		Memory: &memory{payload: []byte("short"), err: errors.New("the disk is full")},
		Logger: slog.New(slog.NewTextHandler((*lineWriter)(&lines), &slog.HandlerOptions{ReplaceAttr: withoutTime})),
	})
	for _, err := range []error{short, errors.New("oops")} {
		lines = append(lines, s.problem(err).String())
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	s.object.Client, _ = kubeapi.Connect(apiserver.KubeconfigFor(t, "http://127.0.0.1:1"))
	s.Start(ended)
	s.remember([]byte(random))
	s.remembered = []byte(random)
	lines = append(lines, s.problem(errors.New("oops")).String())
	messages.Check(t, lines, "fmt.Sprintf", "problem.Problem", "Warn")
}

// lineWriter collects lines of a log.
type lineWriter []string

func (w *lineWriter) Write(line []byte) (int, error) {
	*w = append(*w, strings.TrimSuffix(string(line), "\n"))
	return len(line), nil
}

func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
