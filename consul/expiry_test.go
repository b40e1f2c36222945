package consul

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// certificateOf returns a certificate in PEM, which signs itself. With a trust domain, it is of a gateway.
func certificateOf(t testing.TB, name, trustDomain string, from, until time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: until}
	if trustDomain != "" {
		template.URIs = []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: "/ns/default/dc/dc1/svc/edge"}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// set replaces the result of a query of the watch, and lets it step.
func (s *manualWatch) set(t testing.TB, of *queryType, value any, now time.Time) *gateway.Snapshot {
	t.Helper()
	for q := range s.subscription.watches {
		if q.queryType == of {
			s.update(q, queryResult{value: value, answer: newAnswer(response{})})
		}
	}
	s.step(now)
	return s.state.last
}

// wantProblems wants the problems of a snapshot to begin so.
func wantProblems(t *testing.T, when string, s *gateway.Snapshot, want ...string) {
	t.Helper()
	var got []string
	for _, p := range s.Problems {
		got = append(got, p.Severity.String()+" "+p.String())
	}
	slices.Sort(got)
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("%s the problems are\n%s\nwant those that begin with\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestACertificateThatIsNotRenewedIsAProblemUntilItIs(t *testing.T) {
	s := newManualWatch(t, 1)
	from := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	const lifetime = 72 * time.Hour
	until := from.Add(lifetime)
	leaf := &gateway.Leaf{CertPEM: certificateOf(t, "edge", "", from, until), ValidAfter: from, ValidBefore: until}
	s.set(t, leafType, leaf, from.Add(-3*time.Hour))
	const where = `certificate of gateway "edge" for the mesh: the certificate `
	for _, at := range []struct {
		after time.Duration
		want  []string
	}{
		{-3 * time.Hour, []string{"degraded " + where + "is not valid before 2030-01-01T00:00:00Z by this machine's clock; "}},
		{0, nil},
		{lifetime*9/10 - time.Second, nil},
		{lifetime * 9 / 10, []string{"degraded " + where + "expires at 2030-01-04T00:00:00Z; after that, services refuse the gateway's connections, and requests get 503; "}},
		{lifetime - time.Second, []string{"degraded " + where + "expires at 2030-01-04T00:00:00Z; "}},
		{lifetime, []string{"outage " + where + "expired at 2030-01-04T00:00:00Z, so services refuse the gateway's connections, and requests get 503; Consul's agent must get a new one: "}},
		{10 * lifetime, []string{"outage " + where + "expired at 2030-01-04T00:00:00Z"}},
	} {
		// Nothing else changes but instances, which are published without a build.
		now := from.Add(at.after)
		s.update(s.health(0), queryResult{value: instanceAt(int(at.after / time.Second))})
		wait := s.step(now)
		wantProblems(t, "after "+at.after.String(), s.state.last, at.want...)
		if s.state.last.Leaf != leaf {
			t.Error("it is not in use any more")
		}
		if next := s.state.expiryChanges; !next.IsZero() && now.Add(wait).After(next) || next.IsZero() != (at.after >= lifetime) || !next.IsZero() && wait > maxSleep {
			t.Errorf("after %v the next step is in %v, and the problem changes at %v", at.after, wait, next)
		}
	}
	now := until.Add(time.Hour)
	renewed := &gateway.Leaf{CertPEM: certificateOf(t, "edge", "", now, now.Add(lifetime)), ValidAfter: now, ValidBefore: now.Add(lifetime)}
	wantProblems(t, "with a new one", s.set(t, leafType, renewed, now))
}

// A service without a listener keeps the snapshot incomplete.
func TestACertificateThatExpiresWhileSomethingIsMissingIsAProblem(t *testing.T) {
	s := newManualWatch(t, 1)
	from := time.Now()
	until := from.Add(72 * time.Hour)
	leaf := &gateway.Leaf{CertPEM: certificateOf(t, "edge", "", from.Add(-time.Minute), until), ValidBefore: until}
	good := s.set(t, leafType, leaf, from)
	s.set(t, entriesType, &entries{byName: map[string]*gateway.Entry{"edge": {Name: "edge"}}}, from)
	wait := s.step(from.Add(s.options.HealthTimeout))
	wantProblems(t, "early", s.state.last)
	if wait > maxSleep {
		t.Errorf("the next step is in %v", wait)
	}
	s.step(until)
	wantProblems(t, "when it has expired", s.state.last, `outage certificate of gateway "edge" for the mesh: the certificate expired at `)
	if s.state.last.Entry != good.Entry || s.state.last.Leaf != leaf {
		t.Error("the incomplete configuration is published")
	}
}

func TestRootsThatExpireAreProblems(t *testing.T) {
	const day = 24 * time.Hour
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(days int) time.Time { return begin.Add(time.Duration(days) * day) }
	old, active := certificateOf(t, "old", "", begin, at(10)), certificateOf(t, "active", "", begin, at(1000))
	roots := &caRoots{all: &gateway.Roots{TrustDomain: "one.consul", PEMs: []string{old, active}}, signs: active}
	s := newManualWatch(t, 1)
	peered := chain(service(0).Name)
	peered.Targets["far"] = &gateway.Target{ID: "far", Service: "far", Peer: "east"}
	s.set(t, chainType, peered, begin)
	s.set(t, peeringType, &gateway.Roots{TrustDomain: "east.consul", PEMs: []string{old, certificateOf(t, "newer", "", begin, at(1000))}}, begin)
	s.set(t, healthType, &gateway.Endpoints{}, begin)
	s.set(t, rootsType, roots, begin)
	const mesh, peer = ` root certificate of the mesh: "CN=active" exp`, ` root certificate of cluster peer "east": "CN=newer" exp`
	for _, tc := range []struct {
		day  int
		want []string
	}{
		{1, nil},
		{20, nil}, // the old one has expired, and Consul signs with the active one
		{970, []string{"notice" + peer + "ires at 2032-09-27", "notice" + mesh + "ires at 2032-09-27"}},
		{997, []string{"degraded" + peer + "ires at 2032-09-27", "degraded" + mesh + "ires at 2032-09-27"}},
		{1000, []string{"degraded" + peer + "ired at 2032-09-27", "outage" + mesh + "ired at 2032-09-27"}},
	} {
		s.step(at(tc.day))
		wantProblems(t, "at day "+begin.Add(time.Duration(tc.day)*day).Format(time.DateOnly), s.state.last, tc.want...)
		if !slices.Equal(s.state.last.Roots.PEMs, []string{old, active}) {
			t.Error("the mesh's roots are not both there while Consul lists both")
		}
	}
	dropped := &caRoots{all: &gateway.Roots{TrustDomain: "one.consul", PEMs: []string{active}}, signs: active}
	if got := s.set(t, rootsType, dropped, at(30)).Roots.PEMs; !slices.Equal(got, []string{active}) {
		t.Errorf("%d roots after Consul has dropped the old one", len(got))
	}
}

// TestRootsAndCertificateChangeTheirTrustDomainTogether restores the Consul snapshot of another cluster, whose roots and
// certificate arrive one after the other.
func TestRootsAndCertificateChangeTheirTrustDomainTogether(t *testing.T) {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	of := func(domain string) (*caRoots, *gateway.Leaf) {
		return &caRoots{all: &gateway.Roots{TrustDomain: domain, PEMs: []string{"pem of " + domain}}, active: domain},
			&gateway.Leaf{CertPEM: certificateOf(t, "edge", domain, begin, begin.Add(1000*time.Hour))}
	}
	for name, rootsFirst := range map[string]bool{"roots first": true, "certificate first": false} {
		t.Run(name, func(t *testing.T) {
			s := newManualWatch(t, 1)
			s.store, _ = newTestStore(t, newSavedState(t, stateKey))
			s.store.begin(s.id)
			saved := func() map[query]*answer { return s.store.gateways[s.id].content.answers }
			oldRoots, oldLeaf := of("old.consul")
			newRoots, newLeaf := of("new.consul")
			s.set(t, rootsType, oldRoots, begin)
			s.set(t, leafType, oldLeaf, begin)
			want := func(when string, roots *caRoots, leaf *gateway.Leaf) {
				t.Helper()
				// The certificate for clients follows the root that signs.
				if last := s.state.last; last.Roots != roots.all || last.Leaf != leaf || s.state.roots.active != roots.active {
					t.Errorf("%s: the roots are of %s, and the certificate of %s", when, last.Roots.TrustDomain, trustDomainOf(last.Leaf))
				}
			}
			want("at first", oldRoots, oldLeaf)
			before := saved()
			if rootsFirst {
				s.set(t, rootsType, newRoots, begin)
			} else {
				s.set(t, leafType, newLeaf, begin)
			}
			want("half way", oldRoots, oldLeaf)
			wantProblems(t, "half way", s.state.last)
			s.step(begin.Add(trustDomainTimeout))
			want("after a while", oldRoots, oldLeaf)
			if !maps.Equal(before, saved()) {
				t.Error("what Consul answers half way is saved")
			}
			wantProblems(t, "after a while", s.state.last, `outage certificate of gateway "edge" for the mesh: Consul's agent returns one of the trust domain `)
			if rootsFirst {
				s.set(t, leafType, newLeaf, begin.Add(time.Hour))
			} else {
				s.set(t, rootsType, newRoots, begin.Add(time.Hour))
			}
			want("at last", newRoots, newLeaf)
			if len(before) != 2 || len(saved()) != 2 || maps.Equal(before, saved()) {
				t.Error("the new pair is not saved")
			}
			wantProblems(t, "at last", s.state.last)
		})
	}
}

func TestACertificateOfAnotherTrustDomainIsForClientsOnly(t *testing.T) {
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	b := newSnapshotBuild(input{now: begin}, state{})
	mesh := &gateway.Leaf{CertPEM: certificateOf(t, "edge", "new.consul", begin, begin.Add(time.Hour))}
	forClients := &gateway.Leaf{CertPEM: certificateOf(t, "edge", "old.consul", begin, begin.Add(time.Hour)), ValidBefore: begin.Add(time.Hour)}
	b.snapshot.Roots, b.snapshot.Leaf = &gateway.Roots{TrustDomain: "new.consul"}, mesh
	b.setCertificate(&certState{leaf: forClients})
	if b.snapshot.Leaf != mesh || b.snapshot.DownstreamLeaf != forClients {
		t.Error("services would get a certificate of another trust domain")
	}
}

// TestRenewalWithClocksThatDiffer renews certificates of an authority whose clock is hours before or behind. None may
// expire by the authority's clock, and the authority may not be asked all the time.
func TestRenewalWithClocksThatDiffer(t *testing.T) {
	for _, ahead := range []time.Duration{-1000 * time.Hour, -72 * time.Hour, -24 * time.Hour, -time.Hour, time.Hour, 24 * time.Hour, 72 * time.Hour, 1000 * time.Hour} {
		t.Run(ahead.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := newFakeCA(t)
				ca.ahead = ahead
				newTestCertificate(t, ca, slog.DiscardHandler).requests.Put(requestFor("one", "a.example"))
				const days = 60
				time.Sleep(days * 24 * time.Hour)
				synctest.Wait()
				asked := ca.times()
				for i := 1; i < len(asked); i++ {
					if span := asked[i].Sub(asked[i-1]); span > ca.ttl*9/10 || span < ca.ttl/10 {
						t.Fatalf("renewed after %v, want at least a tenth and at most nine tenths of %v", span, ca.ttl)
					}
				}
				if most, least := int(days*24*time.Hour/ca.ttl)*10+1, int(days*24*time.Hour/ca.ttl); len(asked) > most || len(asked) < least {
					t.Errorf("%d certificates in %d days, want %d to %d", len(asked), days, least, most)
				}
			})
		})
	}
}

