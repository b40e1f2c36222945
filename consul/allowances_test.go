package consul

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/testing/logbuffer"
)

// memoryStore is a Store in memory.
type memoryStore struct {
	mu                sync.Mutex
	content           map[string][]byte
	writes            int
	noWrite, noRemove error
}

func (s *memoryStore) Write(name string, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	if s.noWrite != nil {
		return s.noWrite
	}
	if s.content == nil {
		s.content = map[string][]byte{}
	}
	s.content[name] = payload
	return nil
}

func (s *memoryStore) Read(name string) ([]byte, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	payload, ok := s.content[name]
	if !ok {
		return nil, time.Time{}, fs.ErrNotExist
	}
	return payload, time.Time{}, nil
}

func (s *memoryStore) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noRemove != nil {
		return s.noRemove
	}
	delete(s.content, name)
	return nil
}

func (*memoryStore) Path() string { return "/state" }

func (s *memoryStore) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// takeWrites returns how many writes there were since the last call.
func (s *memoryStore) takeWrites() (n int) {
	s.set(func() { n, s.writes = s.writes, 0 })
	return n
}

func (s *memoryStore) saved() []byte {
	payload, _, _ := s.Read(allowancesName)
	return payload
}

// inBubble runs a scenario in a bubble with allowances in the store that are being saved. It returns the log, with the
// problems.
func inBubble(t *testing.T, s *memoryStore, scenario func(a *allowances)) (log string) {
	t.Helper()
	var text logbuffer.Buffer
	synctest.Test(t, func(t *testing.T) {
		a := newAllowances(newTestClient(t, Config{
			HTTPAddr: ownAddress, Logger: slog.New(slog.NewTextHandler(&text, nil)),
			Report: func(source string, problems []problem.Problem) { fmt.Fprintln(&text, "problems of", source, problems) },
		}), s, time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.run(ctx)
		}()
		scenario(a)
		cancel()
		<-done
	})
	return text.String()
}

// ownAddress is the one of Consul in these tests.
const ownAddress = "consul:8500"

// restarted returns what the next process knows.
func restarted(s *memoryStore, maxAge time.Duration) *allowances {
	return restartedWith(s, maxAge, ownAddress, "")
}

// restartedWith is restarted with an address of Consul and Usher's token.
func restartedWith(s *memoryStore, maxAge time.Duration, address, token string) *allowances {
	c, err := NewClient(Config{HTTPAddr: address, Getenv: func(name string) string {
		return map[string]string{api.HTTPTokenEnvName: token}[name]
	}})
	if err != nil {
		panic(err)
	}
	return newAllowances(c, s, maxAge)
}

