package envoy

import (
	"fmt"

	"github.com/usherproxy/usher/internal/gateway"
)

// Capabilities are what a release of Envoy can do. Envoy drops an unknown field of a dynamic resource and reports
// success, so a field that matters has to be left out, or replaced, before it is sent. Releases with equal
// capabilities get equal bytes. The zero value is Envoy 1.22, the oldest release that Consul 1.15 supports.
type Capabilities struct {
	OptionalProxyHeader     bool // ProxyProtocol.allow_requests_without_proxy_protocol
	SumsWeights             bool // WeightedCluster needs no total_weight
	AppendAction            bool // HeaderValueOption.append_action replaces append
	DefaultRegexEngine      bool // RegexMatcher needs no google_re2
	EarlyHeaderMutation     bool // HttpConnectionManager.early_header_mutation_extensions
	DisallowedProxyVersions bool // ProxyProtocol.disallowed_versions
	ProxyStatPrefix         bool // ProxyProtocol.stat_prefix
	BinaryTLVs              bool // ProxyProtocol.KeyValuePair.value_string_encoding
	AddressMasks            bool // the log operators of addresses can show a network
	LogRateLimit            bool // a token bucket can limit a log
	// SurvivesLocal: a PROXY header with the command LOCAL does not crash an Envoy whose cluster sends PROXY headers
	// (CVE-2024-23327).
	SurvivesLocal bool
	// TrustedProxies: the extension xff compares the addresses in X-Forwarded-For with networks, and adds no private networks to them.
	TrustedProxies bool
	// Expressions: the network filter set_filter_state with skip_if_empty, the log operator CEL and the access log
	// filter of the same language.
	Expressions bool
	// LogOperators is the minor release whose log operators the Envoy has. Releases with the same operators have the
	// same number.
	LogOperators uint32
	// MoreOperators: the Envoy may have operators that are not known here.
	MoreOperators bool
}

// CapabilitiesOf returns what a release can do, by Envoy's version history
// (https://www.envoyproxy.io/docs/envoy/latest/version_history/version_history) and by trials; docs/access-logs.md
// says which releases were tried.
func CapabilitiesOf(v gateway.EnvoyVersion) Capabilities {
	return Capabilities{
		OptionalProxyHeader: v.AtLeast(1, 23),
		SumsWeights:         v.AtLeast(1, 23),
		AppendAction:        v.AtLeast(1, 24),
		// The engine is optional since 1.23, but 1.23 and 1.24 crash without it.
		DefaultRegexEngine:      v.AtLeast(1, 25),
		EarlyHeaderMutation:     v.AtLeast(1, 25),
		SurvivesLocal:           survivesLocal(v),
		DisallowedProxyVersions: v.AtLeast(1, 30),
		ProxyStatPrefix:         v.AtLeast(1, 31),
		// Earlier releases have expressions, too, but not all that is used here.
		Expressions: v.AtLeast(1, 32),
		// 1.32 has networks, too, but also skips private addresses.
		TrustedProxies: v.AtLeast(1, 33),
		BinaryTLVs:     v.AtLeast(1, 39),
		AddressMasks:   v.AtLeast(1, 38),
		LogRateLimit:   v.AtLeast(1, 37),
		LogOperators:   newest(v, 40, 39, 38, 37, 36, 32, 22),

		MoreOperators: v.AtLeast(1, 41),
	}
}

// newest returns the first of some minor releases that v has reached, or 0.
func newest(v gateway.EnvoyVersion, minors ...uint32) uint32 {
	for _, minor := range minors {
		if v.AtLeast(1, minor) {
			return minor
		}
	}
	return 0
}

// survivesLocal reports whether a release has the fix of CVE-2024-23327, which came with 1.26.7, 1.27.3, 1.28.1 and
// 1.29.1.
func survivesLocal(v gateway.EnvoyVersion) bool {
	if v.AtLeast(1, 30) {
		return true
	}
	patch, fixed := map[uint32]uint32{26: 7, 27: 3, 28: 1, 29: 1}[v.Minor]
	return fixed && v.Patch >= patch
}

// Requires is the reason of a setting that needs a newer Envoy: why this one cannot do it, the release that can, and
// what to use instead.
func Requires(why, release, instead string) string {
	return fmt.Sprintf("%s; this needs Envoy %s or later: upgrade Envoy, or %s", why, release, instead)
}
