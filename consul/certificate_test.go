package consul

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/retry"
)

// fakeCA signs requests, or fails with err.
type fakeCA struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	ttl  time.Duration
	// ahead is by how much its clock is ahead.
	ahead time.Duration

	mu     sync.Mutex
	err    error
	drop   bool // it leaves out the DNS names
	signed []*x509.Certificate
	asked  []time.Time
}

func newFakeCA(t *testing.T) *fakeCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fake"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeCA{key: key, cert: cert, ttl: 72 * time.Hour}
}

func (c *fakeCA) sign(_ context.Context, _ agent, csr string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, time.Now())
	if c.err != nil {
		return "", c.err
	}
	block, _ := pem.Decode([]byte(csr))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(c.signed) + 2)), URIs: request.URIs, DNSNames: request.DNSNames,
		NotBefore: time.Now().Add(c.ahead), NotAfter: time.Now().Add(c.ahead + c.ttl),
	}
	if c.drop {
		template.DNSNames = nil
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, request.PublicKey, c.key)
	if err != nil {
		return "", err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return "", err
	}
	c.signed = append(c.signed, cert)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}

// fail makes the CA fail; nil makes it well again.
func (c *fakeCA) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

func (c *fakeCA) count() (signed, asked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.signed), len(c.asked)
}

// times returns when the requests came.
func (c *fakeCA) times() []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.asked)
}

// newTestCertificate returns a certificate of the CA. It is renewed until the test ends.
func newTestCertificate(t *testing.T, ca *fakeCA, log slog.Handler) *certificate {
	t.Helper()
	client := newTestClient(t, Config{Logger: slog.New(log)})
	c := (&certificate{id: gateway.ID{Name: "gateway"}, sign: ca.sign, client: client, wake: make(chan struct{}, 1)}).start()
	t.Cleanup(c.close)
	return c
}

func requestFor(root string, names ...string) certRequest {
	return certRequest{uri: "spiffe://td.consul/ns/default/dc/dc1/svc/gateway", names: names, root: root}
}

func TestAPanicWhileACertificateIsSignedIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t)
		var broken atomic.Bool
		sign := func(ctx context.Context, a agent, csr string) (string, error) {
			if broken.Load() {
				panic("a bug")
			}
			return ca.sign(ctx, a, csr)
		}
		before := testutil.ToFloat64(guard.Panics.WithLabelValues("certificate"))
		client := newTestClient(t, Config{})
		c := (&certificate{id: gateway.ID{Name: "gateway"}, sign: sign, client: client, wake: make(chan struct{}, 1)}).start()
		defer c.close()
		c.requests.Put(requestFor("one", "a.example"))
		synctest.Wait()
		good := c.current().leaf
		if good == nil {
			t.Fatalf("no certificate: %v", c.current().err)
		}
		broken.Store(true)
		c.requests.Put(requestFor("one", "b.example"))
		synctest.Wait()
		if s := c.current(); s.leaf != good || s.err == nil || !strings.HasPrefix(s.err.Error(), "bug in Usher: panic in certificate at ") {
			t.Errorf("the certificate is %v with the error %v, want the last valid one and one that says what happened", s.leaf, s.err)
		}
		if got := testutil.ToFloat64(guard.Panics.WithLabelValues("certificate")) - before; got != 1 {
			t.Errorf("usher_panics_total grew by %v, want 1", got)
		}
		broken.Store(false)
		time.Sleep(retry.LongestPause)
		synctest.Wait()
		if s := c.current(); s.err != nil || !slices.Equal(s.leaf.Names, []string{"b.example"}) {
			t.Errorf("after it is over the certificate is %v with the error %v", s.leaf, s.err)
		}
	})
}

func TestCertificateHasTheRequestedContent(t *testing.T) {
	ca := newFakeCA(t)
	w := requestFor("one", "*.ingress.consul", "*.ingress.consul.", "www.example.com")
	leaf, err := requestCertificate(t.Context(), w, func(ctx context.Context, csr string) (string, error) { return ca.sign(ctx, agent{}, csr) })
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.KeyPEM))
	if err != nil {
		t.Fatal(err)
	}
	if got := pair.Leaf.URIs; len(got) != 1 || got[0].String() != w.uri {
		t.Errorf("the identity is %v, want %s", got, w.uri)
	}
	if diff := cmp.Diff(w.names, leaf.Names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if key, ok := pair.Leaf.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("the key is %T, want one on P-256", pair.Leaf.PublicKey)
	}
	for _, name := range []string{"x.ingress.consul", "www.example.com"} {
		if err := pair.Leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
}