// A restarted Usher allows exactly the tokens that the one before would: by any Envoy, for the same gateway.
func TestARestartedAuthorizerRemembersWhomConsulAllowed(t *testing.T) {
	store, consul := &memoryStore{}, &tokenServer{allowed: map[string]bool{"good": true, "weak": true}}
	before, _ := serveTokens(t, consul, AuthorizerOptions{StaleIfError: time.Hour, Store: store})
	for _, token := range []string{"good", "weak", "bad"} {
		_ = before.Authorize(t.Context(), Caller{Token: token, Address: "198.18.0.20"}, theGateway)
	}
	consul.set(func() { consul.allowed["weak"] = false })
	_ = before.Authorize(t.Context(), Caller{Token: "weak", Again: true}, theGateway)
	before.Close()

	consul.set(func() { consul.status = http.StatusInternalServerError })
	var log strings.Builder
	before.client.logger = slog.New(slog.NewTextHandler(&log, nil))
	after := NewAuthorizer(before.client, AuthorizerOptions{StaleIfError: time.Hour, Store: store})
	for _, address := range []string{"198.18.0.20", "198.18.0.21"} {
		if err := after.Authorize(t.Context(), Caller{Token: "good", Address: address}, theGateway); err != nil {
			t.Errorf("the token that Consul allowed, from %s: %v", address, err)
		}
	}
	for _, who := range []struct {
		token string
		id    gateway.ID
	}{{"", theGateway}, {"bad", theGateway}, {"weak", theGateway}, {"unseen", theGateway}, {"good", gateway.ID{Name: "other"}}} {
		if err := after.Authorize(t.Context(), Caller{Token: who.token}, who.id); err == nil || isDecision(err) {
			t.Errorf("%q for %s: %v, want that Consul does not answer", who.token, who.id, err)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "consul does not answer ACL checks") {
		t.Errorf("the log:\n%s", &log)
	}
	for _, secret := range []string{"good", "weak", "bad"} {
		if bytes.Contains(store.saved(), []byte(secret)) {
			t.Errorf("the store has the token %q:\n%s", secret, store.saved())
		}
	}
}

func TestARestartedAuthorizerRemembersABearerTokenUntilItExpires(t *testing.T) {
	store, consul := &memoryStore{}, newLoginConsul(map[string]string{})
	var known, renewed string
	runLoginsWith(t, consul, store, func(t *testing.T, a *Authorizer) {
		known, renewed = podJWT(1), podJWT(2)
		consul.accounts[known], consul.accounts[renewed] = "gateway", "gateway"
		mustOpen(t, a, known)
	})
	consul.silent = true
	runLoginsWith(t, consul, store, func(t *testing.T, a *Authorizer) {
		mustOpen(t, a, known).end()
		if s, err := open(t, a, renewed); err == nil || isDecision(err) {
			t.Errorf("a token that Consul has not seen: %v, want no answer", err)
		} else {
			s.end()
		}
		time.Sleep(59*time.Minute + 59*time.Second)
		if _, err := open(t, a, known); !errors.Is(err, ErrBearerExpired) {
			t.Errorf("after its expiry: %v, want ErrBearerExpired", err)
		}
	})
}

// A refusal is in the store at once, so that even a killed Usher does not accept the token any more.
func TestARefusalIsSavedAtOnce(t *testing.T) {
	store, key := &memoryStore{}, aclKey{1}
	inBubble(t, store, func(a *allowances) {
		a.add(key)
		time.Sleep(time.Hour / 2)
		if !restarted(store, time.Hour).counts(key) {
			t.Error("the allowance is not saved")
		}
		a.remove(key)
		synctest.Wait()
		if restarted(store, time.Hour).counts(key) {
			t.Error("the refused token is still saved")
		}
	})
}

func TestWhatIsRefusedDoesNotStayInAStoreThatIsFull(t *testing.T) {
	store, kept, refused := &memoryStore{}, aclKey{1}, aclKey{2}
	log := inBubble(t, store, func(a *allowances) {
		a.add(kept)
		a.add(refused)
		time.Sleep(time.Minute)
		store.set(func() { store.noWrite = errors.New("no space left on device") })
		a.add(kept)
		time.Sleep(2 * allowancesInterval)
		if !restarted(store, time.Hour).counts(kept) {
			t.Error("the last valid state is gone, although nothing in it is refused")
		}
		store.set(func() { store.noRemove = errors.New("read-only file system") })
		a.remove(refused)
		time.Sleep(2 * allowancesInterval)
		store.set(func() { store.noRemove = nil })
		time.Sleep(2 * allowancesInterval)
		if store.saved() != nil {
			t.Error("the store has the refused token")
		}
		store.set(func() { store.noWrite = nil })
		time.Sleep(2 * allowancesInterval)
		next := restarted(store, time.Hour)
		if !next.counts(kept) || next.counts(refused) {
			t.Error("after the fault, the store does not have what counts")
		}
	})
	if strings.Count(log, "cannot save") != 1 || strings.Count(log, "is saved again") != 1 {
		t.Errorf("the log:\n%s", log)
	}
}

// The disk has been full for a while, and can no longer be changed at all when a token is refused.
func TestARefusedTokenThatStaysOnTheDiskIsAProblem(t *testing.T) {
	store, kept, refused := &memoryStore{}, aclKey{1}, aclKey{2}
	const remedy = "problems of the saved authorizations [/state/authorizations.state: remove it: it still allows a refused token"
	log := inBubble(t, store, func(a *allowances) {
		a.add(kept)
		a.add(refused)
		time.Sleep(time.Minute)
		store.set(func() {
			store.noWrite, store.noRemove = errors.New("read-only file system"), errors.New("read-only file system")
		})
		a.add(kept)
		time.Sleep(2 * allowancesInterval)
		log := a.logger
		log.Info("now a token is refused")
		a.remove(refused)
		time.Sleep(5 * allowancesInterval)
		log.Info("now the file can be removed")
		store.set(func() { store.noRemove = nil })
		time.Sleep(2 * allowancesInterval)
	})
	rest := log
	for _, next := range []string{"cannot save", "now a token", "still allow a refused token", remedy, "now the file", "problems of the saved authorizations []"} {
		_, after, found := strings.Cut(rest, next)
		if rest = after; !found || strings.Count(log, next) != 1 {
			t.Fatalf("%q is not there once, in this place:\n%s", next, log)
		}
	}
}

func TestAllowancesOfAnotherConsulDoNotCount(t *testing.T) {
	store, key := &memoryStore{}, aclKey{1}
	a := restartedWith(store, time.Hour, "consul:8500,other:8500", "")
	a.add(key)
	a.save()
	if !restartedWith(store, time.Hour, "new:8500,other:8500", "").counts(key) {
		t.Error("the allowance does not count, although an address is the same")
	}
	moved := restartedWith(store, time.Hour, "new:8500", "")
	if moved.counts(key) || moved.key == a.key {
		t.Error("the allowance counts at another address")
	}
	moved.save()
	if restartedWith(store, time.Hour, "other:8500", "").counts(key) {
		t.Error("the allowance is still in the store")
	}
}

// Another cluster may have the same address.
func TestAllowancesOfAnotherTrustDomainAreForgotten(t *testing.T) {
	for _, off := range []bool{false, true} {
		store, key := &memoryStore{}, aclKey{1}
		roots := func(a *allowances, domain string) {
			answer := queryResult{value: &caRoots{all: &gateway.Roots{TrustDomain: domain}}, answer: &answer{}}
			w := &watch{query: query{queryType: rootsType}, subscribers: map[*subscription]bool{{}: true}}
			newWatchManager(a.client, time.Minute).setResult(w, answer, false)
		}
		a := restarted(store, time.Hour)
		if off {
			a.setACLsOff(true)
		} else {
			a.add(key)
		}
		if roots(a, "old.consul"); !a.counts(key) {
			t.Error("the allowance does not count once the trust domain is known")
		}
		a.save()
		next := restarted(store, time.Hour)
		if roots(next, "old.consul"); !next.counts(key) {
			t.Error("the allowance does not count in the same trust domain")
		}
		if roots(next, "new.consul"); next.counts(key) {
			t.Error("the allowance counts in another trust domain")
		}
		next.save()
		if restarted(store, time.Hour).counts(key) {
			t.Error("the allowance is still in the store")
		}
	}
}

// An Usher with a token uses a Consul with ACLs, whatever was so before.
func TestThatACLsAreOffIsNotRememberedWithAToken(t *testing.T) {
	store := &memoryStore{}
	a := restarted(store, time.Hour)
	a.setACLsOff(true)
	a.save()
	next := restartedWith(store, time.Hour, ownAddress, "7d8b1b5c")
	if next.counts(aclKey{1}) {
		t.Error("everybody is let in")
	}
	next.save()
	if restarted(store, time.Hour).counts(aclKey{1}) {
		t.Error("the store lets everybody in")
	}
}

// Many changes cause few writes, and none of them is lost.
func TestChangesAreSavedTogether(t *testing.T) {
	store := &memoryStore{}
	inBubble(t, store, func(a *allowances) {
		const callers = 1000
		for i := range callers {
			a.add(aclKey{byte(i), byte(i >> 8)})
		}
		time.Sleep(2 * allowancesPause)
		next := restarted(store, time.Hour)
		if n, writes := next.allow.Len(), store.takeWrites(); n != callers || writes > 2 {
			t.Errorf("%d of %d callers are saved, in %d writes", n, callers, writes)
		}
		for range 100 { // the same ones are checked again and again
			for i := range callers {
				a.add(aclKey{byte(i), byte(i >> 8)})
			}
			time.Sleep(6 * time.Second)
		}
		if writes := store.takeWrites(); writes == 0 || writes > 11 {
			t.Errorf("%d writes in ten minutes", writes)
		}
		time.Sleep(2 * allowancesInterval)
		store.takeWrites()
		time.Sleep(time.Hour)
		if writes := store.takeWrites(); writes != 0 {
			t.Errorf("%d writes while nothing has changed", writes)
		}
		a.add(aclKey{1, 2, 3})
		synctest.Wait()
		if next := restarted(store, 24*time.Hour); next.allow.Len() != 1 {
			t.Errorf("%d callers are saved; all but one are too old to count", next.allow.Len())
		}
	})
}

func TestSavedAllowancesAreBounded(t *testing.T) {
	store := &memoryStore{}
	a := restarted(store, time.Hour)
	for i := range maxAllowed + 10 {
		a.add(aclKey{byte(i), byte(i >> 8), byte(i >> 16)})
	}
	a.save()
	next := restarted(store, time.Hour)
	if n := next.allow.Len(); n != maxAllowed || next.counts(aclKey{}) || !next.counts(aclKey{9, 0, 1}) {
		t.Errorf("%d callers; the first one: %t", n, next.counts(aclKey{}))
	}
	if size := len(store.saved()); size > 6<<20 {
		t.Errorf("they take %d bytes", size)
	}
}

// An allowance counts for the same time as without a restart, and not longer because a clock is wrong.
func TestASavedAllowanceCountsForABoundedTime(t *testing.T) {
	now := time.Now()
	for what, test := range map[string]struct {
		at     time.Time
		maxAge time.Duration
		counts bool
	}{
		"in time":                       {now.Add(-59 * time.Minute), time.Hour, true},
		"too old":                       {now.Add(-61 * time.Minute), time.Hour, false},
		"the flag is shorter now":       {now.Add(-59 * time.Minute), 30 * time.Minute, false},
		"the clock was corrected a bit": {now.Add(10 * time.Second), time.Hour, true},
		"the clock was an hour ahead":   {now.Add(time.Hour), time.Hour, false},
		"no clock":                      {time.Unix(0, 0), time.Hour, false},
	} {
		for _, off := range []bool{false, true} {
			store, key := &memoryStore{}, aclKey{1}
			saved := &savedAllowances{Consul: []string{"http://" + ownAddress}, Key: make([]byte, hashSize), Allowed: []savedAllowance{{key[:], test.at.Unix()}}}
			if off {
				saved.Allowed, saved.ACLsOff = nil, test.at.Unix()
			}
			_ = store.Write(allowancesName, saved.encode())
			if got := restarted(store, test.maxAge).counts(key); got != test.counts {
				t.Errorf("%s, ACLs off %t: it counts: %t", what, off, got)
			}
		}
	}
}

// The time of an allowance is known from its age, also if the clock is set meanwhile.
func TestTheSavedTimeFollowsTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := time.Now()
		time.Sleep(time.Minute)
		if got := wallTime(at, time.Now()); got != at.Unix() {
			t.Errorf("%v, want %v", time.Unix(got, 0), at)
		}
	})
}

