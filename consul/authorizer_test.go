package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
)

// tokenServer is a Consul that knows some tokens, and counts the ACL checks.
type tokenServer struct {
	mu      sync.Mutex
	allowed map[string]bool
	status  int // of the answers; 0: 200
	asked   []string
	// hold receives the token of each check. The check then waits for release. If
	// hold is nil, no check waits.
	hold    chan string
	release chan struct{}
	// left has a value when the caller of a waiting check has gone away, unless it is nil.
	left chan struct{}
}

// ServeHTTP implements http.Handler.
func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // otherwise the server does not notice the end of the connection
	token := r.Header.Get("X-Consul-Token")
	s.mu.Lock()
	s.asked = append(s.asked, token)
	status, allowed, hold := s.status, s.allowed[token], s.hold
	s.mu.Unlock()
	if hold != nil {
		hold <- token
		select {
		case <-s.release:
		case <-r.Context().Done():
			select {
			case s.left <- struct{}{}:
			default:
			}
			return
		}
	}
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	fmt.Fprintf(w, `[{"Resource":"service","Segment":"gateway","Access":"write","Allow":%t}]`, allowed)
}

func (s *tokenServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *tokenServer) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

// serveTokens serves until the test ends.
func serveTokens(t *testing.T, s *tokenServer, o AuthorizerOptions) (*Authorizer, *strings.Builder) {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	var log strings.Builder
	c := newTestClient(t, Config{HTTPAddr: server.URL, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	t.Cleanup(c.aclHTTP.CloseIdleConnections)
	return NewAuthorizer(c, o), &log
}

var theGateway = gateway.ID{Name: "gateway"}

func TestARefusalIsRememberedForAWhile(t *testing.T) {
	s := &tokenServer{}
	a, _ := serveTokens(t, s, AuthorizerOptions{StaleIfError: time.Hour})
	for range 100 {
		if err := a.Authorize(t.Context(), Caller{Token: "bad"}, theGateway); !errors.Is(err, ErrDenied) {
			t.Fatalf("error %v, want ErrDenied", err)
		}
	}
	if n := s.questions(); n != 1 {
		t.Errorf("Consul was asked %d times, want once", n)
	}
	// It holds for that token and gateway only, and not for a stream that is open.
	_ = a.Authorize(t.Context(), Caller{Token: "other"}, theGateway)
	_ = a.Authorize(t.Context(), Caller{Token: "bad"}, gateway.ID{Name: "other"})
	_ = a.Authorize(t.Context(), Caller{Token: "bad", Again: true}, theGateway)
	if n := s.questions(); n != 4 {
		t.Errorf("Consul was asked %d times, want 4", n)
	}
	a.refused.Purge() // as after ten seconds
	s.set(func() { s.allowed = map[string]bool{"bad": true} })
	if err := a.Authorize(t.Context(), Caller{Token: "bad"}, theGateway); err != nil {
		t.Errorf("error %v after the token was given the right", err)
	}
}

func TestARefusalIsForgottenInTime(t *testing.T) {
	a, _ := serveTokens(t, &tokenServer{}, AuthorizerOptions{StaleIfError: time.Hour})
	_ = a.Authorize(t.Context(), Caller{Token: "bad"}, theGateway)
	r, ok := a.refused.Get(a.keyOf(Caller{Token: "bad"}, theGateway))
	if left := time.Until(r.until); !ok || left <= 0 || left > refusalTime {
		t.Errorf("it counts for %v more", left)
	}
}

func TestWhoWasAllowedMayGoOnWhileConsulIsAway(t *testing.T) {
	s := &tokenServer{allowed: map[string]bool{"good": true}}
	a, log := serveTokens(t, s, AuthorizerOptions{StaleIfError: time.Hour})
	good := Caller{Token: "good"}
	if err := a.Authorize(t.Context(), good, theGateway); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.status = http.StatusInternalServerError })
	for range 3 {
		for _, again := range []bool{true, false} {
			if err := a.Authorize(t.Context(), Caller{Token: "good", Again: again}, theGateway); err != nil {
				t.Errorf("it was allowed before, and now: %v", err)
			}
		}
	}
	for _, who := range []struct {
		token string
		id    gateway.ID
	}{{"unseen", theGateway}, {"good", gateway.ID{Name: "other"}}, {"good", gateway.ID{Name: "gateway", Namespace: "team"}}} {
		if err := a.Authorize(t.Context(), Caller{Token: who.token}, who.id); err == nil || isDecision(err) {
			t.Errorf("%v: %v, want that Consul does not answer", who, err)
		}
	}
	if n := strings.Count(log.String(), "consul does not answer ACL checks"); n != 1 {
		t.Errorf("the log says %d times that Consul does not answer:\n%s", n, log)
	}
	s.set(func() { s.status = 0 })
	if err := a.Authorize(t.Context(), good, theGateway); err != nil || !strings.Contains(log.String(), "answers ACL checks again") {
		t.Errorf("%v; the log:\n%s", err, log)
	}
	if strings.Contains(log.String(), "good") {
		t.Errorf("the log has the token:\n%s", log)
	}
}