func TestCertificateWithoutItsNamesIsNotUsed(t *testing.T) {
	ca := newFakeCA(t)
	ca.drop = true
	_, err := requestCertificate(t.Context(), requestFor("one", "a.example"), func(ctx context.Context, csr string) (string, error) { return ca.sign(ctx, agent{}, csr) })
	if !errors.As(err, new(permanentError)) || !strings.Contains(err.Error(), "left out a.example") {
		t.Errorf("got %v", err)
	}
}

func TestCertificateIsRenewedBetween60And90PercentOfItsLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t)
		c := newTestCertificate(t, ca, slog.DiscardHandler)
		c.requests.Put(requestFor("one", "a.example"))
		time.Sleep(30 * 24 * time.Hour)
		synctest.Wait()
		spans := map[time.Duration]bool{}
		asked := ca.times()
		for i := 1; i < len(asked); i++ {
			span := asked[i].Sub(asked[i-1])
			spans[span] = true
			if least, most := ca.ttl*6/10, ca.ttl*9/10; span < least || span > most {
				t.Errorf("renewed after %v, want %v to %v", span, least, most)
			}
		}
		if len(spans) < 5 {
			t.Errorf("renewed after %v: that is not random", spans)
		}
		if got := c.current().leaf.ValidBefore; !got.Equal(ca.signed[len(ca.signed)-1].NotAfter) {
			t.Errorf("the newest one is not what counts: %v", got)
		}
	})
}

func TestCertificateForOtherNamesIsSignedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t)
		c := newTestCertificate(t, ca, slog.DiscardHandler)
		for i, w := range []certRequest{requestFor("one", "a.example"), requestFor("one", "a.example", "b.example"), requestFor("one", "b.example")} {
			c.requests.Put(w)
			c.requests.Put(w)
			synctest.Wait()
			if signed, _ := ca.count(); signed != i+1 {
				t.Fatalf("%d certificates after %d requests", signed, i+1)
			}
			if got := c.current(); !got.request.sameCertificate(w) || got.err != nil || !slices.Equal(got.leaf.Names, w.names) {
				t.Errorf("known: %v %v, want %v", got.leaf.Names, got.err, w.names)
			}
		}
	})
}

func TestCertificateIsSignedSoonAfterARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t)
		certificates := make([]*certificate, 50)
		for i := range certificates {
			certificates[i] = newTestCertificate(t, ca, slog.DiscardHandler)
			certificates[i].requests.Put(requestFor("one", "a.example"))
		}
		synctest.Wait()
		for _, c := range certificates {
			c.requests.Put(requestFor("two", "a.example"))
		}
		const slice = jitterTime / 10
		var most int
		for before := len(certificates); before < 2*len(certificates); {
			time.Sleep(slice)
			synctest.Wait()
			now, _ := ca.count()
			most, before = max(most, now-before), now
			if time.Since(ca.times()[0]) > jitterTime {
				break
			}
		}
		if signed, _ := ca.count(); signed != 2*len(certificates) {
			t.Errorf("%d certificates %v after the rotation, want %d", signed, jitterTime, 2*len(certificates))
		}
		if most > len(certificates)/2 {
			t.Errorf("%d of %d at once", most, len(certificates))
		}
		time.Sleep(time.Hour)
		if signed, _ := ca.count(); signed != 2*len(certificates) {
			t.Errorf("%d certificates an hour later", signed)
		}
	})
}

func TestCertificateOutlivesAnAuthorityThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, log := newFakeCA(t), &logRecorder{}
		c := newTestCertificate(t, ca, log)
		c.requests.Put(requestFor("one", "a.example"))
		synctest.Wait()
		first := c.current().leaf
		ca.fail(errors.New("connection refused"))
		time.Sleep(ca.ttl + time.Hour)
		synctest.Wait()
		got := c.current()
		if got.leaf != first || got.err == nil || !got.lasts() {
			t.Errorf("while it is gone: %v, kept: %v", got.err, got.leaf == first)
		}
		if n := strings.Count(strings.Join(log.take(), "\n"), "consul did not sign the certificate for clients"); n != 1 {
			t.Errorf("the log says so %d times", n)
		}
		asked := ca.times()
		for i := 20; i < len(asked); i++ {
			if pause := asked[i].Sub(asked[i-1]); pause < retry.LongestPause/2 || pause > retry.LongestPause {
				t.Fatalf("asked again after %v", pause)
			}
		}
		ca.fail(nil)
		time.Sleep(retry.LongestPause)
		synctest.Wait()
		if got := c.current(); got.leaf == first || got.err != nil || got.failures != 0 {
			t.Errorf("once it is back: %v", got.err)
		}
	})
}

func TestBusyAuthorityIsAskedOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t)
		ca.fail(errBusy)
		const n = 40
		for range n {
			newTestCertificate(t, ca, slog.DiscardHandler).requests.Put(requestFor("one", "a.example"))
		}
		time.Sleep(10 * jitterTime)
		synctest.Wait()
		// A random point in each window: two questions in each on average.
		if _, asked := ca.count(); asked > 3*10*n {
			t.Errorf("%d questions of %d certificates in %v", asked, n, 10*jitterTime)
		}
		ca.fail(nil)
		time.Sleep(jitterTime)
		synctest.Wait()
		if signed, _ := ca.count(); signed != n {
			t.Errorf("%d certificates, want %d", signed, n)
		}
	})
}

func TestRefusalLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t)
		ca.fail(permanentError{errors.New("no")})
		c := newTestCertificate(t, ca, slog.DiscardHandler)
		c.requests.Put(requestFor("one", "a.example"))
		synctest.Wait()
		if got := c.current(); got.leaf != nil || got.failures != 1 || !got.lasts() {
			t.Errorf("after one refusal: %+v", got)
		}
		ca.fail(errors.New("gone"))
		c.requests.Put(requestFor("one", "b.example"))
		synctest.Wait()
		if got := c.current(); got.failures != 1 || got.lasts() {
			t.Errorf("after one failure: %+v", got)
		}
	})
}

func TestCertificateThatIsOldFromTheStartIsNotAskedForAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t)
		ca.ttl = time.Second
		newTestCertificate(t, ca, slog.DiscardHandler).requests.Put(requestFor("one", "a.example"))
		time.Sleep(time.Hour)
		if signed, _ := ca.count(); signed > int(time.Hour/jitterTime)+1 {
			t.Errorf("%d certificates in an hour", signed)
		}
	})
}

func TestDNSNames(t *testing.T) {
	services := []gateway.Service{
		{Service: gateway.ServiceName{Name: "web"}, Hosts: []string{"www.example.com", "www.example.com:8443", "*"}},
		{Service: gateway.ServiceName{Name: "api"}},
		{Service: gateway.ServiceName{Name: "api", Namespace: "team"}, Hosts: []string{"dot.example."}},
	}
	got := dnsNames(services, "dc1", []string{"consul.", "alt"})
	want := []string{
		"*",
		"*.ingress.alt", "*.ingress.consul", "*.ingress.consul.",
		"*.ingress.dc1.alt", "*.ingress.dc1.consul", "*.ingress.dc1.consul.",
		"*.ingress.team.alt", "*.ingress.team.consul", "*.ingress.team.consul.",
		"*.ingress.team.dc1.alt", "*.ingress.team.dc1.consul", "*.ingress.team.dc1.consul.",
		"dot.example", "dot.example.", "www.example.com",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestExpiredCertificateIsShownToClientsOnly(t *testing.T) {
	towardsMesh, forClients := &gateway.Leaf{}, &gateway.Leaf{ValidAfter: time.Date(2029, 12, 29, 0, 0, 0, 0, time.UTC), ValidBefore: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	for _, tc := range []struct {
		now      time.Time
		leaf     *gateway.Leaf
		problems int
	}{
		{forClients.ValidBefore.Add(-10 * time.Hour), forClients, 0},
		{forClients.ValidBefore.Add(-time.Second), forClients, 1},
		{forClients.ValidBefore.Add(time.Second), towardsMesh, 1},
	} {
		b := newSnapshotBuild(input{now: tc.now}, state{})
		b.snapshot.Leaf = towardsMesh
		b.setCertificate(&certState{leaf: forClients})
		b.addExpiries()
		if b.snapshot.DownstreamLeaf != forClients || b.snapshot.Leaf != tc.leaf || len(b.snapshot.Problems) != tc.problems {
			t.Errorf("at %v: %+v", tc.now, b.snapshot)
		}
	}
}

func TestNewCertificateIsNotMissedForNewInstances(t *testing.T) {
	c := newTestCertificate(t, newFakeCA(t), slog.DiscardHandler)
	q := query{queryType: healthType, name: "web"}
	w := &gatewayWatch{certificate: c, state: state{
		last:            &gateway.Snapshot{Endpoints: ordered.From(map[string]*gateway.Endpoints{"web": {}})},
		endpointQueries: map[query][]string{q: {"web"}},
	}}
	news := map[query]queryResult{q: {value: &gateway.Endpoints{}}}
	if w.patchEndpoints(news, time.Now()) != nil {
		t.Error("a new certificate is not in the snapshot")
	}
	w.state.certificate = c.current()
	if w.patchEndpoints(news, time.Now()) == nil {
		t.Error("instances are not handed on alone beside a certificate that is known")
	}
}
