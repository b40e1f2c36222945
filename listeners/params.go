package listeners

import (
	"errors"
	"fmt"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/usherproxy/usher/internal/accesslog"
	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// listenerParams is everything that the listeners of a port of one instance depend on, apart from their addresses.
type listenerParams struct {
	input    compileInput
	instance instance
	port     port
	settings settings.Listener
	logs     accesslog.Logs
	// untrustedRoutes are the route configurations for untrusted downstreams, by the name of those for all others.
	untrustedRoutes map[string]*routev3.RouteConfiguration
}

// errUnknown means that a part of a listener's input is not known. It is no problem by itself: another one reports
// that part, bad settings or an answer that cannot be read.
var errUnknown = errors.New("unknown")

func newListenerParams(input compileInput, in instance, p compiledPort) (listenerParams, []problem.Problem, error) {
	resolved, known := input.snapshot.ListenerSettings(in.registered, p.number)
	if !known {
		return listenerParams{}, nil, errUnknown
	}
	l := listenerParams{input: input, instance: in, port: p.port, settings: resolved, untrustedRoutes: p.untrustedRoutes}
	err := l.check()
	var staysOff []problem.Problem
	if err != nil && input.snapshot.OnlyTrusted(in.registered, p.number) {
		p := l.problemOf(err)
		p.What += "; until this is corrected, the listener stays off, and answers 400 to the PROXY headers that its load balancer sends"
		p.Severity = problem.Outage
		staysOff = append(staysOff, p)
		l.settings.ProxyProtocol.Mode = settings.Off
		err = l.check()
	}
	if err != nil {
		return listenerParams{}, nil, settingsError{l.problemOf(err)}
	}
	logs, problems := accesslog.Build(l.accessLog())
	l.logs = logs
	return l, slices.Concat(staysOff, problems, l.unreadableTLVs()), nil
}

// settingsError is an error of Usher's settings.
type settingsError struct{ problem problem.Problem }

func (e settingsError) Error() string { return e.problem.String() }

// problemOf returns the problem of settings that a listener or an Envoy refuses, where the setting is. If that has its
// default, the problem belongs to the listener.
func (l *listenerParams) problemOf(refused *settings.RefusedError) problem.Problem {
	p := problem.Problem{Where: fmt.Sprintf("gateway %s: listener %d", l.port.gateway, l.port.number), What: refused.Error()}
	if place := l.place(refused.Setting); !place.IsZero() {
		p = place.Problem(fmt.Sprintf("listener %d of gateway %s: %s", l.port.number, l.port.gateway, refused.Reason))
	}
	p.OfEnvoy = refused.OfEnvoy
	return p
}

// place returns where a setting of the listener is.
func (l *listenerParams) place(setting string) settings.Place {
	return l.input.snapshot.PlaceOf(l.instance.registered, l.port.number, setting)
}

// check returns why no listener can do what the settings ask for.
func (l *listenerParams) check() *settings.RefusedError {
	if refused := l.settings.Check(l.properties()); refused != nil {
		return refused
	}
	if refused := checkSupport(l.input.capabilities, l.settings, !l.port.http()); refused != nil {
		return refused
	}
	for _, tlv := range l.tlvs() {
		if accesslog.ReservedField(tlv.Name) {
			return refuse("proxy_protocol.tlvs", fmt.Sprintf("%q is the name of another field of the access log; use another name", tlv.Name))
		}
	}
	return nil
}

func refuse(setting, reason string) *settings.RefusedError {
	return &settings.RefusedError{Setting: setting, Reason: reason}
}

// tooOld is refuse for an Envoy that cannot do what the setting asks for: why, the release that can, and what to use instead.
func tooOld(setting, why, release, instead string) *settings.RefusedError {
	return &settings.RefusedError{Setting: setting, Reason: envoy.Requires(why, release, instead), OfEnvoy: true}
}

// properties are what the settings have to agree with.
func (l *listenerParams) properties() settings.ListenerProperties {
	balancer := l.input.snapshot.BalancerOf(l.instance.registered)
	return settings.ListenerProperties{
		TCP: !l.port.http(), TLS: l.hasTLS(),
		PreservesClientIP: balancer.PreservesClientIP, BalancerVersion: balancer.ForPort(l.port.number).ProxyVersion,
	}
}

// hasTLS reports whether clients begin with a TLS handshake.
func (l *listenerParams) hasTLS() bool {
	tls := l.input.snapshot.Entry.TLS.Override(l.port.listener.TLS)
	return tls.Enabled || tls.SDS != nil
}

// matchesServerName reports whether a service has its own certificate: the client's server name then chooses the
// filter chain.
func (l *listenerParams) matchesServerName() bool {
	return l.port.http() && slices.ContainsFunc(l.port.listener.Services, hasOwnCertificate)
}

// needsTLSInspector reports whether Envoy reads the server name before the TLS handshake. Otherwise it does not know
// the name. Filter chains may need it, as with Consul, and log formats or expressions may show it.
func (l *listenerParams) needsTLSInspector() bool {
	return l.matchesServerName() ||
		l.hasTLS() && l.settings.AccessLog.References("requested_server_name", "REQUESTED_SERVER_NAME", "requested_server_name")
}

// tlvs returns the TLVs to pass on. Without PROXY protocol there are none.
func (l *listenerParams) tlvs() []settings.TLV {
	if !l.settings.ProxyProtocol.Enabled() {
		return nil
	}
	return l.settings.ProxyProtocol.TLVs
}

// unreadableTLVs are the problems of TLVs that this Envoy is too old to read. They protect nothing, so the listener
// serves without them.
func (l *listenerParams) unreadableTLVs() []problem.Problem {
	var problems []problem.Problem
	for _, tlv := range l.tlvs() {
		if !canRead(l.input.capabilities, tlv) {
			refused := refuse("proxy_protocol.tlvs",
				fmt.Sprintf("%q is a number, which needs Envoy 1.39 or later; until this Envoy is upgraded, it is left out", tlv.Name))
			refused.OfEnvoy = true
			problems = append(problems, l.problemOf(refused))
		}
	}
	return problems
}

// accessLog is what the access logs depend on.
func (l *listenerParams) accessLog() accesslog.Params {
	proxy := l.settings.ProxyProtocol
	p := accesslog.Params{
		Consul:   l.instance.registered.AccessLogs,
		Settings: l.settings.AccessLog,
		Gateway:  l.port.gateway,
		Where:    l.port.where(),
		Place:    l.place, ConsulAt: l.instance.registered.AccessLogsAt,
		Envoy: l.input.capabilities,
		HTTP:  l.port.http(), TLS: l.hasTLS(), MatchesSNI: l.matchesServerName(), TLSInspector: l.needsTLSInspector(),
		ProxyProtocol: proxy.Enabled(), Strict: proxy.Mode == settings.Strict, HasUntrusted: hasUntrusted(proxy),
		ClientAddressKnown: proxy.Enabled() || l.settings.ClientAddress.IsCustom(),
	}
	for _, tlv := range l.tlvs() {
		p.TLVs = append(p.TLVs, tlv.Name)
	}
	p.Report = l.report()
	return p
}

// downstreams are the downstreams of a listener that a filter chain is for.
type downstreams struct {
	trust headerTrust
	// proxies means that the connection comes from an HTTP proxy in client_address.trusted_cidrs, by its address after a
	// PROXY header that counts. What its requests say about the client is believed.
	proxies bool
}

// headerTrust is whose PROXY headers count.
type headerTrust uint8

const (
	allHeaders       headerTrust = iota // everybody's, or there are none
	trustedHeaders                      // of proxy_protocol.trusted_cidrs
	untrustedHeaders                    // of all others: they do not count
)

// untrusted reports whether PROXY headers of the downstreams do not count. Then nothing that they say counts.
func (d downstreams) untrusted() bool { return d.trust == untrustedHeaders }

// servedDownstreams returns the downstreams that a listener serves, each with its own filter chains. Connections
// without a chain are closed.
func (l *listenerParams) servedDownstreams() (all []downstreams) {
	proxy, trust := l.settings.ProxyProtocol, allHeaders
	if hasUntrusted(proxy) {
		trust = trustedHeaders
	}
	if l.port.http() && len(l.settings.ClientAddress.TrustedCIDRs) > 0 {
		all = append(all, downstreams{trust: trust, proxies: true})
	}
	all = append(all, downstreams{trust: trust})
	if hasUntrusted(proxy) && proxy.Mode != settings.Strict {
		all = append(all, downstreams{trust: untrustedHeaders})
	}
	return all
}

// suffix makes the names of what is for untrusted downstreams different.
func (d downstreams) suffix() string {
	if d.untrusted() {
		return "_untrusted"
	}
	return ""
}

// canRead reports whether Envoy can read a TLV.
func canRead(can envoy.Capabilities, tlv settings.TLV) bool { return can.BinaryTLVs || !isNumber(tlv) }

// hasUntrusted reports whether the PROXY headers of some downstreams do not count.
func hasUntrusted(proxy settings.ProxyProtocol) bool { return proxy.Enabled() && !proxy.TrustsAll() }

// checkSupport returns an error for a setting that this Envoy is too old for and that cannot be left out: the
// listener would trust or accept more than it must.
func checkSupport(can envoy.Capabilities, p settings.Listener, tcp bool) *settings.RefusedError {
	proxy := p.ProxyProtocol
	readsTLVs := proxy.Enabled() && len(proxy.TLVs) > 0
	upstream := tcp && proxy.Upstream != settings.UpstreamNone
	byTLV := !tcp && p.ClientAddress.ForwardedProto.Type == settings.ForwardedProtoTLV
	byPort := !tcp && p.ClientAddress.ForwardedProto.Type == settings.ForwardedProtoPorts
	switch {
	case proxy.Mode == settings.Permissive && !can.OptionalProxyHeader:
		return tooOld("proxy_protocol.mode", `this Envoy would reject connections without a PROXY header in the mode "permissive"`,
			"1.23", `use "strict" if all connections have a header, or "off" if none has`)
	case proxy.Enabled() && len(proxy.Versions) < 2 && !can.DisallowedProxyVersions:
		return tooOld("proxy_protocol.versions", "this Envoy would accept both versions", "1.30", `use ["v1", "v2"]`)
	case upstream && proxy.Enabled() && !can.SurvivesLocal:
		return tooOld("proxy_protocol.upstream", "a health check with the command LOCAL crashes this Envoy (CVE-2024-23327)",
			"1.26.7, 1.27.3, 1.28.1, 1.29.1, 1.30", `use upstream "none"`)
	case upstream && hasUntrusted(proxy) && !can.Expressions:
		return tooOld("proxy_protocol.upstream", "this Envoy cannot drop forged PROXY headers of addresses outside trusted_cidrs, "+
			"so the service would believe them", "1.32", `use upstream "none" and disable PROXY protocol in the service`)
	case upstream && len(proxy.UpstreamTLVs) > 0 && !can.Expressions:
		return tooOld("proxy_protocol.upstream_tlvs", "this Envoy may lose them", "1.32", `use upstream_tlvs "none"`)
	case readsTLVs && !can.Expressions:
		return tooOld("proxy_protocol.tlvs", "this Envoy cannot pass them on", "1.32", `use tlvs "none"`)
	case byTLV && !can.Expressions:
		return tooOld("client_address.forwarded_proto", "this Envoy cannot read in a PROXY header whether the client uses TLS", "1.32", `use "connection"`)
	case byPort && !can.Expressions:
		return tooOld("client_address.forwarded_proto", "this Envoy cannot compare the port that the client connected to", "1.32", `use "connection"`)
	case !tcp && len(p.ClientAddress.TrustedCIDRs) > 0 && !can.TrustedProxies:
		return tooOld("client_address.trusted_cidrs", "this Envoy cannot compare the addresses in X-Forwarded-For", "1.33",
			"use trusted_hops where only the proxies can reach the gateway")
	case tcp || can.EarlyHeaderMutation:
		return nil
	case hasUntrusted(proxy):
		return tooOld("proxy_protocol.trusted_cidrs", "this Envoy reads X-Forwarded-For before Usher can remove what "+
			"addresses outside trusted_cidrs wrote there", "1.25", `disable the headers at the load balancer and use mode "off"`)
	case p.ClientAddress.XFF == settings.XFFOverwrite:
		return tooOld("client_address.xff", "this Envoy reads X-Forwarded-For before Usher can replace it",
			"1.25", `remove "overwrite"`)
	case rewritesProto(p.ClientAddress):
		return tooOld("client_address.forwarded_proto", "this Envoy reads X-Forwarded-Proto before Usher can change it",
			"1.25", "remove the setting")
	case p.ClientAddress.ForwardedPort != settings.ForwardedPortDefault:
		return tooOld("client_address.forwarded_port", "this Envoy cannot set X-Forwarded-Port",
			"1.25", `use "default"`)
	}
	return nil
}

// rewritesProto reports whether X-Forwarded-Proto has to be changed before Envoy reads it.
func rewritesProto(c settings.ClientAddress) bool {
	hops, by := c.TrustedHops.Uint32() > 0, c.ForwardedProto.Type
	return by == settings.ForwardedProtoTrust && !hops || by == settings.ForwardedProtoConnection && hops
}
