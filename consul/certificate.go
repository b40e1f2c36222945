package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/latest"
)

// wish says which certificate a gateway needs, and who is to sign it.
type certRequest struct {
	uri         string   // the gateway's SPIFFE ID
	names       []string // the DNS names, sorted
	root        string   // the ID of the root that signs now
	grpcAddress address  // where to ask, see signer
}

// says is whether two wishes are for certificates that say the same.
func (w certRequest) sameCertificate(other certRequest) bool {
	return w.uri == other.uri && slices.Equal(w.names, other.names)
}

func (w certRequest) equal(other certRequest) bool {
	return w.sameCertificate(other) && w.root == other.root && w.grpcAddress == other.grpcAddress
}

// signed is what became of a wish.
type certState struct {
	leaf     *gateway.Leaf // the last good one; nil before the first
	request  certRequest   // by the latest attempt
	err      error         // why that gave nothing; nil when it did
	failures int           // attempts that failed since the last good one
}

// lastingFailures is how many failures in a row count as a lasting one.
const lastingFailures = 3

// mend says whether a person has to mend something, as it seems.
func (s *certState) lasts() bool {
	return s.failures >= lastingFailures || errors.As(s.err, new(permanentError))
}

// certificate keeps one gateway's certificate with DNS names: it makes keys, has
// them signed, and does so again in time. Its goroutine owns the certificate;
// asking and closing are for one other.
type certificate struct {
	id     gateway.ID
	sign   func(ctx context.Context, at address, csr string) (string, error)
	client *Client // for its log and metrics
	notify func()  // called when there is something new to know

	request  certRequest // the newest one
	requests latest.Value[certRequest]
	state    atomic.Pointer[certState]
	cancel   context.CancelFunc
	done     chan struct{} // closed when the goroutine has ended
}

// start starts the goroutine, which runs until close.
func (c *certificate) start() *certificate {
	ctx, cancel := context.WithCancel(context.Background())
	c.requests, c.cancel, c.done = latest.New[certRequest](), cancel, make(chan struct{})
	c.state.Store(&certState{})
	go func() {
		defer close(c.done)
		c.run(ctx)
	}()
	return c
}

// close ends the goroutine and waits for it. A nil certificate is closed.
func (c *certificate) close() {
	if c == nil {
		return
	}
	c.cancel()
	<-c.done
	c.client.metrics.forgetExpiry(c.id.String())
}

// ask tells what is wanted from now on.
func (c *certificate) setRequest(w certRequest) {
	if !w.equal(c.request) {
		c.request = w
		c.requests.Put(w)
	}
}

// known gives what there is; nil for a nil certificate.
func (c *certificate) current() *certState {
	if c == nil {
		return nil
	}
	return c.state.Load()
}

// longestNap bounds how long a timer runs: its clock stands still while a
// machine sleeps, and the time of day does not.
const maxSleep = time.Minute

func (c *certificate) run(ctx context.Context) {
	var r renewal
	timer := time.NewTimer(maxSleep)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-c.requests.C():
			r.setRequest(w, time.Now())
		case <-timer.C:
		}
		if r.isDue(time.Now()) {
			c.attempt(ctx, &r)
		}
		timer.Reset(r.sleepTime(time.Now()))
	}
}

// attempt has a new certificate signed.
func (c *certificate) attempt(ctx context.Context, r *renewal) {
	var leaf *issuedLeaf
	err := guard.Run(c.client.logger, "certificate", func() (err error) {
		leaf, err = requestCertificate(ctx, r.request, func(ctx context.Context, csr string) (string, error) {
			return c.sign(ctx, r.request.grpcAddress, csr)
		})
		return err
	})
	if ctx.Err() != nil {
		return
	}
	c.client.metrics.signature(err)
	if err != nil {
		r.failed(err, time.Now())
		c.failed(r, err)
		return
	}
	r.succeeded(leaf, time.Now())
	c.client.metrics.expiry(c.id.String(), leaf.ValidBefore)
	c.client.logger.Info("certificate for the clients of the gateway signed",
		"gateway", c.id.String(), "names", leaf.Names, "valid_before", leaf.ValidBefore, "again_at", r.due)
	c.setState(&certState{leaf: leaf.Leaf, request: r.request})
}

func (c *certificate) failed(r *renewal, err error) {
	if r.failures == 1 {
		c.client.logger.Warn("no certificate for the clients of the gateway; the last one counts", "gateway", c.id.String(), "error", err)
	}
	c.setState(&certState{leaf: c.current().leaf, request: r.request, err: err, failures: r.failures})
}

func (c *certificate) setState(s *certState) {
	c.state.Store(s)
	c.notify()
}

// spread is the time over which certificates are renewed after a new root, and
// asked for again when the authority has too much to do: enough for it to serve
// everybody. It is Consul's own.
const jitterTime = 30 * time.Second

// renewal says when a certificate is due. The zero value waits for a wish.
type renewal struct {
	request  certRequest
	due      time.Time // zero: never
	failures int       // in a row
}

func (r *renewal) isDue(now time.Time) bool { return !r.due.IsZero() && !now.Before(r.due) }

