package loadbalancer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// text says what connections have shown, as the reason for the listener's mode now.
func (f *finding) text(now time.Time) string {
	switch {
	case f.Result == foundHeaders && !f.follows(now):
		return fmt.Sprintf("%d of %d connections in the %s before %s begin with what looks like a PROXY header%s",
			f.With, f.With+f.Without, minutes(evidence.Window), f.At.Format(time.RFC3339), evidence.From(f.Addresses))
	case f.Result == foundHeaders && f.HeadersUntil.IsZero():
		return "what looks like PROXY headers still comes, but no Envoy believes it: trusted_cidrs names no networks any more, or other settings do not " +
			"allow the mode permissive"
	case f.Result == foundHeaders:
		return "no connection since " + f.HeadersUntil.Format(time.RFC3339) + " begins with a PROXY header"
	case f.follows(now):
		return fmt.Sprintf("every connection since %s begins with a PROXY header", f.HeadersSince.Format(time.RFC3339))
	case f.Result == foundRefusals && f.HeadersUntil.IsZero():
		return fmt.Sprintf("%d of %d connections in the %s before %s were refused, because they began without a PROXY header%s",
			f.Without, f.With+f.Without, minutes(evidence.Window), f.At.Format(time.RFC3339), evidence.From(f.Addresses))
	case !f.HeadersUntil.IsZero():
		return fmt.Sprintf("connections come without the PROXY header that they had until %s%s",
			f.HeadersUntil.Format(time.RFC3339), evidence.From(f.Addresses))
	}
	return fmt.Sprintf("connections come without a PROXY header: %d of %d in the %s before %s%s",
		f.Without, f.With+f.Without, minutes(evidence.Window), f.At.Format(time.RFC3339), evidence.From(f.Addresses))
}

func minutes(d time.Duration) string { return strconv.Itoa(int(d.Minutes())) + " minutes" }

// contradiction returns the problem of a listener that is permissive because of its connections. Its text stays the
// same until the next result.
func (r *reconciler) contradiction(port int, l listenerState, now time.Time) problem.Problem {
	fix := "check that your cloud honours this on a load balancer of its type and class (docs/load-balancers.md), or switch it off"
	switch {
	case !l.Finding.HeadersUntil.IsZero():
		fix = "check the load balancer itself, which may have been changed without this Service"
	case l.Finding.With > 0:
		fix = "check every node of the load balancer; if these are clients that connect past it, set trusted_cidrs to its subnets, " +
			"so that other connections do not count"
	}
	return problem.Problem{
		Where: r.where(l.key),
		What: fmt.Sprintf("it switches PROXY headers on for listener %d, but %s; %s. Meanwhile the listener is permissive: it serves "+
			"these connections, with the connecting address as the client's. It becomes strict once all connections have had "+
			"headers for a while", port, l.Finding.text(now), fix),
	}
}

// unexplained returns the problem of a listener that is permissive to find out what refused connections are, to which none
// comes.
func (r *reconciler) unexplained(port int, l listenerState, now time.Time) problem.Problem {
	return problem.Problem{
		Where: r.where(l.key),
		What: fmt.Sprintf("listener %d is permissive: %s, and no connection has come since. So it is unknown whether the load balancer sends "+
			"headers, or whether these were clients that connect past it; make some requests through the load balancer. If they have headers, the "+
			"listener becomes strict after a while, and if not, another problem says so", port, l.Finding.text(now)),
	}
}

// believed returns the problem of a listener that believes headers of trusted_cidrs, though its Service switches none on. Its
// text stays the same until the next result.
func (r *reconciler) believed(port int, l listenerState, now time.Time) problem.Problem {
	return problem.Problem{
		Where: r.where(""),
		What: fmt.Sprintf("it switches no PROXY headers on for listener %d, but %s, and trusted_cidrs names these addresses; set the annotation "+
			"that your cloud reads (docs/load-balancers.md), or Usher's proxy_protocol.mode, or stop the headers at the load balancer. Meanwhile the "+
			"listener is permissive where trusted_cidrs is set: it believes headers from there only. It becomes off again once headers have been "+
			"missing for a while",
			port, l.Finding.text(now)),
	}
}

// where names the annotation, or, with key "", the Service.
func (r *reconciler) where(key string) string {
	return strings.TrimSuffix(r.id.String()+": "+key, ": ")
}

// sightingKey names what one problem is about.
type sightingKey struct {
	port int
	evidence.Type
}

// sighting is what connections showed when a problem about them began. The problem keeps these numbers: with the
// current ones it would be another problem every second.
type sighting struct {
	evidence.Tally
	at time.Time
	// isProblem is false if there may be nothing to correct, as with health checks from other addresses than the
	// load balancer's. Then it is only logged.
	isProblem  bool
	restricted bool // trusted_cidrs names networks
}

