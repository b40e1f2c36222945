package consul

import (
	"fmt"
	"time"

	"github.com/usherproxy/usher/internal/expiry"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

// chainOf returns the chain of a gateway's certificate.
func chainOf(leaf *gateway.Leaf) expiry.Chain {
	if found := expiry.Certificates(leaf.CertPEM); len(found) > 0 {
		return expiry.ChainOf(found[0], found[1:])
	}
	return expiry.Chain{{From: leaf.ValidAfter, Until: leaf.ValidBefore, Name: "the certificate", Needed: true}}
}

// trustDomainOf returns the trust domain of a gateway's certificate; "" if it is not known.
func trustDomainOf(leaf *gateway.Leaf) string {
	if found := expiry.Certificates(leaf.CertPEM); len(found) > 0 && len(found[0].URIs) > 0 {
		return found[0].URIs[0].Host
	}
	return ""
}

// isOfTheMesh reports whether a certificate has the trust domain of the roots in the snapshot.
func (b *snapshotBuild) isOfTheMesh(leaf *gateway.Leaf) bool {
	domain := trustDomainOf(leaf)
	return domain == "" || b.snapshot.Roots == nil || domain == b.snapshot.Roots.TrustDomain
}

// keepTrustDomain keeps roots and certificate of one trust domain. The domain is another one after the Consul snapshot of
// another cluster was restored, and Consul's agent makes the certificate for it up to half a minute later. Until both
// have changed, those of the last snapshot stay: with only one of them, neither old nor new services can be reached.
func (b *snapshotBuild) keepTrustDomain() {
	s, last := b.snapshot, b.prev.last
	if s.Leaf == nil || s.Roots == nil || b.isOfTheMesh(s.Leaf) {
		return
	}
	ofLeaf, ofMesh := trustDomainOf(s.Leaf), s.Roots.TrustDomain
	what := "a certificate of the trust domain " + ofMesh
	lasts := b.deadlineExceeded(what, trustDomainTimeout)
	switch {
	case last != nil && last.Leaf != nil && last.Roots != nil:
		b.keepsLast = true
		s.Leaf, s.Roots, b.next.roots = last.Leaf, last.Roots, b.prev.roots
	case !lasts:
		b.addMissing(what, nil)
	}
	if lasts {
		b.addProblemOf(problem.Outage, b.certificateFor("the mesh"), fmt.Sprintf(
			"Consul's agent returns one of the trust domain %s, and the mesh has %s, so services refuse it; "+
				"restart the Consul agent that Usher uses, and check its log", ofLeaf, ofMesh))
	}
}

// trustDomainTimeout is how long the certificate may take: an agent spreads the new ones over jitterTime.
const trustDomainTimeout = 2 * jitterTime

// certificateFor names the gateway's certificate in problems.
func (b *snapshotBuild) certificateFor(whom string) string {
	return fmt.Sprintf("certificate of gateway %q for %s", b.id.String(), whom)
}

// expiring is what to say about a certificate that expires.
type expiring struct {
	where       string
	consequence string // what happens when it has expired: "clients refuse it"
	remedy      string
	soon, ends  problem.Severity // when it expires soon, and when it has expired
}

// addExpiries adds the problems of certificates that expire, have expired or are not valid yet.
func (b *snapshotBuild) addExpiries() {
	b.next.expiryChanges = time.Time{}
	s := b.snapshot
	if s.DownstreamLeaf != nil {
		b.addExpiry(chainOf(s.DownstreamLeaf), expiring{
			b.certificateFor("clients"), "clients refuse it",
			"Consul must sign a new one: check Consul's gRPC port, and Usher's token for service:write on the gateway",
			problem.Degraded, problem.Outage,
		})
	}
	if s.Leaf != nil && s.Leaf != s.DownstreamLeaf {
		b.addExpiry(chainOf(s.Leaf), expiring{
			b.certificateFor("the mesh"), "services refuse the gateway's connections, and requests get 503",
			"Consul's agent must get a new one: check that it reaches Consul's servers, their CA (consul connect ca get-config), " +
				"and Usher's token for service:write on the gateway",
			problem.Degraded, problem.Outage,
		})
	}
	b.addExpiry(lasting(b.next.roots.signs), expiring{
		"root certificate of the mesh", "services and gateways refuse each other's certificates",
		"give Consul's CA a new root (consul connect ca set-config), early enough that all certificates can be renewed",
		problem.Notice, problem.Outage,
	})
	for peer, roots := range s.Peers {
		b.addExpiry(lasting(roots.PEMs...), expiring{
			fmt.Sprintf("root certificate of cluster peer %q", peer), "its services get no traffic",
			"give the CA of that cluster a new root; if it has one, establish the peering again",
			problem.Notice, problem.Degraded,
		})
	}
}

// lasting returns the one of some root certificates that lasts longest: the others are from before a rotation.
func lasting(roots ...string) expiry.Chain {
	var found expiry.Chain
	for _, root := range roots {
		for _, c := range expiry.Certificates(root) {
			v := expiry.Validity{From: c.NotBefore, Until: c.NotAfter, Name: fmt.Sprintf("%q", c.Subject.String()), Needed: true}
			if len(found) == 0 || v.Until.After(found[0].Until) {
				found = expiry.Chain{v}
			}
		}
	}
	return found
}

// addExpiry adds the problems of a chain.
func (b *snapshotBuild) addExpiry(chain expiry.Chain, e expiring) {
	for _, v := range chain {
		if !v.Needed || v.Until.IsZero() {
			continue
		}
		stage, changes := v.Stage(b.now)
		b.next.expiryChanges = expiry.Earlier(b.next.expiryChanges, changes)
		until := v.Until.UTC().Format(time.RFC3339)
		switch stage {
		case expiry.Good:
		case expiry.NotYetValid:
			b.addProblemOf(e.soon, e.where, fmt.Sprintf("%s is not valid before %s by this machine's clock; where clocks agree with it, %s; "+
				"correct the clock of this machine, or those of Consul's servers", v.Name, v.From.UTC().Format(time.RFC3339), e.consequence))
		case expiry.Soon:
			b.addProblemOf(e.soon, e.where, fmt.Sprintf("%s expires at %s; after that, %s; %s", v.Name, until, e.consequence, e.remedy))
		case expiry.Urgent:
			b.addProblemOf(max(e.soon, problem.Degraded), e.where, fmt.Sprintf("%s expires at %s; after that, %s; %s", v.Name, until, e.consequence, e.remedy))
		case expiry.Expired:
			b.addProblemOf(e.ends, e.where, fmt.Sprintf("%s expired at %s, so %s; %s", v.Name, until, e.consequence, e.remedy))
		}
	}
}

// untilNext returns the time until the problems of expiring certificates change, or the given one if that is less. Timers do
// not follow a clock that is corrected, so it is maxSleep at most.
func (s *state) untilNext(now time.Time, most time.Duration) time.Duration {
	if s.expiryChanges.IsZero() {
		return most
	}
	return min(most, maxSleep, s.expiryChanges.Sub(now))
}

// expires reports whether the problems of expiring certificates have changed since the build.
func (s *state) expires(now time.Time) bool {
	return !s.expiryChanges.IsZero() && !now.Before(s.expiryChanges)
}
