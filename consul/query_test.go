package consul

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/retry"
)

// loopScript answers a loop's queries one after the other, and the last one never.
type loopScript struct {
	steps   []step
	queries []sentQuery
}

// step is an answer, and how long it takes.
type step struct {
	index uint64
	body  string
	err   error
	after time.Duration
	// leader says that Consul's leader gives it. The loop of a script without one does not ask the leader.
	leader bool
}

// sentQuery is a query: its index, and how long after the answer before.
type sentQuery struct {
	Index uint64
	Pause time.Duration
}

// event is what a loop made known: the value and whether it fails.
type event struct {
	Value   string
	Failing bool
}

// runLoop runs a loop on the script. It returns the queries, and the reported changes.
func runLoop(t *testing.T, steps ...step) (questions []sentQuery, events []event) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := &loopScript{steps: steps}
		l := &watchLoop{
			filtered: &filteredQueries{}, pace: newPace(),
			decode: func(_ any, r response) (any, error) {
				if r.body == nil {
					return nil, errors.New("unreadable")
				}
				v := strings.TrimSpace(string(r.body))
				return &v, nil
			},
			report: func(f queryResult, changed bool) {
				if v, _ := f.value.(*string); changed && v != nil {
					events = append(events, event{*v, f.err != nil})
				} else if changed {
					events = append(events, event{"", f.err != nil})
				}
			},
		}
		last := time.Now()
		if slices.ContainsFunc(steps, func(s step) bool { return s.leader }) {
			l.askLeader = func(ctx context.Context) (response, error) {
				if len(s.steps) == 0 || !s.steps[0].leader {
					t.Error("the leader is asked")
				}
				return l.query(ctx, 0)
			}
		}
		l.query = func(ctx context.Context, index uint64) (response, error) {
			s.queries = append(s.queries, sentQuery{index, time.Since(last)})
			if len(s.steps) == 0 {
				cancel()
				return response{}, ctx.Err()
			}
			now := s.steps[0]
			s.steps = s.steps[1:]
			time.Sleep(now.after)
			last = time.Now()
			a := response{index: now.index}
			if now.body != "" {
				a.body = []byte(now.body)
			}
			return a, now.err
		}
		l.run(ctx)
		questions = s.queries
	})
	return questions, events
}

func TestTheNextQuestionHasTheIndexOfTheAnswer(t *testing.T) {
	questions, events := runLoop(t,
		step{index: 5, body: "a"},
		step{index: 9, body: "b", after: time.Minute},
		step{index: 9, body: "b", after: 5 * time.Minute}, // nothing happened
	)
	wantEqual(t, []sentQuery{{0, 0}, {5, 0}, {9, 0}, {9, 0}}, questions)
	wantEqual(t, []event{{"a", false}, {"b", false}}, events)
}

func TestEqualContentIsNoEvent(t *testing.T) {
	_, events := runLoop(t,
		step{index: 5, body: "a"},
		step{index: 6, body: "a"},
		step{index: 7, body: " a "}, // other bytes, the same value
		step{index: 8, body: "b"},
	)
	wantEqual(t, []event{{"a", false}, {"b", false}}, events)
}

func TestAnIndexThatWentBackIsForgotten(t *testing.T) {
	questions, events := runLoop(t,
		step{index: 5, body: "a"},
		step{index: 3, body: "a"},
		step{index: 3, body: "b"},
		step{index: 4, body: "c"},
	)
	wantEqual(t, []sentQuery{{0, 0}, {5, 0}, {0, 0}, {3, 0}, {4, 0}}, questions)
	wantEqual(t, []event{{"a", false}, {"b", false}, {"c", false}}, events)
}

// A server that reads its log answers with an older state.
func TestAnOlderStateCountsIfTheLeaderHasIt(t *testing.T) {
	restarted := step{err: errors.New("refused")}
	for what, test := range map[string]struct {
		leader step
		events []event
		next   uint64
	}{
		"the leader has the newer state":     {step{index: 9, body: "b"}, []event{{"a", false}, {"b", false}, {"b", true}, {"b", false}}, 9},
		"the leader has a snapshot restored": {step{index: 5, body: "a"}, []event{{"a", false}, {"b", false}, {"b", true}, {"a", false}}, 5},
		"there is no leader":                 {step{err: errors.New("no leader")}, []event{{"a", false}, {"b", false}, {"b", true}, {"b", true}}, 0},
	} {
		test.leader.leader = true
		questions, events := runLoop(t, step{index: 5, body: "a"}, step{index: 9, body: "b"}, restarted, step{index: 5, body: "a"}, test.leader)
		wantEqual(t, test.events, events)
		if next := questions[len(questions)-1].Index; next != test.next {
			t.Errorf("%s: asked with the index %d then, want %d", what, next, test.next)
		}
	}
}

