// Package evidence holds what Envoys report of the connections to their listeners: which began with a PROXY header,
// and which did not. A setting says what a load balancer should do; this says what it does.
//
// Envoy writes one log entry for each connection to a listener when the connection ends, and sends the entries to
// Usher over the cluster that its bootstrap has for xDS. Format says what is in an entry, a Receiver
// reads them, and a Store counts by listener.
package evidence

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// Listener is what a report is about: the listener on one port of a gateway's instances. Each instance has its own, but
// those with the same settings report the same.
type Listener struct {
	Gateway    gateway.ID
	Kubernetes gateway.KubernetesService // in front of it
	Port       int
	Mode       settings.Mode  // of PROXY protocol: Off, Permissive or Strict
	Trusted    []netip.Prefix // whose PROXY headers count; empty: everybody's
	// FollowsService means that the mode is auto, and Kubernetes has the Service. Such listeners are counted apart from
	// others of the same port: Watch reports only them, and Gateway only the others.
	FollowsService bool
}

// Type is what a connection shows about PROXY headers.
type Type uint8

// The types of connections.
const (
	// Unknown shows nothing: no data came, as with a TCP health check, or a PROXY header without an address.
	Unknown Type = iota
	// WithHeader began with a PROXY header.
	WithHeader
	// WithoutHeader was served without one.
	WithoutHeader
	// Refused was closed by a strict listener, because there was no PROXY header.
	Refused
	// Malformed began with data that is neither HTTP nor TLS, as did all others from its address for some time. On a
	// listener that is off, so does a PROXY header.
	Malformed
	// Ambiguous was served by a permissive listener, which cannot tell a header without an address from none, and came
	// from an address that sends headers otherwise. It may be a health check.
	Ambiguous
	// Untrusted came from outside trusted_cidrs, and shows no PROXY header.
	Untrusted
	// UntrustedHeader came from outside trusted_cidrs, and began with a PROXY header, which does not count.
	UntrustedHeader

	numTypes
)

// Summary is what is known of the connections to one port, over the last Window. The zero value: there was none.
//
// The listeners on a port can have different modes: instances are replaced one after the other, or have different
// settings, and a listener that was replaced reports its connections until the last of them ends. So what counts is the
// mode of the listener that had the connection: one that a strict listener refused is Refused, whatever mode the port has
// by then. What a Summary says never depends on which listener reported last.
type Summary struct {
	// Restricted means that trusted_cidrs of a listener names whose PROXY headers count. Other connections are Untrusted.
	Restricted                                               bool
	WithHeader, WithoutHeader, Refused, Malformed, Ambiguous Tally
	// Untrusted are all from outside trusted_cidrs, and UntrustedHeaders those of them that began with a PROXY header. The
	// addresses are the last one of these: more would let anybody fill the memory.
	Untrusted, UntrustedHeaders Tally
	Unknown                     Tally
	// OnlyMalformed are the malformed ones of an address in trusted_cidrs that begins all connections like that: since First,
	// Envoy has understood none of them. It is the address for which that is longest; Addresses are all. Only a listener that
	// is off has them. Began is not known.
	OnlyMalformed Tally
	// RefusedTrusted means that the last one that was refused came from an address in trusted_cidrs.
	RefusedTrusted bool
	// RefusedHeaderSenders means that an address whose connections were refused also sent headers.
	RefusedHeaderSenders bool
}

// Tally counts connections of one type.
type Tally struct {
	Count int
	// First is when the first of them ended, since there was last none in a whole Window. Last is when the last one
	// did. Zero: there is none.
	First, Last time.Time
	// Began is when the newest of them began, because one that ends now may have begun hours ago: at the earliest, and a
	// few seconds later at most. Zero: it is not known.
	Began time.Time
	// Addresses are the connecting addresses with most connections of the type, to listeners of all modes, in order, at
	// most MaxAddresses.
	Addresses []netip.Addr
}

// MaxAddresses is how many addresses a problem names.
const MaxAddresses = 3

// From names the addresses that connections come from, for the end of a text: ", from 10.0.3.7, 10.0.3.8"; "" if there
// are none.
func From(addresses []netip.Addr) string {
	if len(addresses) == 0 {
		return ""
	}
	var texts []string
	for _, a := range addresses {
		texts = append(texts, a.String())
	}
	return ", from " + strings.Join(texts, ", ")
}

// FewConnections may begin with anything, such as those of a port scanner, before that shows something.
const FewConnections = 2

// FewUntrusted is how many connections may come from outside trusted_cidrs before that shows something: port scanners make
// some.
const FewUntrusted = 10

// MostlyMalformed reports whether most connections to a listener that is off seem to begin with a PROXY header.
func (s Summary) MostlyMalformed() bool {
	return s.Malformed.Count > max(FewConnections, s.WithoutHeader.Count)
}

// Window is how far back a Summary goes.
const Window = 10 * time.Minute

// Latest returns the latest of some times.
func Latest(times ...time.Time) time.Time { return slices.MaxFunc(times, time.Time.Compare) }

// Ports are summaries by port, each of listeners of all modes: the mode of a listener that follows a Service depends on what
// connections have shown before.
type Ports map[int]Summary

// PortMode is a port, and the mode that some listeners on it have, or had when a connection began.
type PortMode struct {
	Port int
	Mode settings.Mode
}

// PortModes are summaries by port and mode.
type PortModes map[PortMode]Summary
