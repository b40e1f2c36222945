package listeners

import (
	"errors"
	"fmt"
	"slices"

	"github.com/usherproxy/usher/internal/accesslog"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// listening is everything that the listeners of a port of one instance follow
// from, apart from their addresses.
type listening struct {
	env    environment
	in     instance
	port   port
	policy settings.Listener
	logs   accesslog.Logs
}

// errUnknown means that a part of a listener's input is not known. A separate problem
// reports that part: bad settings, or a fact that the source cannot read.
var errUnknown = errors.New("what the listener follows from is not known")

func listeningOn(env environment, in instance, p port) (listening, []problem.Problem, error) {
	policy, known := env.snapshot.ListenerSettings(in.registered, p.number)
	if !known {
		return listening{}, nil, errUnknown
	}
	l := listening{env: env, in: in, port: p, policy: policy}
	if err := l.check(); err != nil {
		return listening{}, nil, err
	}
	logs, problems := accesslog.Build(l.accessLog())
	l.logs = logs
	return l, append(problems, l.tooOldFor()...), nil
}

// check says why no listener can do what the policy asks for.
func (l *listening) check() error {
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
func (l *listening) traffic() settings.ListenerProperties {
	balancer := l.env.snapshot.BalancerOf(l.in.registered)
	return settings.ListenerProperties{
		TCP: !l.port.http(), TLS: l.speaksTLS(),
		PreservesClientIP: balancer.PreservesClientIP, BalancerVersion: balancer.ForPort(l.port.number).ProxyVersion,
	}
}

// speaksTLS says whether clients begin with a TLS handshake.
func (l *listening) speaksTLS() bool {
	settings := mergeTLS(l.env.snapshot.Entry.TLS, l.port.listener.TLS)
	return settings.Enabled || settings.SDS != nil
}

// choosesByServerName says whether services have certificates of their own, so
// that a filter chain is chosen by the name that the client asks for.
func (l *listening) choosesByServerName() bool {
	return l.port.http() && slices.ContainsFunc(l.port.listener.Services, func(s gateway.ListenerService) bool { return ownCertificate(&s) })
}

// looksForServerName says whether Envoy looks at the beginning of a TLS handshake
// for the name that the client asks for, which it does not know otherwise: where
// it needs it, and where the operator's own formats ask for it. Consul's own
// listeners do the first alone.
func (l *listening) looksForServerName() bool {
	return l.choosesByServerName() ||
		l.speaksTLS() && l.policy.AccessLog.References("requested_server_name", "REQUESTED_SERVER_NAME", "requested_server_name")
}

// tlvs gives the TLVs that are told. Without PROXY protocol there are none.
func (l *listening) tlvs() []settings.TLV {
	if !l.policy.ProxyProtocol.Enabled() {
		return nil
	}
	return l.policy.ProxyProtocol.TLVs
}

// tooOldFor says what the policy asks for that this Envoy cannot tell, and that
// protects nothing: the listener does without it.
func (l *listening) tooOldFor() []problem.Problem {
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
func (l *listening) accessLog() accesslog.Params {
	proxy := l.policy.ProxyProtocol
	p := accesslog.Params{
		Consul:             l.in.registered.AccessLogs,
		Settings:           l.policy.AccessLog,
		Gateway:            l.port.gateway,
		Where:              l.port.where(),
		Envoy:              l.env.envoy,
		HTTP:               l.port.http(),
		TLS:                l.speaksTLS(),
		MatchesSNI:         l.choosesByServerName(),
		TLSInspector:       l.looksForServerName(),
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
type peers uint8

const (
	anybody   peers = iota // all of them, without a difference
	trusted                // those in trusted_cidrs
	untrusted              // all others: what their PROXY headers say is not believed
)

// served gives the peers that a listener serves, each with chains of its own.
// The others are closed: no chain is for them.
func (l *listening) served() []peers {
	switch p := l.policy.ProxyProtocol; {
	case !p.Enabled() || p.TrustsAll():
		return []peers{anybody}
	case p.Mode == settings.Strict:
		return []peers{trusted}
	default:
		return []peers{trusted, untrusted}
	}
}

// suffix tells names of what is for untrusted peers from the same for others.
func (w peers) suffix() string {
	if w == untrusted {
		return "_untrusted"
	}
	return ""
}
