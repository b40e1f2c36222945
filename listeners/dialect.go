package listeners

import (
	"fmt"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// dialect says how to speak to an Envoy of some release. An Envoy drops a field
// that it does not know from a dynamic resource and reports success, so a field
// that matters has to be left out, or replaced, by whoever knows the release.
// Equal dialects get equal bytes. The zero value is that of Envoy 1.22, the
// oldest that Consul 1.15 supports.
type dialect struct {
	// optionalProxy: the PROXY filter can take connections without a header
	// (ProxyProtocol.allow_requests_without_proxy_protocol).
	optionalProxy bool
	// sumOfWeights: weighted clusters need no total (WeightedCluster.total_weight).
	sumOfWeights bool
	// appendAction: HeaderValueOption.append_action works; before, append does.
	appendAction bool
	// defaultRegexEngine: RegexMatcher works without google_re2.
	defaultRegexEngine bool
	// earlyHeaders: the request's headers can be changed before Envoy looks at
	// them (HttpConnectionManager.early_header_mutation_extensions).
	earlyHeaders bool
	// survivesLocal: a PROXY header with the command LOCAL is no crash where a
	// cluster sends PROXY headers, too (CVE-2024-23327).
	survivesLocal bool
	// proxyVersions: the PROXY filter can refuse a version
	// (ProxyProtocol.disallowed_versions).
	proxyVersions bool
	// proxyStatPrefix: ProxyProtocol.stat_prefix.
	proxyStatPrefix bool
	// expressions: a network filter can put the value of an expression into filter
	// state (set_filter_state with skip_if_empty, and the operator CEL).
	expressions bool
	// directLocal: the operators DOWNSTREAM_DIRECT_LOCAL_ADDRESS and the like.
	directLocal bool
	// binaryTLVs: a TLV can be kept in base64
	// (ProxyProtocol.KeyValuePair.value_string_encoding).
	binaryTLVs bool
	// masks: the operators of addresses can give the network of an address.
	masks bool
	// logLimits: entries of a log can be limited by a token bucket.
	logLimits bool
	// operators: the minor release up to which the operators of log formats are
	// known. Releases with the same operators have the same number.
	operators uint32
}

// dialectOf is the table of what came with which release, from the version
// history (https://www.envoyproxy.io/docs/envoy/latest/version_history/version_history)
// and from trials.
func dialectOf(e gateway.EnvoyVersion) dialect {
	return dialect{
		optionalProxy: e.AtLeast(1, 23),
		sumOfWeights:  e.AtLeast(1, 23),
		appendAction:  e.AtLeast(1, 24),
		// The engine is optional since 1.23, but 1.23 and 1.24 crash without it.
		defaultRegexEngine: e.AtLeast(1, 25),
		earlyHeaders:       e.AtLeast(1, 25),
		survivesLocal:      survivesLocal(e),
		proxyVersions:      e.AtLeast(1, 30),
		proxyStatPrefix:    e.AtLeast(1, 31),
		// There in earlier ones, too; tried from here on.
		expressions: e.AtLeast(1, 32),
		directLocal: e.AtLeast(1, 36),
		binaryTLVs:  e.AtLeast(1, 39),
		masks:       e.AtLeast(1, masksSince),
		logLimits:   e.AtLeast(1, 37),
		operators:   operatorsOf(e),
	}
}

// survivesLocal says whether a release has the fix of CVE-2024-23327: 1.26.7,
// 1.27.3, 1.28.1 and 1.29.1 were the first.
func survivesLocal(e gateway.EnvoyVersion) bool {
	fixed := map[uint32]uint32{26: 7, 27: 3, 28: 1, 29: 1}
	if e.AtLeast(1, 30) {
		return true
	}
	patch, known := fixed[e.Minor]
	return known && e.Patch >= patch
}

// tells says whether what a TLV means can be told.
func (d dialect) tells(tlv settings.TLV) bool { return d.binaryTLVs || !isNumber(tlv) }

// supports says what a policy needs that the Envoy does not have, and that
// cannot be left out: the listener would believe what it must not, or take what
// it must refuse.
func (d dialect) supports(p settings.Listener, tcp bool) error {
	proxy := p.ProxyProtocol
	limited := proxy.Enabled() && !proxy.TrustsAll()
	told := proxy.Enabled() && len(proxy.TLVs) > 0
	upstream := tcp && proxy.Upstream != settings.UpstreamNone
	byPort := !tcp && p.ClientAddress.ForwardedProto.Type == settings.ForwardedProtoPorts
	switch {
	case proxy.Mode == settings.Permissive && !d.optionalProxy:
		return needs("proxy_protocol.mode", `with "permissive", this one would refuse plain connections`, "1.23", `use "strict" or "off"`)
	case proxy.Enabled() && len(proxy.Versions) < 2 && !d.proxyVersions:
		return needs("proxy_protocol.versions", "this one would take both", "1.30", `use ["v1", "v2"]`)
	case upstream && proxy.Enabled() && !d.survivesLocal:
		return needs("proxy_protocol.upstream", "a health check with the command LOCAL ends this one (CVE-2024-23327)", "1.26.7, 1.27.3, 1.28.1, 1.29.1, 1.30", `use upstream "none"`)
	case upstream && limited && !d.expressions:
		return needs("proxy_protocol.upstream", "this one would tell the service what an untrusted peer claims", "1.32", `use trusted_cidrs "any"`)
	case told && !d.expressions:
		return needs("proxy_protocol.tlvs", "this one cannot tell them", "1.32", `use tlvs "none"`)
	case byPort && !d.expressions:
		return needs("client_address.forwarded_proto", "this one cannot look at the port", "1.32", `use "connection"`)
	case !tcp && !d.earlyHeaders && (limited || rewrites(p.ClientAddress)):
		return needs("client_address", "this one cannot change the headers that clients send in time", "1.25", `use the initial values, and trusted_cidrs "any"`)
	}
	return nil
}

// rewrites says whether headers have to be changed before Envoy looks at them.
func rewrites(c settings.ClientAddress) bool {
	hops, by := c.TrustedHops.Uint32() > 0, c.ForwardedProto.Type
	return c.XFF == settings.XFFOverwrite || by == settings.ForwardedProtoTrust && !hops || by == settings.ForwardedProtoConnection && hops
}

func needs(key, why, release, instead string) error {
	return fmt.Errorf("usher.%s: %s; this needs Envoy %s or later: upgrade Envoy, or %s", key, why, release, instead)
}
