package doctor

import (
	"fmt"
	"slices"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/probe"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// checkListener says what is wrong at the listener itself.
func checkListener(f *Facts, r *Report) {
	const check = "listener"
	if f.Listener.Facts == nil {
		return
	}
	if modes := f.Listener.Facts.Modes(); len(modes) > 1 {
		r.add(Finding{
			Check: check, Severity: problem.Degraded, What: f.Listener.Facts.Summary(),
			Remedy: Remedy{Text: "Run usher doctor for each address: it says which Envoy does not have what Usher sends."},
		})
	}
	for _, of := range f.Listener.Facts.Results {
		switch c := of.Conclusion; {
		case c.Finding == probe.NothingListens || c.Finding == probe.NoRoute:
			r.add(Finding{Check: check, Severity: problem.Outage, What: of.Meaning.Headline, Remedy: Remedy{Text: of.Meaning.Remedy}})
		case c.Mode == "" && c.Finding != probe.AddedHeader:
			r.add(Finding{
				Check: check, Severity: problem.Degraded, What: of.Meaning.Headline,
				Evidence: of.Meaning.Notes, Remedy: Remedy{Text: of.Meaning.Remedy},
			})
		}
	}
	probed, _ := f.probed()
	if sent := f.modeInForce(); sent != "" && probed.Conclusion.Mode != "" && probed.Conclusion.Mode != sent {
		r.add(Finding{
			Check: check, Severity: problem.Degraded,
			What:     fmt.Sprintf("Listener %d of gateway %q does not do what Usher sends: Usher sends the mode %s, and the mode is %s.", f.Port, f.gatewayName(), sent, probed.Conclusion.Mode),
			Evidence: []string{"the probe: " + probed.Meaning.Headline, "Usher's /status: " + f.listener() + " has the mode " + sent},
			Remedy: Remedy{
				Text:    "Check that the address is the gateway's own. If it is, its Envoy rejects the update, or another Envoy has the port.",
				Command: "usher status",
			},
		})
	}
}

// checkAgreement says whether the load balancer sends what the listener expects.
func checkAgreement(f *Facts, r *Report) {
	const check = "balancer and listener"
	t, mode := f.traffic(), f.mode()
	some := len(t.with) > 0
	switch {
	case len(t.refused) > 0:
		f.addRefused(check, t, r)
	case mode == string(settings.Off) && some:
		found := Finding{
			Check: check, Severity: problem.Outage,
			What:     fmt.Sprintf("The load balancer sends PROXY headers, and %s of gateway %q does not look for them. %s", f.listener(), f.gatewayName(), f.withHeaders()),
			Evidence: f.evidence(t.with, t.without),
			Remedy:   f.setMode("Let the listener accept them.", f.firstMode()),
		}
		if away := f.away(); len(away) > 0 && len(away) == len(f.registered()) {
			found.Evidence = append(found.Evidence, fmt.Sprintf("Usher's /status has no Envoy of gateway %q: Usher's settings do not reach the listener", f.Gateway))
			found.Remedy = f.moveToUsher(away[0])
		}
		r.add(found)
	case len(t.closed) > 0:
		f.addClosed(check, t, r)
	case mode == string(settings.Strict) && len(t.without) > 0:
		what, severity := "The load balancer sends no PROXY headers, and", problem.Outage
		if some {
			what, severity = "Some connections have no PROXY header, and", problem.Degraded
		}
		r.add(Finding{
			Check: check, Severity: severity,
			What:     fmt.Sprintf("%s %s of gateway %q is strict: it closes these connections without an answer.", what, f.listener(), f.gatewayName()),
			Evidence: f.evidence(t.without, t.with),
			Remedy:   f.setMode("Enable PROXY protocol at the load balancer. Until then, let the listener accept connections without a header.", string(settings.Permissive)),
		})
	case mode == string(settings.Permissive) && len(t.unreadable) > 0:
		f.addUnreadable(check, t, r)
	case len(t.few) > 0:
		r.add(Finding{
			Check: check, Severity: problem.Notice,
			What: fmt.Sprintf("Some connections to %s of gateway %q begin with something that the mode %s does not serve. They are too few to show what the load balancer sends: port scanners and health checks make such connections, too.",
				f.listener(), f.gatewayName(), mode),
			Evidence: f.evidence(t.few, t.with, t.without),
			Remedy: Remedy{Text: "Look up their addresses in the access log (downstream_direct_remote_address). If they are the load balancer's, " +
				"run usher doctor again while clients connect, or with --balancer HOST:PORT, the address of the load balancer."},
		})
	case mode != "" && (some || len(t.without) > 0):
		r.fine(check, fmt.Sprintf("the load balancer and %s agree: the mode is %s, and %s", f.listener(), mode, sends(t)))
	case len(t.stopped) > 0:
		r.fine(check, fmt.Sprintf("%s is %s; nothing shows whether the load balancer sends headers: it refuses the probe's header itself, or TLS hides the answer", f.listener(), mode))
	case mode == string(settings.Off):
		f.addOldErrors(check, r)
	case mode != "":
		r.fine(check, fmt.Sprintf("%s is %s; nothing shows whether the load balancer sends headers%s", f.listener(), mode, f.askBalancer()))
	}
}

// askBalancer is the hint that --balancer shows more, where it was not given.
func (f *Facts) askBalancer() string {
	if f.Balancer.Asked {
		return ", not even the probe through it"
	}
	return " (--balancer HOST:PORT asks it)"
}

// addClosed adds the finding that the probe's connections through the load balancer end without an answer, at a strict
// listener. If Envoy has served others, it may be because of the probe.
func (f *Facts) addClosed(check string, t traffic, r *Report) {
	finding := Finding{
		Check: check, Severity: problem.Outage,
		What: fmt.Sprintf("Every connection of the probe through the load balancer is closed without an answer, and %s of gateway %q is strict.",
			f.listener(), f.gatewayName()),
		Evidence: f.evidence(t.closed, t.trusted, t.untrusted),
		Remedy: Remedy{Text: "Probably trusted_cidrs lacks the addresses from which the load balancer connects: the access log has them in " +
			"downstream_direct_remote_address, and the reason in rejected. Otherwise the load balancer sends no PROXY headers, or has no healthy target."},
	}
	if len(t.trusted) > 0 {
		finding.Severity = problem.Notice
		finding.What += " Envoys serve other connections."
	}
	r.add(finding)
}

// addRefused adds the finding that the listener refuses the version of the headers.
func (f *Facts) addRefused(check string, t traffic, r *Report) {
	severity := problem.Degraded
	if len(t.with) == 0 && (len(t.without) == 0 || f.mode() == string(settings.Strict)) {
		severity = problem.Outage // nothing is served
	}
	r.add(Finding{
		Check: check, Severity: severity,
		What:     fmt.Sprintf("The load balancer sends PROXY headers of a version that %s of gateway %q does not accept: it refuses these connections.", f.listener(), f.gatewayName()),
		Evidence: f.evidence(t.refused, t.with, t.without), Remedy: f.bothVersions(),
	})
}

// bothVersions is the remedy that lets the listener accept both versions of PROXY protocol.
func (f *Facts) bothVersions() Remedy {
	return f.setting("Accept both versions.", fmt.Sprintf(`mode = %q versions = ["v1", "v2"]`, f.mode()))
}

// addUnreadable adds the finding that a permissive listener gets headers that it does not look for.
func (f *Facts) addUnreadable(check string, t traffic, r *Report) {
	remedy := Remedy{Text: "Look for clients that send a PROXY header themselves, or that speak TLS to a port without TLS."}
	probed, _ := f.probed()
	if len(probed.Conclusion.Versions) == 1 {
		remedy = f.bothVersions()
	}
	r.add(Finding{
		Check: check, Severity: problem.Degraded,
		What:     fmt.Sprintf("Listener %d of gateway %q answers 400 to connections that it cannot read: their PROXY header is not one that it looks for, or they are no HTTP.", f.Port, f.gatewayName()),
		Evidence: f.evidence(t.unreadable), Remedy: remedy,
	})
}

// addOldErrors adds what Envoy has counted earlier, which may have another cause.
func (f *Facts) addOldErrors(check string, r *Report) {
	n, line := f.total(unreadable)
	if n == 0 {
		r.fine(check, f.listener()+" is off; nothing shows that the load balancer sends headers (--balancer HOST:PORT asks it)")
		return
	}
	r.add(Finding{
		Check: check, Severity: problem.Notice,
		What:     fmt.Sprintf("Envoy has answered 400 to connections that it could not read. If the load balancer sends PROXY headers, they are the reason, because %s is off.", f.listener()),
		Evidence: f.evidence([]string{line}),
		Remedy:   Remedy{Text: "Run usher doctor again while clients connect, or with --balancer HOST:PORT, the address of the load balancer."},
	})
}

// evidence joins lines, after what the probe says of the listener.
func (f *Facts) evidence(lists ...[]string) []string {
	var all []string
	if r, ok := f.probed(); ok && r.Conclusion.Mode != "" {
		all = append(all, "the probe: "+r.Meaning.Headline)
	}
	return append(all, slices.Concat(lists...)...)
}

// withHeaders says what a header does to the listener, whose mode is off.
func (f *Facts) withHeaders() string {
	if r, ok := f.probed(); ok && r.Meaning.With != "" {
		return r.Meaning.With
	}
	return "Envoy answers 400, or closes the connection."
}

// firstMode is the mode that follows off.
func (f *Facts) firstMode() string {
	if r, ok := f.probed(); ok && r.Conclusion.SpeaksFirst {
		return string(settings.Strict)
	}
	return string(settings.Permissive)
}

func sends(t traffic) string {
	switch {
	case len(t.without) == 0:
		return "it sends PROXY headers"
	case len(t.with) == 0:
		return "it sends none"
	}
	return "connections come with headers and without"
}

// checkTrust says whether the load balancer is in trusted_cidrs.
func checkTrust(f *Facts, r *Report) {
	t := f.traffic()
	if len(t.untrusted) == 0 {
		return
	}
	severity := problem.Degraded
	if t.fewUntrusted { // a port scanner, a health check or usher probe
		severity = problem.Notice
	}
	r.add(Finding{
		Check: "trusted_cidrs", Severity: severity,
		What: fmt.Sprintf("Connections to %s of gateway %q come from addresses that are not in trusted_cidrs: a permissive listener ignores their headers, and a strict one closes them.",
			f.listener(), f.gatewayName()),
		Evidence: f.evidence(t.untrusted),
		Remedy: Remedy{Text: "If these are load balancers, add their networks to trusted_cidrs. The access log has their addresses in " +
			"downstream_direct_remote_address; the field rejected says why a connection was closed."},
	})
}

// checkStrict says whether a permissive listener can be strict.
func checkStrict(f *Facts, r *Report) {
	const check = "strict"
	if f.mode() != string(settings.Permissive) {
		return
	}
	t := f.traffic()
	without, line := f.total(served)
	switch {
	case len(t.without) > 0 && len(t.with)+len(t.refused) > 0:
		r.add(Finding{
			Check: check, Severity: problem.Notice,
			What:     fmt.Sprintf("The mode strict would close connections to %s: some have no PROXY header.", f.listener()),
			Evidence: f.evidence(t.without, t.with, t.refused),
			Remedy:   Remedy{Text: "Find out who connects without one: in the access log, downstream_direct_remote_address is then the same as downstream_remote_address."},
		})
	case len(t.without) > 0:
		r.add(Finding{
			Check: check, Severity: problem.Notice,
			What:     fmt.Sprintf("The load balancer sends no PROXY headers to %s: logs and services see its address in place of the client's.", f.listener()),
			Evidence: f.evidence(t.without),
			Remedy:   Remedy{Text: "Enable PROXY protocol at the load balancer: docs/client-address.md."},
		})
	case f.headersOnly() && f.unreported() != "":
		r.fine(check, fmt.Sprintf("%s is permissive, and connections to it begin with headers, as far as this Usher's Envoys report; not known to be safe for strict: %s", f.listener(), f.unreported()))
	case f.headersOnly():
		r.add(Finding{
			Check: check, Severity: problem.Notice,
			What: fmt.Sprintf("Listener %d of gateway %q can be strict: for ten minutes all connections have begun with a PROXY header, as far as this Usher's Envoys report.",
				f.Port, f.gatewayName()),
			Evidence: []string{fmt.Sprintf("Usher's metric: usher_listener_headers_only{gateway=%q, port=\"%d\"} 1", f.Gateway, f.Port)},
			Remedy:   f.setMode("Let the listener accept connections with a header only.", string(settings.Strict)),
		})
	case without > 0:
		r.fine(check, f.listener()+" is permissive, and has served connections without a header; not yet safe for strict ("+line+")")
	default:
		r.fine(check, f.listener()+" is permissive; strict is safe when usher_listener_headers_only of Usher is 1, after ten minutes with headers only")
	}
}

// headersOnly reports whether all connections to the listener have had a header for ten minutes.
func (f *Facts) headersOnly() bool {
	return f.Usher.Facts != nil && f.Usher.Facts.HeadersOnly[GatewayPort{f.Gateway.String(), f.Port}]
}

// unreported says whose connections Usher may not know; empty if it knows those of all instances.
func (f *Facts) unreported() string {
	c := f.Consul.Facts
	switch {
	case c == nil || c.Entry == nil || len(c.Instances) == 0:
		return "Consul has not said which instances there are"
	case slices.ContainsFunc(c.Missing, func(m consul.MissingPermission) bool { return !m.Optional }):
		return "the token may not read all instances"
	case len(f.away()) > 0:
		return "this Usher does not serve the instances " + quoted(f.away())
	case f.modeInForce() != string(settings.Permissive):
		return "Usher does not send the mode permissive to all of them"
	}
	return ""
}
