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

// addCertificate adds the certificate for the clients of listeners with TLS. What it contains follows from all other
// parts, so it waits until these are complete.
func (c *compilation) addCertificate() {
	if len(c.missing) > 0 {
		return
	}
	if !servesTLS(c.snapshot.Entry) || len(c.snapshot.Services) == 0 {
		c.next.certificate = nil
		return
	}
	// An agent that does not return its domain has the default one.
	domains := []string{cmp.Or(c.agent.domain, "consul.")}
	if c.agent.altDomain != "" {
		domains = append(domains, c.agent.altDomain)
	}
	c.certRequest = &certRequest{
		uri:         gateway.ServiceName(c.id).SPIFFEID(c.snapshot.Roots.TrustDomain, c.snapshot.Datacenter),
		names:       dnsNames(c.snapshot.Services, c.snapshot.Datacenter, domains),
		root:        c.activeRoot,
		grpcAddress: c.grpcAddress(c.agent),
	}
	s := cmp.Or(c.certificate, &certState{})
	if !s.request.sameCertificate(*c.certRequest) {
		c.waitFor("the certificate for clients")
	}
	c.setCertificate(s)
}

// setCertificate adds a certificate to the snapshot. As with Consul's own xDS, clients and the mesh see the same one.
func (c *compilation) setCertificate(s *certState) {
	where := fmt.Sprintf("certificate of gateway %q for clients", c.id.String())
	if s.err != nil && s.lasts() {
		c.addProblem(where, s.err.Error())
	}
	if s.leaf == nil {
		return
	}
	c.snapshot.DownstreamLeaf = s.leaf
	if c.now.After(s.leaf.ValidBefore) {
		c.addProblem(where, "it expired at "+s.leaf.ValidBefore.UTC().Format(time.RFC3339)+", and clients refuse it")
		return
	}
	c.snapshot.Leaf = s.leaf
}

// servesTLS reports whether a listener shows clients a certificate of the mesh. As with Consul, a gateway needs that
// also for a listener whose certificate comes over SDS.
func servesTLS(e *gateway.Entry) bool {
	return e != nil && (e.TLS.Enabled || slices.ContainsFunc(e.Listeners, func(l gateway.Listener) bool {
		return l.TLS != nil && l.TLS.Enabled
	}))
}

// dnsNames returns the names that Consul puts into the certificate: wildcards in the domains for which Consul answers
// DNS queries, and the hosts of all services, without ports. Consul's domains end with a dot, which only some clients
// accept. So each name is in the list without that dot, too.
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

// certRequest is the certificate that a gateway needs.
type certRequest struct {
	uri         string   // the gateway's SPIFFE ID
	names       []string // the DNS names, sorted
	root        string   // the ID of the root that signs now
	grpcAddress address  // where to have it signed; see signer
}

// sameCertificate reports whether two requests are for certificates with the same content.
func (r certRequest) sameCertificate(other certRequest) bool {
	return r.uri == other.uri && slices.Equal(r.names, other.names)
}

func (r certRequest) equal(other certRequest) bool {
	return r.sameCertificate(other) && r.root == other.root && r.grpcAddress == other.grpcAddress
}

// certState is the result of the attempts to get a certificate.
type certState struct {
	leaf     *gateway.Leaf // the last good one; nil before the first
	request  certRequest   // of the latest attempt
	err      error         // of the latest attempt; nil if it was good
	failures int           // failed attempts since the last good one
}

// lastingFailures is how many failures in a row are a lasting one.
const lastingFailures = 3

// lasts reports whether the error lasts until an administrator corrects its cause.
func (s *certState) lasts() bool {
	return s.failures >= lastingFailures || errors.As(s.err, new(permanentError))
}

// certificate keeps one gateway's certificate with DNS names up to date: it makes the keys, has the certificates
// signed, and renews them in time. Its goroutine owns the renewal. One other goroutine calls setRequest and close.
type certificate struct {
	id     gateway.ID
	sign   func(ctx context.Context, at address, csr string) (string, error)
	client *Client // for its log and metrics
	notify func()  // called after each change of the state

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

// close ends the goroutine and waits for it.
func (c *certificate) close() {
	c.cancel()
	<-c.done
	c.client.metrics.expiries.DeleteLabelValues(c.id.String())
}

// setRequest sets the certificate that is needed from now on.
func (c *certificate) setRequest(r certRequest) {
	if !r.equal(c.request) {
		c.request = r
		c.requests.Put(r)
	}
}

// current returns the state; nil for a nil certificate.
func (c *certificate) current() *certState {
	if c == nil {
		return nil
	}
	return c.state.Load()
}

// maxSleep bounds how long a timer runs. While a machine sleeps, the clock of timers stands still, and the time of day
// does not.
const maxSleep = time.Minute

func (c *certificate) run(ctx context.Context) {
	var r renewal
	timer := time.NewTimer(maxSleep)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case request := <-c.requests.C():
			r.setRequest(request, time.Now())
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
	c.client.metrics.countSignature(err)
	if err != nil {
		r.failed(err, time.Now())
		if r.failures == 1 {
			c.client.logger.Warn("cannot get a certificate for clients signed; keeping the last one", "gateway", c.id.String(), "error", err)
		}
		c.setState(&certState{leaf: c.current().leaf, request: r.request, err: err, failures: r.failures})
		return
	}
	r.succeeded(leaf, time.Now())
	c.client.metrics.expiries.WithLabelValues(c.id.String()).Set(float64(leaf.ValidBefore.Unix()))
	c.client.logger.Info("certificate for clients signed",
		"gateway", c.id.String(), "names", leaf.Names, "valid_before", leaf.ValidBefore, "again_at", r.due)
	c.setState(&certState{leaf: leaf.Leaf, request: r.request})
}

func (c *certificate) setState(s *certState) {
	c.state.Store(s)
	c.notify()
}

// jitterTime is the time over which certificates are renewed after a new root, and retried if the certificate authority
// is busy. It is Consul's own, and gives the authority time for all of them.
const jitterTime = 30 * time.Second

// renewal says when a certificate is due. The zero value waits for a request.
type renewal struct {
	request  certRequest
	due      time.Time // zero: never
	failures int       // in a row
}

func (r *renewal) isDue(now time.Time) bool { return !r.due.IsZero() && !now.Before(r.due) }

// sleepTime returns how long to sleep before the next check.
func (r *renewal) sleepTime(now time.Time) time.Duration {
	if r.due.IsZero() {
		return maxSleep
	}
	return min(maxSleep, r.due.Sub(now))
}

// setRequest sets the request. A certificate with other content is due at once. With a new root, the same certificate
// is due soon.
func (r *renewal) setRequest(request certRequest, now time.Time) {
	before := r.request
	r.request = request
	switch {
	case !request.sameCertificate(before):
		r.due, r.failures = now, 0
	case request.root != before.root:
		if soon := now.Add(rand.N(jitterTime)); soon.Before(r.due) {
			r.due = soon
		}
	}
}

// succeeded makes the next certificate due at a random time between 60 % and 90 % of the lifetime, as Consul does. If a
// clock is wrong, it is not due all the time.
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