// withDate is a Consul whose clock is ahead.
type withDate struct {
	http.RoundTripper
	ahead atomic.Int64
}

func (d *withDate) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := d.RoundTripper.RoundTrip(r)
	if err == nil {
		res.Header.Set("Date", time.Now().Add(time.Duration(d.ahead.Load())).UTC().Format(http.TimeFormat))
	}
	return res, err
}

func TestAClockThatDiffersIsAProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		consul := &withDate{RoundTripper: newBubbleConsul(map[string]content{"/v1/connect/ca/roots": {index: 1, text: rootsText}})}
		var mu sync.Mutex
		var found []problem.Problem
		client := newTestClient(t, Config{HTTPAddr: "https://consul:8501", Report: func(source string, problems []problem.Problem) {
			if mu.Lock(); source == "the clock" {
				found = problems
			}
			mu.Unlock()
		}})
		client.watchdogHTTP.Transport = consul
		d := newWatchdog(client, newWatchManager(client, time.Minute))
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() { d.run(ctx) })
		for _, tc := range []struct {
			ahead time.Duration // of Consul
			want  string        // what the problem begins with; empty: there is none
		}{
			{0, ""},
			{25 * time.Second, ""},
			{2 * time.Hour, "it is 2h0m0s behind the clock of the Consul agent at https://consul:8501; "},
			{2*time.Hour + 20*time.Second, "it is 2h0m0s behind the clock of the Consul agent"}, // it drifts
			{25 * time.Second, "it is 30s behind the clock of the Consul agent"},                // it does not come and go
			{70 * time.Second, "it is 1m10s behind the clock of the Consul agent"},
			{25 * time.Second, "it is 30s behind the clock of the Consul agent"},
			{0, ""},
			{-2 * time.Hour, "it is 2h0m0s ahead of the clock of the Consul agent"},
			{-2*time.Hour - 40*time.Second, "it is 2h0m40s ahead of the clock of the Consul agent"},
			{-48 * time.Hour, "it is 48h0m0s ahead of the clock of the Consul agent"},
			{time.Second, ""},
		} {
			consul.ahead.Store(int64(tc.ahead))
			time.Sleep(2 * watchdogPause)
			synctest.Wait()
			mu.Lock()
			got := ""
			for _, p := range found {
				got += p.What
			}
			mu.Unlock()
			if !strings.HasPrefix(got, tc.want) || tc.want == "" && got != "" {
				t.Errorf("Consul's clock is %v ahead: got %q, want %q", tc.ahead, got, tc.want)
			}
		}
		cancel()
		done.Wait()
	})
}