func TestARefusalEndsWhatWasAllowed(t *testing.T) {
	s := &tokenServer{allowed: map[string]bool{"good": true}}
	a, _ := serveTokens(t, s, AuthorizerOptions{StaleIfError: time.Hour})
	_ = a.Authorize(t.Context(), Caller{Token: "good"}, theGateway)
	s.set(func() { s.allowed = nil })
	if err := a.Authorize(t.Context(), Caller{Token: "good", Again: true}, theGateway); !errors.Is(err, ErrDenied) {
		t.Fatalf("error %v, want ErrDenied", err)
	}
	s.set(func() { s.status = http.StatusInternalServerError })
	if err := a.Authorize(t.Context(), Caller{Token: "good", Again: true}, theGateway); err == nil {
		t.Error("it was refused, and is allowed while Consul is away")
	}
}

func TestWhatWasAllowedCountsForABoundedTime(t *testing.T) {
	for stale, allowed := range map[time.Duration]bool{0: false, time.Minute: false, 2 * time.Hour: true} {
		s := &tokenServer{allowed: map[string]bool{"good": true}}
		a, _ := serveTokens(t, s, AuthorizerOptions{StaleIfError: stale})
		_ = a.Authorize(t.Context(), Caller{Token: "good"}, theGateway)
		a.allowed.allow.Add(a.keyOf(Caller{Token: "good"}, theGateway), time.Now().Add(-time.Hour))
		s.set(func() { s.status = http.StatusInternalServerError })
		if err := a.Authorize(t.Context(), Caller{Token: "good"}, theGateway); (err == nil) != allowed {
			t.Errorf("allowed an hour ago, counting for %v: %v", stale, err)
		}
	}
}

func TestEqualQuestionsAreAskedOnce(t *testing.T) {
	s := &tokenServer{
		allowed: map[string]bool{"good": true}, hold: make(chan string), release: make(chan struct{}), left: make(chan struct{}, 1),
	}
	a, _ := serveTokens(t, s, AuthorizerOptions{StaleIfError: time.Hour})
	const callers = 50
	results := make(chan error, callers)
	first, leave := context.WithCancel(t.Context())
	go func() { results <- a.Authorize(first, Caller{Token: "good"}, theGateway) }()
	<-s.hold
	for range callers - 1 {
		go func() { results <- a.Authorize(t.Context(), Caller{Token: "good"}, theGateway) }()
	}
	// The caller whose check the others share goes away: another one asks.
	leave()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Fatalf("the caller that went away got %v", err)
	}
	<-s.hold
	<-s.left // otherwise the check whose caller has left could be the one that is released
	s.release <- struct{}{}
	for range callers - 1 {
		select {
		case err := <-results:
			if err != nil {
				t.Error(err)
			}
		case <-s.hold: // one that came later
			s.release <- struct{}{}
		}
	}
	if n := s.questions(); n > 10 {
		t.Errorf("Consul was asked %d times for %d callers", n, callers)
	}
}

// The checks of one peer do not delay those of another peer, or of callers that
// Consul has allowed before.
func TestOnePeerDoesNotHoldUpOthers(t *testing.T) {
	s := &tokenServer{allowed: map[string]bool{"good": true}}
	a, _ := serveTokens(t, s, AuthorizerOptions{StaleIfError: time.Hour})
	_ = a.Authorize(t.Context(), Caller{Token: "good"}, theGateway)
	s.set(func() { s.hold, s.release = make(chan string, 100), make(chan struct{}) })
	ctx, cancel := context.WithCancel(t.Context())
	var strangers sync.WaitGroup
	defer strangers.Wait()
	defer cancel()
	for i := range 100 {
		strangers.Go(func() { _ = a.Authorize(ctx, Caller{Token: fmt.Sprint("bad ", i), Address: "stranger"}, theGateway) })
	}
	for range newCallerChecksPerAddress {
		<-s.hold
	}
	s.set(func() { s.hold = nil }) // answers further checks at once
	for _, who := range []Caller{{Token: "new", Address: "honest"}, {Token: "good", Address: "stranger"}, {Token: "good", Address: "honest", Again: true}} {
		if err := a.Authorize(t.Context(), who, theGateway); err != nil && !errors.Is(err, ErrDenied) {
			t.Errorf("token %q of peer %q: %v", who.Token, who.Address, err)
		}
	}
	if n := s.questions(); n != 1+newCallerChecksPerAddress+3 {
		t.Errorf("%d questions were asked, want one, %d of the strangers' and three", n, newCallerChecksPerAddress)
	}
}