// withoutLeader returns the error of a query that a server answers with an older state, while there is no leader.
func withoutLeader(t *testing.T) error {
	t.Helper()
	l := &watchLoop{
		lastIndex: 9,
		query:     func(context.Context, uint64) (response, error) { return response{index: 5}, nil },
		askLeader: func(context.Context) (response, error) {
			return response{}, &callError{outcome: outcomeUnreachable, err: errNoLeader}
		},
	}
	_, err := l.attempt(t.Context(), 0)
	return err
}

func TestALeaderThatDoesNotAnswerIsUnreachable(t *testing.T) {
	if err := withoutLeader(t); outcomeOf(err) != outcomeUnreachable {
		t.Errorf("got the error %v (%s)", err, outcomeOf(err))
	}
}

func TestWhatLooksLikeAnotherState(t *testing.T) {
	for what, test := range map[string]struct {
		index     uint64 // of the query
		answer    response
		same      bool
		recovered bool
		next      uint64
		replaced  bool
	}{
		"the wait is over":                         {index: 9, answer: response{index: 9}, same: true, next: 9},
		"a change":                                 {index: 9, answer: response{index: 10}, next: 10},
		"the same before the wait is over":         {index: 9, answer: response{index: 9, early: true}, same: true, replaced: true},
		"a lower index after the wait":             {index: 9, answer: response{index: 5}, replaced: true},
		"other content with the same index":        {index: 9, answer: response{index: 9}},
		"a server that is behind":                  {answer: response{index: 8}, same: true, next: 8},
		"a lower index after an outage":            {answer: response{index: 8}, same: true, recovered: true, next: 8, replaced: true},
		"no index":                                 {answer: response{}, same: true},
		"the first answer has the index of before": {answer: response{index: 9}, same: true, next: 9},
	} {
		replaced := false
		l := &watchLoop{index: test.index, lastIndex: 9, filtered: &filteredQueries{}, pace: newPace(), stateReplaced: func() { replaced = true }}
		if next := l.nextIndex(test.answer, test.same, test.recovered); next != test.next || replaced != test.replaced {
			t.Errorf("%s: asked with %d next, another state: %v; want %d, %v", what, next, replaced, test.next, test.replaced)
		}
	}
}

func TestWithoutAnIndexQuestionsDoNotSpin(t *testing.T) {
	questions, _ := runLoop(t, step{body: "a"}, step{body: "a"}, step{body: "b"})
	for _, q := range questions[1:] {
		if q.Index != 0 || q.Pause < 100*time.Millisecond || q.Pause > time.Second {
			t.Errorf("asked with index %d after %v, want 0 after a pause", q.Index, q.Pause)
		}
	}
}

func TestErrorsKeepTheFactAndAreTriedAgain(t *testing.T) {
	refused := step{err: errors.New("refused")}
	questions, events := runLoop(t,
		step{index: 5, body: "a"}, refused, refused, refused, refused, refused,
		step{index: 2, body: "a"}, // Consul has been restarted
		step{index: 3, body: "b"},
	)
	wantEqual(t, []event{{"a", false}, {"a", true}, {"a", true}, {"a", true}, {"a", false}, {"b", false}}, events)
	if q := questions[2]; q.Index != 0 {
		t.Errorf("after an error the index was %d, want 0: the answer could take for ever", q.Index)
	}
	if last := questions[len(questions)-1]; last.Index != 3 {
		t.Errorf("at the end the index was %d, want 3", last.Index)
	}
}

func TestPausesAfterErrorsGrowToABound(t *testing.T) {
	var steps []step
	for range 12 {
		steps = append(steps, step{err: errors.New("refused")})
	}
	questions, _ := runLoop(t, steps...)
	bound := retry.FirstPause
	for i, q := range questions[1:] {
		if q.Pause > bound || q.Pause < bound/2 {
			t.Errorf("pause %d is %v, want %v to %v", i, q.Pause, bound/2, bound)
		}
		bound = min(2*bound, retry.LongestPause)
	}
}

func TestAQueryThatWaitedMakesThePauseShortAgain(t *testing.T) {
	refused := step{err: errors.New("refused")}
	reset := step{err: errors.New("connection reset"), after: retry.FirstPause}
	for what, waited := range map[string][]step{
		"it was answered":                {{index: 2, body: "b"}, refused},
		"it failed after a while":        {reset},
		"consul's answer has no index":   {{body: "b"}, refused},
		"it was answered after a minute": {{index: 1, body: "a", after: time.Minute}, refused},
	} {
		steps := append([]step{refused, refused, refused, refused, refused, {index: 1, body: "a"}}, waited...)
		questions, _ := runLoop(t, steps...)
		if q := questions[len(questions)-1]; q.Pause > retry.FirstPause {
			t.Errorf("%s: the pause is %v, want at most %v", what, q.Pause, retry.FirstPause)
		}
	}
}

