package consul

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/guard"
	"github.com/usherproxy/usher/internal/latest"
	"github.com/usherproxy/usher/internal/retry"
)

var (
	// rootsType reads the mesh's root certificates
	// (https://developer.hashicorp.com/consul/api-docs/connect/ca#list-ca-root-certificates).
	rootsType = &queryType{name: "roots", path: "/v1/connect/ca/roots", public: true, decode: decodeJSON("root certificates", decodeRoots)}
	// leafType reads a gateway's certificate for the mesh, which Consul's agent makes and renews. It has no DNS names;
	// see certificate (https://developer.hashicorp.com/consul/api-docs/agent/connect#service-leaf-certificate).
	leafType = &queryType{name: "leaf", path: "/v1/agent/connect/ca/leaf/", local: true, needs: "service:write on the gateway", decode: decodeLeaf}
)

// caRoots are the mesh's root certificates, and which of them signs now.
type caRoots struct {
	all    *gateway.Roots
	active string // the ID of the root that signs
	signs  string // that root in PEM; empty if Consul does not list it
}

type rootsBody struct {
	ActiveRootID, TrustDomain string
	Roots                     []struct{ ID, RootCert string }
}

func decodeRoots(prev *caRoots, body rootsBody, _ response) (*caRoots, error) {
	if body.TrustDomain == "" || len(body.Roots) == 0 {
		return nil, errors.New("the mesh has none yet; enable connect in the configuration of Consul's servers")
	}
	all, signs := &gateway.Roots{TrustDomain: body.TrustDomain}, ""
	for _, root := range body.Roots {
		if root.RootCert == "" {
			return nil, unexpected("a certificate is empty")
		}
		all.PEMs = append(all.PEMs, root.RootCert)
		if root.ID == body.ActiveRootID {
			signs = root.RootCert
		}
	}
	if prev != nil {
		all = reuse(prev.all, all)
	}
	return &caRoots{all: all, active: body.ActiveRootID, signs: signs}, nil
}

func decodeLeaf(_ any, r response) (any, error) {
	var out struct {
		CertPEM       string
		PrivateKeyPEM gateway.Secret
		ValidAfter    time.Time
		ValidBefore   time.Time
	}
	if err := json.Unmarshal(r.body, &out); err != nil {
		// An error of json may quote a part of the body, which contains a key.
		return nil, fmt.Errorf("leaf certificate: %w", unexpected("it is not valid JSON"))
	}
	if out.CertPEM == "" || out.PrivateKeyPEM == "" {
		return nil, fmt.Errorf("leaf certificate: %w", unexpected("it lacks the certificate or its key"))
	}
	return &gateway.Leaf{CertPEM: out.CertPEM, KeyPEM: out.PrivateKeyPEM, ValidAfter: out.ValidAfter, ValidBefore: out.ValidBefore}, nil
}

// requestCertificate makes a key and has the requested certificate signed. As Consul's agents do, it makes keys on
// P-256 whatever key the certificate authority has.
func requestCertificate(ctx context.Context, w certRequest, sign func(context.Context, string) (string, error)) (*gateway.Leaf, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := newCSR(w, key)
	if err != nil {
		return nil, permanentError{err}
	}
	chain, err := sign(ctx, csr)
	if err != nil {
		return nil, err
	}
	leaf, err := newLeaf(chain, w, key)
	if err != nil {
		return nil, permanentError{fmt.Errorf("cannot use the certificate that consul signed: %w", err)}
	}
	return leaf, nil
}

// newLeaf returns a chain with its key if it is the requested certificate.
func newLeaf(chain string, w certRequest, key *ecdsa.PrivateKey) (*gateway.Leaf, error) {
	cert, err := verifySigned(chain, w, key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &gateway.Leaf{
		CertPEM:     chain,
		KeyPEM:      gateway.Secret(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})),
		ValidAfter:  cert.NotBefore,
		ValidBefore: cert.NotAfter,
		Names:       slices.Sorted(slices.Values(cert.DNSNames)),
	}, nil
}

// restoreLeaf returns a saved certificate if it is the requested one and has not expired.
func restoreLeaf(saved *gateway.Leaf, w certRequest, now time.Time) (*gateway.Leaf, error) {
	block, _ := pem.Decode([]byte(saved.KeyPEM))
	if block == nil {
		return nil, errors.New("its key is not in PEM")
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("its key is not valid")
	}
	leaf, err := newLeaf(saved.CertPEM, w, key)
	if err == nil {
		err = checkSaved(leaf, now)
	}
	if err != nil {
		return nil, err
	}
	return leaf, nil
}