// updateSightings updates what problems are about. A problem begins with what its listener does now, and ends when that
// has changed or nothing was seen for a Window. It returns when the first of them ends by itself.
func (r *reconciler) updateSightings(now time.Time) (end time.Time) {
	for port, o := range r.observed {
		l, inService := r.state.Ports[port]
		if !inService {
			l = r.state.OtherPorts
		}
		mode, _ := l.mode(r.Grace, now)
		refuses := mode == settings.Strict && l.State == proxyOn && l.refusals(o)
		header := began(o.WithHeader)
		beside := header.After(o.Refused.First) && !header.After(o.Refused.Last)
		r.updateSighting(sightingKey{port, evidence.Refused}, refuses, beside, sighting{o.Refused, now, o.RefusedHeaderSenders, o.Restricted})
		r.updateSighting(sightingKey{port, evidence.Malformed}, mode == settings.Off, o.MostlyMalformed(), sighting{o.Malformed, now, true, o.Restricted})
		closesAll := mode == settings.Strict && o.WithHeader.Count+o.Refused.Count == 0
		r.updateSighting(sightingKey{port, evidence.Untrusted}, closesAll, o.Untrusted.Count > evidence.FewUntrusted, sighting{o.Untrusted, now, true, o.Restricted})
	}
	for key := range r.sightings {
		o := r.observed[key.port]
		last := map[evidence.Type]evidence.Tally{
			evidence.Refused: o.Refused, evidence.Malformed: o.Malformed, evidence.Untrusted: o.Untrusted,
		}[key.Type].Last
		if ends := last.Add(evidence.Window); end.IsZero() || ends.Before(end) {
			end = ends
		}
	}
	return end
}

// updateSighting adds a sighting if the listener does something that begins now, and removes it if it does not.
func (r *reconciler) updateSighting(key sightingKey, does, begins bool, s sighting) {
	_, known := r.sightings[key]
	switch {
	case !does || s.Count == 0:
		delete(r.sightings, key)
	case begins && !known:
		r.sightings[key] = s
		if !s.isProblem {
			r.Logger.Warn("connections without a PROXY header are refused, while others have one; they may be health checks, "+
				"or clients that connect past the load balancer",
				"service", r.id.Namespace+"/"+r.id.Name, "port", key.port, "from", s.Addresses)
		}
	}
}

// evidenceProblems returns the problems of what connections show. In a grace period, the load balancer may be late.
func (r *reconciler) evidenceProblems(now time.Time) []problem.Problem {
	var problems []problem.Problem
	for port, l := range r.state.Ports {
		f, unexplainedAt := l.Finding, l.unexplainedAt(r.observed[port], r.policy())
		switch {
		case f == nil || f.follows(now):
		case !unexplainedAt.IsZero() && !now.Before(unexplainedAt):
			problems = append(problems, r.unexplained(port, l, now))
		case f.Result == foundHeaders:
			problems = append(problems, r.believed(port, l, now))
		case f.Result == foundNone && !now.Before(l.Changed.Add(r.Grace)):
			problems = append(problems, r.contradiction(port, l, now))
		}
	}
	for key, s := range r.sightings {
		switch {
		case key.Type == evidence.Malformed:
			problems = append(problems, r.unexpectedHeaders(key.port, s))
		case key.Type == evidence.Untrusted:
			problems = append(problems, r.allUntrusted(key.port, s))
		case s.isProblem:
			problems = append(problems, r.refusal(key.port, s))
		}
	}
	slices.SortFunc(problems, func(a, b problem.Problem) int { return strings.Compare(a.String(), b.String()) })
	return problems
}

// refusal returns the problem of a strict listener that refuses some connections, while others have headers.
func (r *reconciler) refusal(port int, s sighting) problem.Problem {
	return problem.Problem{
		Where: r.where(r.state.Ports[port].key),
		What: fmt.Sprintf("listener %d is strict, and since %s it closes connections without a PROXY header%s, while others have one; "+
			"if these are clients that connect past the load balancer, such as from inside the cluster, let them use it; "+
			"if they are a part of the load balancer, correct that, or set Usher's proxy_protocol.mode to \"permissive\"; "+
			"with trusted_cidrs, Usher can tell them apart",
			port, s.at.UTC().Format(time.RFC3339), evidence.From(s.Addresses)),
	}
}

// unexpectedHeaders returns the problem of a listener that is off and gets what may be PROXY headers.
func (r *reconciler) unexpectedHeaders(port int, s sighting) problem.Problem {
	_, inService := r.state.Ports[port]
	fix := "set the annotation that your cloud reads (docs/load-balancers.md)"
	switch {
	case !inService:
		fix = fmt.Sprintf("give a port of the Service the targetPort %d, because none leads to this listener", port)
	case s.restricted:
		fix += ", and add their addresses to trusted_cidrs if it lacks them"
	default:
		fix += ", or name its subnets in trusted_cidrs, so that the listener becomes permissive for them"
	}
	return problem.Problem{
		Where: r.where(""), Severity: problem.Outage,
		What: fmt.Sprintf("listener %d is off, and since %s most connections begin with what looks like a PROXY header%s: Envoy answers "+
			"400 or closes them; if they are the load balancer's, %s, or set Usher's proxy_protocol.mode to \"permissive\" "+
			"and later to \"strict\", or stop the headers at the load balancer",
			port, s.at.UTC().Format(time.RFC3339), evidence.From(s.Addresses), fix),
	}
}

// allUntrusted returns the problem of a strict listener that closes all connections because of their addresses.
func (r *reconciler) allUntrusted(port int, s sighting) problem.Problem {
	return problem.Problem{
		Where: r.where(""), Severity: problem.Outage,
		What: fmt.Sprintf("listener %d is strict, and since %s all connections come from outside trusted_cidrs%s, so Envoy closes them; "+
			"add the load balancer's subnets (Envoy's access log has all addresses)", port, s.at.UTC().Format(time.RFC3339), evidence.From(s.Addresses)),
	}
}