// TestAQueryThatFailsWheneverItBlocksIsSentLessAndLess has what Consul's agent says about a leaf certificate after
// Usher's token was deleted.
func TestAQueryThatFailsWheneverItBlocksIsSentLessAndLess(t *testing.T) {
	var steps []step
	for range 12 {
		steps = append(steps, step{index: 5, body: "a"}, step{err: errors.New("refused")})
	}
	questions, _ := runLoop(t, steps...)
	for i := 2; i < len(questions); i += 2 {
		bound := min(retry.FirstPause<<(i/2-1), retry.LongestPause)
		if q := questions[i]; q.Index != 0 || q.Pause > bound || q.Pause < bound/2 {
			t.Errorf("query %d has the index %d, and comes after %v; want 0, and %v to %v", i, q.Index, q.Pause, bound/2, bound)
		}
	}
}

func TestAnUnreadableAnswerIsAnErrorUntilItIsReadable(t *testing.T) {
	_, events := runLoop(t,
		step{index: 1, body: "a"},
		step{index: 2},
		step{index: 2},
		step{index: 3, body: "a"},
	)
	wantEqual(t, []event{{"a", false}, {"a", true}, {"a", true}, {"a", false}}, events)
}

func TestAnAnswerThatChangesAllTheTimeIsReadSlower(t *testing.T) {
	var steps []step
	for i := range 100 {
		steps = append(steps, step{index: uint64(i + 1), body: strings.Repeat("x", i+1)})
	}
	questions, events := runLoop(t, steps...)
	for i, q := range questions {
		switch {
		case i <= paceBurst && q.Pause != 0:
			t.Errorf("question %d waited %v, want none: a few changes go out at once", i, q.Pause)
		case i > paceBurst+1 && q.Pause != paceInterval:
			t.Errorf("question %d waited %v, want %v", i, q.Pause, paceInterval)
		}
	}
	if len(events) != 100 {
		t.Errorf("%d events, want 100", len(events))
	}
}

func TestAPauseEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := &watchLoop{
			filtered: &filteredQueries{}, pace: newPace(),
			query:  func(context.Context, uint64) (response, error) { return response{}, errors.New("refused") },
			report: func(queryResult, bool) {},
		}
		done := make(chan struct{})
		go func() { defer close(done); l.run(ctx) }()
		time.Sleep(time.Hour)
		cancel()
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Error("it goes on")
		}
	})
}

func wantEqual[T any](t *testing.T, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// clientOf returns a client of a Consul that answers one thing.
func clientOf(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return newTestClient(t, Config{HTTPAddr: server.URL, Getenv: vars{"CONSUL_HTTP_TOKEN": callersToken}.get})
}

func TestEachWayToFailIsNamed(t *testing.T) {
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		want   outcome
		say    string
	}{
		"unknown token": {refuse(403, "ACL not found"), outcomeDenied, "403: ACL not found"},
		"not found":     {refuse(404, "Config entry not found"), outcomeMissing, "404"},
		"too many":      {refuse(429, "too many concurrent connections"), outcomeLimited, "http_max_conns_per_client"},
		"server error":  {refuse(500, "No cluster\n leader"), outcomeFailed, "500: No cluster leader"},
		"redirect":      {refuse(307, ""), outcomeFailed, "307"},
		"no leader": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Consul-Knownleader", "false")
		}, outcomeUnreachable, "leader"},
		"hung up": {func(http.ResponseWriter, *http.Request) {
			panic(http.ErrAbortHandler)
		}, outcomeUnreachable, "EOF"},
		"repeats the token": {refuse(403, "token "+callersToken+" is bad"), outcomeDenied, "not shown"},
	} {
		t.Run(name, func(t *testing.T) {
			err := askMesh(t, clientOf(t, test.answer))
			if outcomeOf(err) != test.want || !strings.Contains(err.Error(), test.say) {
				t.Errorf("%s: %v, want %s: …%s…", outcomeOf(err), err, test.want, test.say)
			}
			if strings.Contains(err.Error(), callersToken) {
				t.Errorf("the error prints the token: %v", err)
			}
		})
	}
}

func refuse(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, body, status) }
}

// A query that its caller ends says nothing about Consul; a query without an answer does.
func TestAQueryThatIsCanceledDoesNotWakeTheWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestClient(t, Config{})
		c.watchHTTP.Transport = silent{}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		time.AfterFunc(time.Second, cancel)
		for _, test := range []struct {
			ctx  context.Context
			want int
		}{{ctx, 0}, {t.Context(), 1}} {
			_, err := c.query(test.ctx, query{queryType: meshType}, 0, 0)
			if err == nil || len(c.targets.suspect) != test.want {
				t.Errorf("%v, and %d calls of the watchdog, want %d", err, len(c.targets.suspect), test.want)
			}
		}
	})
}