// That Consul's ACLs are off is as good as a permission for all, and ends as soon as they are on.
func TestARestartedAuthorizerRemembersThatACLsAreOff(t *testing.T) {
	store, stranger := &memoryStore{}, aclKey{7}
	inBubble(t, store, func(a *allowances) {
		a.setACLsOff(true)
		synctest.Wait()
		if next := restarted(store, time.Hour); !next.counts(stranger) {
			t.Error("the next process does not know that ACLs are off")
		}
		time.Sleep(2 * allowancesPause)
		a.setACLsOff(false)
		a.add(aclKey{1})
		synctest.Wait()
		if next := restarted(store, time.Hour); next.counts(stranger) || !next.counts(aclKey{1}) {
			t.Error("the next process believes that ACLs are off")
		}
	})
}

func TestWithoutATimeNothingIsSaved(t *testing.T) {
	store := &memoryStore{}
	a := restarted(store, time.Hour)
	a.add(aclKey{1})
	a.save()
	off := restarted(store, 0)
	if store.saved() != nil || off.counts(aclKey{1}) {
		t.Error("--authorization-stale-if-error 0s leaves what was saved before")
	}
	off.add(aclKey{1})
	off.save()
	if store.saved() != nil {
		t.Error("with --authorization-stale-if-error 0s something is saved")
	}
}

