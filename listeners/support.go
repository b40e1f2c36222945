package listeners

import (
	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/settings"
)

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