// ACL checks have separate connections. Watches go on while all of these are in use.
func TestWatchesDoNotWaitForQuestionsAboutTokens(t *testing.T) {
	c := newFakeConsul(t)
	client := c.client(t, slog.DiscardHandler)
	if client.aclHTTP == client.watchHTTP || client.aclHTTP.Transport == client.watchHTTP.Transport {
		t.Error("questions about tokens share the connections of watches")
	}
	sum := 0
	for _, h := range []*http.Client{client.aclHTTP, client.watchHTTP, client.watchdogHTTP} {
		sum += h.Transport.(*transport).active().MaxConnsPerHost
	}
	if sum != plainConnections {
		t.Errorf("all may open %d connections, want %d", sum, plainConnections)
	}
}

// A full queue is no reason to use a remembered answer.
func TestAQueueIsNoOutage(t *testing.T) {
	s := &tokenServer{allowed: map[string]bool{"good": true}}
	a, log := serveTokens(t, s, AuthorizerOptions{StaleIfError: time.Hour})
	if err := a.Authorize(t.Context(), Caller{Token: "good"}, theGateway); err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.allowed = nil })
	for range cap(a.knownCallers) {
		a.knownCallers <- struct{}{} // checks that take long
	}
	result := make(chan error, 1)
	go func() { result <- a.Authorize(t.Context(), Caller{Token: "good", Again: true}, theGateway) }()
	select {
	case err := <-result:
		t.Fatalf("it is answered without a question, with %v", err)
	case <-time.After(authorizeAgainTimeout + time.Second):
	}
	<-a.knownCallers
	if err := <-result; !errors.Is(err, ErrDenied) {
		t.Errorf("%v, want ErrDenied", err)
	}
	if log.Len() > 0 {
		t.Errorf("logged:\n%s", log)
	}
}

// When a caller goes away for any reason, the others still get their answers.
func TestTheEndOfOneCallerIsNotThatOfOthers(t *testing.T) {
	s := &tokenServer{
		allowed: map[string]bool{"good": true}, hold: make(chan string), release: make(chan struct{}), left: make(chan struct{}, 1),
	}
	a, _ := serveTokens(t, s, AuthorizerOptions{})
	first, leave := context.WithCancelCause(t.Context())
	results := make(chan error, 2)
	go func() { results <- a.Authorize(first, Caller{Token: "good"}, theGateway) }()
	<-s.hold
	go func() { results <- a.Authorize(t.Context(), Caller{Token: "good", Again: true}, theGateway) }()
	leave(errors.New("its limit was reached"))
	if err := <-results; err == nil || !strings.Contains(err.Error(), "its limit") {
		t.Fatalf("the caller that went away got %v", err)
	}
	<-s.hold
	<-s.left
	s.release <- struct{}{}
	if err := <-results; err != nil {
		t.Errorf("another caller got %v", err)
	}
}

// While ACLs are off, names that callers make up do not fill the memory.
func TestWithoutACLsNothingIsRememberedOfSingleCallers(t *testing.T) {
	fake := &acl{status: http.StatusUnauthorized, body: "ACL support disabled"}
	server := httptest.NewServer(fake)
	defer server.Close()
	c := newTestClient(t, Config{HTTPAddr: server.URL})
	t.Cleanup(c.aclHTTP.CloseIdleConnections)
	a := NewAuthorizer(c, AuthorizerOptions{StaleIfError: time.Hour})
	for i := range 100 {
		if err := a.Authorize(t.Context(), Caller{}, gateway.ID{Name: fmt.Sprint("gateway-", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if n := a.allowed.allow.Len(); n != 0 {
		t.Errorf("%d grants are remembered", n)
	}
	server.Close()
	if err := a.Authorize(t.Context(), Caller{}, theGateway); err != nil {
		t.Errorf("while Consul is away: %v", err)
	}
}

// Usher understands an answer that repeats a part of the token.
func TestATokenThatIsPartOfTheAnswerIsUnderstood(t *testing.T) {
	if err := authorizeWith(t, &acl{status: http.StatusForbidden, body: "ACL not found"}, "A"); !errors.Is(err, ErrUnknownToken) {
		t.Errorf("error %v, want ErrUnknownToken", err)
	}
}