func TestWhatUsherHasNotWrittenIsNotRemembered(t *testing.T) {
	key := fmt.Sprintf("%q", bytes.Repeat([]byte("A"), 43)) // base64 of too few bytes
	for _, payload := range []string{
		"", "null", "[]", "{}", `{"key":"AAAA"}`, `{"key":` + key + `}`, `{"key":1}`,
		`{"key":"` + strings.Repeat("A", 43) + `=","allowed":[{"hash":"AAAA","at":1}]}`, `{"key":"` + strings.Repeat("A", 43) + `=","allowed":[null]}`,
	} {
		store := &memoryStore{content: map[string][]byte{allowancesName: []byte(payload)}}
		var log strings.Builder
		a := newAllowances(newTestClient(t, Config{HTTPAddr: ownAddress, Logger: slog.New(slog.NewTextHandler(&log, nil))}), store, time.Hour)
		if n := a.allow.Len(); n != 0 || a.key == [hashSize]byte{} {
			t.Errorf("%s: %d callers are remembered, the key is %x", payload, n, a.key)
		}
		if strings.Count(log.String(), "\n") != 1 || !strings.Contains(log.String(), "cannot read which tokens consul has allowed before") {
			t.Errorf("%s: the log:\n%s", payload, &log)
		}
	}
}

// Whether any Envoy is let in while Consul does not answer is a matter of the time, too.
func TestRemembersAny(t *testing.T) {
	for name, maxAge := range map[string]time.Duration{"an hour": time.Hour, "0s": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &Authorizer{allowed: newAllowances(newTestClient(t, Config{HTTPAddr: ownAddress}), &memoryStore{}, maxAge)}
				want := func(when string, want bool) {
					t.Helper()
					if got := a.RemembersAny(); got != want {
						t.Errorf("%s: %t, want %t", when, got, want)
					}
				}
				want("at first", false)
				a.allowed.add(aclKey{1})
				want("after an answer", maxAge > 0)
				time.Sleep(time.Hour)
				want("when that is too old", false)
				a.allowed.setACLsOff(true)
				want("without ACLs", maxAge > 0)
			})
		})
	}
}