func TestTheProblemOfAClockNamesTheAgentInUse(t *testing.T) {
	client := newTestClient(t, Config{HTTPAddr: "https://first:8501,https://second:8501"})
	var got string
	client.report = func(_ string, found []problem.Problem) { got = found[0].What }
	c := clockCheck{client: client}
	now := time.Now()
	for _, target := range client.targets.all {
		client.targets.inUse.Store(target)
		c.observe(now, now.Add(time.Hour), now.Add(time.Hour))
		if !strings.Contains(got, "agent at "+target.String()) {
			t.Errorf("Usher uses %s, and the problem is %q", target, got)
		}
	}
}

func TestAnAnswerFromACacheSaysNothingAboutTheClock(t *testing.T) {
	header := http.Header{"Date": {"Tue, 01 Jan 2030 00:00:00 GMT"}}
	if dateOf(header).IsZero() {
		t.Error("the date is not read")
	}
	header.Set("Age", "3600")
	if got := dateOf(header); !got.IsZero() {
		t.Errorf("an answer from a cache is of %v", got)
	}
}

func TestALoginThatCannotBeRenewedIsAProblem(t *testing.T) {
	c := newLoginConsul(map[string]string{})
	c.expiry = time.Hour
	runOwnLogin(t, c, func(t *testing.T, l *ownLab) {
		want := l.problems()
		l.write(t, "sesame")
		time.Sleep(40 * time.Minute)
		want(t, "while it is young", "")
		c.set(func() { c.silent = true })
		time.Sleep(12 * time.Minute)
		want(t, "when its renewal fails", "notice --login-auth-method components: Usher's login expires at ")
		time.Sleep(7 * time.Minute)
		want(t, "shortly before it expires", "degraded --login-auth-method components: Usher's login expires at ")
		time.Sleep(30 * time.Minute)
		want(t, "later", "degraded --login-auth-method components: Usher's login expired at ")
		c.set(func() { c.silent = false })
		time.Sleep(2 * time.Minute)
		want(t, "after the next login", "")
	})
}