func newCSR(w certRequest, key *ecdsa.PrivateKey) (string, error) {
	uri, err := url.Parse(w.uri)
	if err != nil {
		return "", err
	}
	csr, err := encodeCSR(x509.CertificateRequest{URIs: []*url.URL{uri}, DNSNames: w.names}, key)
	if err != nil {
		return "", fmt.Errorf("a host of the ingress-gateway entry cannot be in a certificate: %w; write it in ASCII (punycode: xn--…)", err)
	}
	return csr, nil
}

// encodeCSR signs a request and returns it in PEM.
func encodeCSR(request x509.CertificateRequest, key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &request, key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// checkCA is what to do about a certificate that Consul should not have signed so.
const checkCA = "check Consul's CA configuration (consul connect ca get-config)"

// verifySigned returns the first certificate of a chain if it is the requested one.
func verifySigned(chain string, w certRequest, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		return nil, errors.New("it is not in PEM; " + checkCA)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("it is for another key; " + checkCA)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != w.uri {
		return nil, fmt.Errorf("it is for %v instead of %s; %s", cert.URIs, w.uri, checkCA)
	}
	if !cert.NotBefore.Before(cert.NotAfter) {
		return nil, errors.New("it expires before it begins to be valid; " + checkCA)
	}
	missing := slices.DeleteFunc(slices.Clone(w.names), func(name string) bool { return slices.Contains(cert.DNSNames, name) })
	if len(missing) > 0 {
		return nil, fmt.Errorf("the mesh's certificate authority left out %s; allow these names in its role or policy", strings.Join(missing, ", "))
	}
	return cert, nil
}

// addCertificate adds the certificate for the clients of listeners with TLS. What it contains follows from all other
// parts, so it waits until these are complete.
func (b *snapshotBuild) addCertificate() {
	if len(b.missing) > 0 {
		return
	}
	if !servesTLS(b.snapshot.Entry) || len(b.snapshot.Services) == 0 {
		b.next.certificate = nil
		return
	}
	// An agent that does not return its domain has the default one.
	domains := []string{cmp.Or(b.agent.domain, "consul.")}
	if b.agent.altDomain != "" {
		domains = append(domains, b.agent.altDomain)
	}
	b.certRequest = &certRequest{
		uri:   gateway.ServiceName(b.id).SPIFFEID(b.snapshot.Roots.TrustDomain, b.snapshot.Datacenter),
		names: dnsNames(b.snapshot.Services, b.snapshot.Datacenter, domains),
		root:  b.next.roots.active,
		agent: b.agent,
	}
	s := cmp.Or(b.certificate, &certState{})
	if !s.request.sameCertificate(*b.certRequest) {
		b.waitFor("the certificate for clients", b.options.HealthTimeout)
	}
	b.setCertificate(s)
}

// setCertificate adds a certificate to the snapshot. As with Consul's own xDS, clients and the mesh see the same one,
// unless the mesh would refuse it.
func (b *snapshotBuild) setCertificate(s *certState) {
	if s.err != nil && s.lasts() {
		b.addProblem(b.certificateFor("clients"), s.err.Error())
	}
	if s.leaf == nil {
		return
	}
	b.snapshot.DownstreamLeaf = s.leaf
	if !b.now.After(s.leaf.ValidBefore) && b.isOfTheMesh(s.leaf) {
		b.snapshot.Leaf = s.leaf
	}
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
	uri   string   // the gateway's SPIFFE ID
	names []string // the DNS names, sorted
	root  string   // the ID of the root that signs now
	agent agent    // whose gRPC port signs it
}

// sameCertificate reports whether two requests are for certificates with the same content.
func (r certRequest) sameCertificate(other certRequest) bool {
	return r.uri == other.uri && slices.Equal(r.names, other.names)
}

const (
	lastingFailures = 3 // how many failures in a row are a lasting one
	// maxSleep bounds how long a timer runs: while a machine sleeps, the clock of timers stands still.
	maxSleep = time.Minute
	// jitterTime is the time over which certificates are renewed after a new root, and retried if the certificate
	// authority is busy. It is Consul's own, and gives the authority time for all of them.
	jitterTime = 30 * time.Second
)

// certState is the result of the attempts to get a certificate.
type certState struct {
	leaf     *gateway.Leaf // the last valid one; nil before the first
	request  certRequest   // of the latest attempt
	err      error         // of the latest attempt; nil if it was good
	failures int           // failed attempts since the last valid one
}

// lasts reports whether the error lasts until an administrator corrects its cause.
func (s *certState) lasts() bool {
	return s.failures >= lastingFailures || errors.As(s.err, new(permanentError))
}

// certificate keeps one gateway's certificate with DNS names up to date: it makes the keys, has the certificates
// signed, and renews them in time. Its goroutine owns the renewal. One other goroutine puts requests, and calls close.
type certificate struct {
	id     gateway.ID
	sign   func(ctx context.Context, a agent, csr string) (string, error)
	client *Client         // for its log and metrics
	wake   chan<- struct{} // receives after each change of the state; its capacity is 1
	saved  *gateway.Leaf   // from the state directory; nil if there is none. Only the goroutine uses it

	requests latest.Value[certRequest] // what is needed from now on
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
}

// current returns the state; nil for a nil certificate.
func (c *certificate) current() *certState {
	if c == nil {
		return nil
	}
	return c.state.Load()
}

func (c *certificate) run(ctx context.Context) {
	var r renewal
	for {
		select {
		case <-ctx.Done():
			return
		case request := <-c.requests.C():
			r.setRequest(request, time.Now())
		case <-time.After(r.timeLeft(time.Now())):
		}
		if r.timeLeft(time.Now()) <= 0 {
			c.attempt(ctx, &r)
		}
	}
}

// attempt has a new certificate signed.
func (c *certificate) attempt(ctx context.Context, r *renewal) {
	leaf, err := c.request(ctx, r.request)
	if ctx.Err() != nil {
		return
	}
	c.client.metrics.countSignature(err)
	next := &certState{leaf: c.current().leaf, request: r.request, err: err}
	if err != nil {
		r.failed(err, time.Now())
		next.failures = r.failures
		if next.leaf == nil {
			next.leaf = c.restore(r.request)
		}
		if r.failures == 1 {
			c.client.logger.Warn("consul did not sign the certificate for clients; Usher tries again, and the last one stays in use", "gateway", c.id.String(), "error", err)
		}
	} else {
		r.succeeded(leaf, time.Now())
		next.leaf = leaf
		c.client.logger.Info("certificate for clients signed",
			"gateway", c.id.String(), "names", leaf.Names, "valid_before", leaf.ValidBefore, "next_renewal", r.due)
	}
	c.state.Store(next)
	notify(c.wake)
}

// request has a certificate signed. While a saved one can take its place, Consul has restoreAfter for that.
func (c *certificate) request(ctx context.Context, r certRequest) (leaf *gateway.Leaf, err error) {
	if c.saved != nil && c.current().leaf == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, restoreAfter)
		defer cancel()
	}
	err = guard.Run(c.client.logger, "certificate", func() (err error) {
		leaf, err = requestCertificate(ctx, r, func(ctx context.Context, csr string) (string, error) {
			return c.sign(ctx, r.agent, csr)
		})
		return err
	})
	return leaf, err
}

