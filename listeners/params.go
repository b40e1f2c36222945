package listeners

import (
	"errors"
	"fmt"
	"slices"

	"github.com/usherproxy/usher/internal/accesslog"
	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// listening is everything that the listeners of a port of one instance follow
// from, apart from their addresses.
type listenerParams struct {
	env      environment
	instance instance
	port     port
	policy   settings.Listener
	logs     accesslog.Logs
}

// errUnknown means that a part of a listener's input is not known. A separate problem
// reports that part: bad settings, or a fact that the source cannot read.
var errUnknown = errors.New("what the listener follows from is not known")

func newListenerParams(env environment, in instance, p port) (listenerParams, []problem.Problem, error) {
	policy, known := env.snapshot.ListenerSettings(in.registered, p.number)
	if !known {
		return listenerParams{}, nil, errUnknown
	}
	l := listenerParams{env: env, instance: in, port: p, policy: policy}
	if err := l.check(); err != nil {
		return listenerParams{}, nil, err
	}
	logs, problems := accesslog.Build(l.accessLog())
	l.logs = logs
	return l, append(problems, l.unreadableTLVs()...), nil
}

// check says why no listener can do what the policy asks for.
func (l *listenerParams) check() error {
	if err := l.policy.Check(l.traffic()); err != nil {
		return err
	}
	if err := checkSupport(l.env.envoy, l.policy, !l.port.http()); err != nil {
		return err
	}
	for _, tlv := range l.tlvs() {
		if accesslog.ReservedField(tlv.Name) {
			return fmt.Errorf("usher.proxy_protocol.tlvs: the access log has something else under %q; use another name", tlv.Name)
		}
	}
	return nil
}

// traffic is what the policy has to agree with.
func (l *listenerParams) traffic() settings.ListenerProperties {
	balancer := l.env.snapshot.BalancerOf(l.instance.registered)
	return settings.ListenerProperties{
		TCP: !l.port.http(), TLS: l.hasTLS(),
		PreservesClientIP: balancer.PreservesClientIP, BalancerVersion: balancer.ForPort(l.port.number).ProxyVersion,
	}
}

// speaksTLS says whether clients begin with a TLS handshake.
func (l *listenerParams) hasTLS() bool {
	settings := mergeTLS(l.env.snapshot.Entry.TLS, l.port.listener.TLS)
	return settings.Enabled || settings.SDS != nil
}

// choosesByServerName says whether services have certificates of their own, so
// that a filter chain is chosen by the name that the client asks for.
func (l *listenerParams) matchesServerName() bool {
	return l.port.http() && slices.ContainsFunc(l.port.listener.Services, func(s gateway.ListenerService) bool { return hasOwnCertificate(&s) })
}

// looksForServerName says whether Envoy looks at the beginning of a TLS handshake
// for the name that the client asks for, which it does not know otherwise: where
// it needs it, and where the operator's own formats ask for it. Consul's own
// listeners do the first alone.
func (l *listenerParams) needsTLSInspector() bool {
	return l.matchesServerName() ||
		l.hasTLS() && l.policy.AccessLog.References("requested_server_name", "REQUESTED_SERVER_NAME", "requested_server_name")
}

// tlvs gives the TLVs that are told. Without PROXY protocol there are none.
func (l *listenerParams) tlvs() []settings.TLV {
	if !l.policy.ProxyProtocol.Enabled() {
		return nil
	}
	return l.policy.ProxyProtocol.TLVs
}

// tooOldFor says what the policy asks for that this Envoy cannot tell, and that
// protects nothing: the listener does without it.
func (l *listenerParams) unreadableTLVs() []problem.Problem {
	var problems []problem.Problem
	for _, tlv := range l.tlvs() {
		if !canRead(l.env.envoy, tlv) {
			problems = append(problems, problem.Problem{
				Where: l.port.where(),
				What:  fmt.Sprintf("usher.proxy_protocol.tlvs: %q is a number, which needs Envoy 1.39 or later; until this one is upgraded, nothing is told of it", tlv.Name),
			})
		}
	}
	return problems
}

// accessLog is what the access logs depend on.
func (l *listenerParams) accessLog() accesslog.Params {
	proxy := l.policy.ProxyProtocol
	p := accesslog.Params{
		Consul:             l.instance.registered.AccessLogs,
		Settings:           l.policy.AccessLog,
		Gateway:            l.port.gateway,
		Where:              l.port.where(),
		Envoy:              l.env.envoy,
		HTTP:               l.port.http(),
		TLS:                l.hasTLS(),
		MatchesSNI:         l.matchesServerName(),
		TLSInspector:       l.needsTLSInspector(),
		ProxyProtocol:      proxy.Enabled(),
		Strict:             proxy.Mode == settings.Strict,
		HasUntrusted:       proxy.Enabled() && !proxy.TrustsAll(),
		ClientAddressKnown: proxy.Enabled() || l.policy.ClientAddress.IsCustom(),
	}
	for _, tlv := range l.tlvs() {
		p.TLVs = append(p.TLVs, tlv.Name)
	}
	return p
}

// peers are those of a listener's peers that a filter chain is for.
type downstreams uint8

const (
	allDownstreams       downstreams = iota // all of them, without a difference
	trustedDownstreams                      // those in trusted_cidrs
	untrustedDownstreams                    // all others: what their PROXY headers say is not believed
)

// served gives the peers that a listener serves, each with chains of its own.
// The others are closed: no chain is for them.
func (l *listenerParams) servedDownstreams() []downstreams {
	switch p := l.policy.ProxyProtocol; {
	case !p.Enabled() || p.TrustsAll():
		return []downstreams{allDownstreams}
	case p.Mode == settings.Strict:
		return []downstreams{trustedDownstreams}
	default:
		return []downstreams{trustedDownstreams, untrustedDownstreams}
	}
}

// suffix tells names of what is for untrusted peers from the same for others.
func (w downstreams) suffix() string {
	if w == untrustedDownstreams {
		return "_untrusted"
	}
	return ""
}

// tells says whether what a TLV means can be told.
func canRead(can envoy.Capabilities, tlv settings.TLV) bool { return can.BinaryTLVs || !isNumber(tlv) }

// supports says what a policy needs that the Envoy does not have, and that
// cannot be left out: the listener would believe what it must not, or take what
// it must refuse.
func checkSupport(can envoy.Capabilities, p settings.Listener, tcp bool) error {
	proxy := p.ProxyProtocol
	limited := proxy.Enabled() && !proxy.TrustsAll()
	told := proxy.Enabled() && len(proxy.TLVs) > 0
	upstream := tcp && proxy.Upstream != settings.UpstreamNone
	byPort := !tcp && p.ClientAddress.ForwardedProto.Type == settings.ForwardedProtoPorts
	switch {
	case proxy.Mode == settings.Permissive && !can.OptionalProxyHeader:
		return envoy.Requires("proxy_protocol.mode", `with "permissive", this one would refuse plain connections`, "1.23", `use "strict" or "off"`)
	case proxy.Enabled() && len(proxy.Versions) < 2 && !can.DisallowedProxyVersions:
		return envoy.Requires("proxy_protocol.versions", "this one would take both", "1.30", `use ["v1", "v2"]`)
	case upstream && proxy.Enabled() && !can.SurvivesLocal:
		return envoy.Requires("proxy_protocol.upstream", "a health check with the command LOCAL ends this one (CVE-2024-23327)", "1.26.7, 1.27.3, 1.28.1, 1.29.1, 1.30", `use upstream "none"`)
	case upstream && limited && !can.Expressions:
		return envoy.Requires("proxy_protocol.upstream", "this one would tell the service what an untrusted peer claims", "1.32", `use trusted_cidrs "any"`)
	case told && !can.Expressions:
		return envoy.Requires("proxy_protocol.tlvs", "this one cannot tell them", "1.32", `use tlvs "none"`)
	case byPort && !can.Expressions:
		return envoy.Requires("client_address.forwarded_proto", "this one cannot look at the port", "1.32", `use "connection"`)
	case !tcp && !can.EarlyHeaderMutation && (limited || rewrites(p.ClientAddress)):
		return envoy.Requires("client_address", "this one cannot change the headers that clients send in time", "1.25", `use the initial values, and trusted_cidrs "any"`)
	}
	return nil
}

// rewrites says whether headers have to be changed before Envoy looks at them.
func rewrites(c settings.ClientAddress) bool {
	hops, by := c.TrustedHops.Uint32() > 0, c.ForwardedProto.Type
	return c.XFF == settings.XFFOverwrite || by == settings.ForwardedProtoTrust && !hops || by == settings.ForwardedProtoConnection && hops
}
