package controlplane

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// ConnectionSource has what Envoys report of connections.
type ConnectionSource interface {
	// Gateway returns what is known of a gateway's listeners that follow no Service, by port and mode. Those that do are
	// the BalancerSource's: it changes their modes.
	Gateway(id gateway.ID) evidence.PortModes
}

// connectionsInterval is how often a worker reads what is known of connections.
const connectionsInterval = 5 * time.Second

// connections finds out whether connections agree with the modes that are set.
//
// Instances can have different modes for the same port, and each is compared with the connections to its listeners. A mode
// that no instance has is compared with nothing: its last connections may end long after it was changed. Whether there are
// headers at all does not depend on the mode, so those that any listener on the port has seen count.
type connections struct {
	source ConnectionSource            // may be nil
	next   time.Time                   // when it is read again
	timer  <-chan time.Time            // for that
	shown  map[evidence.PortMode]shown // those without a report in the last Window are left out
}

// shown is what connections show, as it was when they began to: a problem's text must stay the same.
type shown struct {
	conclusion
	since time.Time
	from  []netip.Addr // some of their addresses
}

// conclusion is what connections show against, or for, the mode of their listener.
type conclusion uint8

const (
	nothing     conclusion = iota
	headersOff             // most of those to a listener that is off seem to begin with a PROXY header
	noHeaders              // those to a strict listener are refused, and none to the port has a header
	untrusted              // only connections from outside trusted_cidrs have a header
	headersOnly            // all of those to a permissive listener have had headers that it reads for a Window
)

// conclude returns what the connections to listeners of a mode show. withHeader is how many to the port have a header.
func conclude(mode settings.Mode, s evidence.Summary, withHeader int, now time.Time) shown {
	switch {
	case s.MostlyMalformed(): // the mode is off
		return shown{headersOff, s.Malformed.First, s.Malformed.Addresses}
	case s.Refused.Count > evidence.FewConnections && withHeader == 0: // it is strict
		return shown{noHeaders, s.Refused.First, s.Refused.Addresses}
	case s.UntrustedHeaders.Count > evidence.FewUntrusted && withHeader == 0:
		return shown{untrusted, s.UntrustedHeaders.First, s.UntrustedHeaders.Addresses}
	case mode == settings.Permissive && s.WithHeader.Count > 0 && s.WithoutHeader.Count == 0 &&
		s.Untrusted.Count == 0 && // strict closes these
		now.Sub(s.WithHeader.First) >= evidence.Window:
		return shown{headersOnly, s.WithHeader.First, nil}
	}
	return shown{}
}

// checkConnections reads what is known now, if it is time. It logs which listeners can become strict, and sets the
// metric of that.
func (w *gatewayWorker) checkConnections() {
	c, now := &w.connections, time.Now()
	if c.source == nil || now.Before(c.next) {
		return
	}
	c.next, c.timer = now.Add(connectionsInterval), time.After(connectionsInterval)
	last := c.shown
	c.shown = map[evidence.PortMode]shown{}
	snapshot, all, withHeader := w.fullSnapshot(), c.source.Gateway(w.id), map[int]int{}
	for of, summary := range all {
		withHeader[of.Port] += summary.WithHeader.Count
	}
	for of, summary := range all {
		if !hasListener(snapshot, of) {
			continue
		}
		found := conclude(of.Mode, summary, withHeader[of.Port], now)
		if before := last[of]; before.conclusion == found.conclusion {
			found = before
		} else {
			logHeadersOnly(w.log.With("port", of.Port), before, found)
		}
		c.shown[of] = found
	}
	w.plane.options.Metrics.setHeadersOnly(w.id, c.shown)
}

// hasListener reports whether an instance has a listener with the mode on the port. While the mode is not known, it has
// none.
func hasListener(s *gateway.Snapshot, of evidence.PortMode) bool {
	if s.Entry == nil || !slices.ContainsFunc(s.Entry.Listeners, func(l gateway.Listener) bool { return l.Port == of.Port }) {
		return false
	}
	return slices.ContainsFunc(s.Instances, func(in *gateway.Instance) bool {
		l, _ := s.ListenerSettings(in, of.Port) // without a mode while that is not known
		return l.ProxyProtocol.Mode == of.Mode && !s.FollowsService(in, of.Port)
	})
}

// logHeadersOnly logs that a listener can become strict, or no longer.
func logHeadersOnly(log *slog.Logger, last, found shown) {
	switch {
	case found.conclusion == headersOnly:
		log.Info("every connection begins with a PROXY header, so proxy_protocol.mode can be strict", "since", found.since.UTC().Format(time.RFC3339))
	case last.conclusion == headersOnly:
		log.Info("there are connections without a PROXY header or from outside trusted_cidrs again, or none with a header; proxy_protocol.mode cannot be strict")
	}
}

// problems returns the problems of listeners whose connections do not agree with their modes.
func (c *connections) problems(id gateway.ID) []problem.Problem {
	var all []problem.Problem
	for of, s := range c.shown {
		severity := problem.Degraded
		since, from := s.since.UTC().Format(time.RFC3339), evidence.From(s.from)
		var what string
		switch s.conclusion {
		case headersOff:
			severity = problem.Outage
			what = fmt.Sprintf("its mode is off, and since %s most connections begin with what looks like a PROXY header%s: Envoy answers "+
				`400 or closes them; set usher.proxy_protocol.mode to "permissive", and later to "strict", or stop the headers at the load balancer`, since, from)
		case noHeaders:
			what = fmt.Sprintf("its mode is strict, and since %s it has closed each connection, because none begins with a PROXY header%s; switch "+
				`the headers on at the load balancer, and set usher.proxy_protocol.mode to "permissive" until it sends them; if these are health checks only, there is nothing to correct`, since, from)
		case untrusted:
			what = fmt.Sprintf("its mode is %s, and since %s PROXY headers come only from outside trusted_cidrs%s: %s; add the networks of the load "+
				"balancer to usher.proxy_protocol.trusted_cidrs", of.Mode, since, from, untrustedEffect(of.Mode))
		default:
			continue
		}
		all = append(all, problem.Problem{Where: "gateway " + id.String() + ": listener " + strconv.Itoa(of.Port), What: what, Severity: severity})
	}
	return all
}

// untrustedEffect says what happens to connections from outside trusted_cidrs that begin with a header.
func untrustedEffect(mode settings.Mode) string {
	if mode == settings.Strict {
		return "Envoy closes these connections"
	}
	return "Envoy ignores these headers, so the load balancer's address counts as the client's"
}