// restore returns the saved certificate if it is the requested one, else nil.
func (c *certificate) restore(r certRequest) *gateway.Leaf {
	if c.saved == nil {
		return nil
	}
	leaf, err := restoreLeaf(c.saved, r, time.Now())
	if err != nil {
		c.client.logger.Warn("usher does not use the saved certificate for clients, and waits for consul's", "gateway", c.id.String(), "error", err)
		c.saved = nil
	}
	return leaf
}

// toSave returns the certificate to be saved after before was. While there is none yet, that is before.
func (s *certState) toSave(before *gateway.Leaf) *gateway.Leaf {
	switch {
	case s == nil:
		return nil // the gateway needs none
	case s.leaf == nil:
		return before
	}
	return s.leaf
}

// renewal says when a certificate is due. The zero value waits for a request.
type renewal struct {
	request  certRequest
	due      time.Time // zero: never
	failures int       // in a row
}

// timeLeft returns the time until the certificate is due, maxSleep at most. It is due as soon as either clock says so:
// the machine's clock may be corrected by hours, and the one of timers stands still while the machine sleeps.
func (r *renewal) timeLeft(now time.Time) time.Duration {
	if r.due.IsZero() {
		return maxSleep
	}
	return min(maxSleep, r.due.Sub(now), r.due.Round(0).Sub(now.Round(0)))
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
		if soon := now.Add(mathrand.N(jitterTime)); soon.Before(r.due) {
			r.due = soon
		}
	}
}

// succeeded makes the next certificate due at a random time between 60 % and 90 % of the lifetime, as Consul does. The
// clock of this machine can be hours before or behind the one of the authority. So the certificate is due at the latest
// that long after now, when it was signed, and it is due ten times in its lifetime at most.
func (r *renewal) succeeded(leaf *gateway.Leaf, now time.Time) {
	lifetime := leaf.ValidBefore.Sub(leaf.ValidAfter)
	age := lifetime*6/10 + mathrand.N(lifetime*3/10+1)
	r.failures = 0
	r.due = now.Add(max(jitterTime, lifetime/10, min(age, leaf.ValidAfter.Add(age).Sub(now))))
}

func (r *renewal) failed(err error, now time.Time) {
	r.failures++
	pause := retry.Pause(r.failures)
	if errors.Is(err, errBusy) {
		pause = mathrand.N(jitterTime)
	}
	r.due = now.Add(pause)
}