func TestASilentConsulIsUnreachable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestClient(t, Config{})
		c.watchHTTP.Transport = silent{}
		start := time.Now()
		_, err := c.query(t.Context(), query{queryType: meshType}, 7, time.Minute)
		if outcomeOf(err) != outcomeUnreachable || !strings.Contains(err.Error(), "no answer within") {
			t.Errorf("error %v, want that there was no answer", err)
		}
		if took := time.Since(start); took < time.Minute+4*time.Second || took > 2*time.Minute {
			t.Errorf("gave up after %v; Consul itself may take a minute and a sixteenth", took)
		}
	})
}

// silent never answers.
type silent struct{}

// RoundTrip implements http.RoundTripper.
func (silent) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestWhatIsSentWithAQuestion(t *testing.T) {
	var uri string
	c := clientOf(t, func(_ http.ResponseWriter, r *http.Request) { uri = r.URL.RequestURI() })
	for _, test := range []struct {
		query query
		index uint64
		want  string
	}{
		{query{queryType: meshType}, 0, "/v1/config/mesh?stale="},
		{query{queryType: meshType}, 7, "/v1/config/mesh?index=7&stale=&wait=60000ms"},
		{query{queryType: instancesType, name: "edge"}, 0, "/v1/health/service/edge?merge-central-config=&stale="},
		{query{queryType: leafType, name: "edge"}, 0, "/v1/agent/connect/ca/leaf/edge"},
		{query{queryType: chainType, name: "web"}.atLeader(), 0, "/v1/discovery-chain/web?consistent="},
		{query{queryType: leafType, name: "../../../kv/x"}, 0, "/v1/agent/connect/ca/leaf/..%2F..%2F..%2Fkv%2Fx"},
		{query{queryType: chainType, name: "web", namespace: "default", partition: "default"}, 0, "/v1/discovery-chain/web?stale="},
		{query{queryType: chainType, name: "web", namespace: "a", partition: "b"}, 0, "/v1/discovery-chain/web?ns=a&partition=b&stale="},
		{
			query{queryType: healthType, name: "web", datacenter: "dc2", peer: "p", filter: `Service.Meta.v == "1"`},
			0,
			"/v1/health/connect/web?dc=dc2&filter=Service.Meta.v+%3D%3D+%221%22&peer=p&stale=",
		},
	} {
		if _, err := c.query(t.Context(), test.query, test.index, time.Minute); err != nil {
			t.Fatal(err)
		}
		if uri != test.want {
			t.Errorf("%v: asked %s, want %s", test.query, uri, test.want)
		}
	}
}

// Consul's streaming backend answers an empty list, without any sign, when the
// token has lost the right to read the service.
func TestAnEmptyStreamIsAskedForAgain(t *testing.T) {
	denied := true
	c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Consul-Index", "9")
		if r.URL.Query().Has("index") {
			w.Header().Set("X-Consul-Query-Backend", "streaming")
			w.Header().Set("X-Consul-Knownleader", "false")
		} else if denied {
			http.Error(w, "Permission denied", http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte("[]\n")) // the client may have gone
	})
	q := query{queryType: healthType, name: "web"}
	if _, err := c.query(t.Context(), q, 8, time.Minute); outcomeOf(err) != outcomeDenied {
		t.Errorf("error %v, want that the token is denied", err)
	}
	denied = false
	a, err := c.query(t.Context(), q, 8, time.Minute)
	if err != nil || a.streamed || a.index != 9 {
		t.Errorf("answer %+v, error %v; want one that was not streamed", a, err)
	}
}

// After a restart, the streaming backend counts other indexes than Consul's state.
func TestAStreamThatIsBehindIsAskedForAgain(t *testing.T) {
	c := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("index") {
			w.Header().Set("X-Consul-Query-Backend", "streaming")
			w.Header().Set("X-Consul-Index", "7")
		} else {
			w.Header().Set("X-Consul-Index", "9")
		}
		_, _ = w.Write([]byte("[{}]")) // the client may have gone
	})
	if a, err := c.query(t.Context(), query{queryType: healthType, name: "web"}, 8, time.Minute); err != nil || a.streamed || a.index != 9 {
		t.Errorf("answer %+v, error %v; want one that was not streamed", a, err)
	}
}

func TestAStreamHasNoLeaderToName(t *testing.T) {
	c := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Query-Backend", "streaming")
		w.Header().Set("X-Consul-Knownleader", "false")
		_, _ = w.Write([]byte("[{}]")) // the client may have gone
	})
	if _, err := c.query(t.Context(), query{queryType: healthType, name: "web"}, 8, time.Minute); err != nil {
		t.Error(err)
	}
}