// nap is how long to wait before looking again.
func (r *renewal) sleepTime(now time.Time) time.Duration {
	if r.due.IsZero() {
		return maxSleep
	}
	return min(maxSleep, r.due.Sub(now))
}

// want takes a wish over. A certificate that says something else is due at once;
// with a new root the same one is due soon.
func (r *renewal) setRequest(w certRequest, now time.Time) {
	before := r.request
	r.request = w
	switch {
	case !w.sameCertificate(before):
		r.due, r.failures = now, 0
	case w.root != before.root:
		if soon := now.Add(rand.N(jitterTime)); soon.Before(r.due) {
			r.due = soon
		}
	}
}

// succeeded makes the next one due at a random point between 60 % and 90 % of
// the lifetime, as Consul does. A clock that is wrong does not make it due all
// the time.
func (r *renewal) succeeded(leaf *issuedLeaf, now time.Time) {
	lifetime := leaf.ValidBefore.Sub(leaf.validFrom)
	r.failures = 0
	r.due = leaf.validFrom.Add(lifetime*6/10 + rand.N(lifetime*3/10+1))
	if least := now.Add(jitterTime); r.due.Before(least) {
		r.due = least
	}
}

func (r *renewal) failed(err error, now time.Time) {
	r.failures++
	pause := backOff(r.failures)
	if errors.Is(err, errBusy) {
		pause = rand.N(jitterTime)
	}
	r.due = now.Add(pause)
}

// serve sees to the certificate that the clients of listeners with TLS are
// shown. It follows from all other parts, so it waits for them to be complete.
func (b *snapshotBuilder) addCertificate() {
	if len(b.missing) > 0 {
		return
	}
	if !servesTLS(b.snapshot.Entry) || len(b.snapshot.Services) == 0 {
		b.stopCertificate()
		return
	}
	if b.certificate == nil {
		b.startCertificate()
	}
	w := b.certRequest()
	b.certificate.setRequest(w)
	b.certState = b.certificate.current()
	if !b.certState.request.sameCertificate(w) {
		b.pending = append(b.pending, "the certificate for clients")
	}
	b.setCertificate(b.certState, time.Now())
}

// shown puts the certificate into the snapshot. Consul's own xDS shows the same
// one to clients and to the mesh.
func (b *snapshotBuilder) setCertificate(s *certState, now time.Time) {
	where := fmt.Sprintf("certificate of gateway %q for clients", b.id.String())
	if s.err != nil && s.lasts() {
		b.addProblem(where, s.err.Error())
	}
	if s.leaf == nil {
		return
	}
	b.snapshot.DownstreamLeaf = s.leaf
	if now.After(s.leaf.ValidBefore) {
		b.addProblem(where, "it expired at "+s.leaf.ValidBefore.UTC().Format(time.RFC3339)+", and clients refuse it")
		return
	}
	b.snapshot.Leaf = s.leaf
}

func (s *source) startCertificate() {
	s.signer.acquire()
	s.certificate = (&certificate{id: s.id, sign: s.signer.sign, client: s.client, notify: s.subscription.notify}).start()
}

// endServing ends what startServing has started.
func (s *source) stopCertificate() {
	if s.certificate == nil {
		return
	}
	s.certificate.close()
	s.signer.release()
	s.certificate, s.certState = nil, nil
}

// servesTLS says whether some listener shows clients a certificate of the mesh.
// As with Consul, one that shows another one (SDS) asks for it as well.
func servesTLS(e *gateway.Entry) bool {
	return e != nil && (e.TLS.Enabled || slices.ContainsFunc(e.Listeners, func(l gateway.Listener) bool {
		return l.TLS != nil && l.TLS.Enabled
	}))
}

func (b *snapshotBuilder) certRequest() certRequest {
	// An agent that does not tell its domain has the default one.
	domains := []string{cmp.Or(b.agent.domain, "consul.")}
	if b.agent.altDomain != "" {
		domains = append(domains, b.agent.altDomain)
	}
	return certRequest{
		uri:         gateway.ServiceName(b.id).SPIFFEID(b.snapshot.Roots.TrustDomain, b.snapshot.Datacenter),
		names:       dnsNames(b.snapshot.Services, b.snapshot.Datacenter, domains),
		root:        b.activeRoot,
		grpcAddress: b.client.grpcAddress(b.agent),
	}
}

// dnsNames are the names that Consul puts into the certificate: wildcards in the
// domains that Consul answers DNS for, and the hosts of all services, without
// ports. Consul writes its domains with the dot at the end, which only some
// clients understand, so each name is there without it as well.
func dnsNames(services []gateway.Service, datacenter string, domains []string) []string {
	var names []string
	for _, s := range services {
		ingress := "*.ingress."
		if s.Service.Namespace != "" {
			ingress += s.Service.Namespace + "."
		}
		for _, domain := range domains {
			names = append(names, ingress+domain, ingress+datacenter+"."+domain)
		}
		for _, host := range s.Hosts {
			host, _, _ = strings.Cut(host, ":")
			names = append(names, host)
		}
	}
	for _, name := range names {
		names = append(names, strings.TrimSuffix(name, "."))
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return name == "" })
}