func TestALoginThatConsulNoLongerKnowsIsAProblem(t *testing.T) {
	for _, expires := range []time.Duration{0, time.Hour} {
		c := newLoginConsul(map[string]string{})
		c.expiry = expires
		runOwnLogin(t, c, func(t *testing.T, l *ownLab) {
			want := l.problems()
			l.write(t, "sesame")
			time.Sleep(time.Minute)
			token, _ := l.token()
			c.set(func() { c.status, c.text = http.StatusForbidden, "ACL not found" })
			l.client.tokens.reportUnknown(gateway.Secret(token))
			time.Sleep(2 * time.Minute)
			want(t, "while Usher cannot log in", "degraded --login-auth-method components: Consul no longer knows Usher's login, and Usher cannot log in again: ")
			c.set(func() { c.status = 0 })
			time.Sleep(time.Minute)
			want(t, "after the next login", "")
		})
	}
}

// problems returns what checks the problem of the login.
func (l *ownLab) problems() (want func(t *testing.T, when, text string)) {
	var mu sync.Mutex
	var found []problem.Problem
	l.client.report = func(source string, problems []problem.Problem) {
		mu.Lock()
		defer mu.Unlock()
		if source == "usher's login" {
			found = problems
		}
	}
	return func(t *testing.T, when, text string) {
		t.Helper()
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		got := ""
		for _, p := range found {
			got += p.Severity.String() + " " + p.String()
		}
		if !strings.HasPrefix(got, text) || text == "" && got != "" {
			t.Errorf("%s: got %q, want %q", when, got, text)
		}
	}
}
