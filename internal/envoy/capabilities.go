package envoy

import (
	"fmt"

	"github.com/usherproxy/usher/internal/gateway"
)

// Capabilities are what a release of Envoy can do. Envoy drops an unknown field of a dynamic resource and reports
// success, so a field that matters has to be left out, or replaced, before it is sent. Releases with equal
// capabilities get equal bytes. The zero value is Envoy 1.22, the oldest release that Consul 1.15 supports.
type Capabilities struct {
	// OptionalProxyHeader: ProxyProtocol.allow_requests_without_proxy_protocol.
	OptionalProxyHeader bool
	// SumsWeights: WeightedCluster needs no total_weight.
	SumsWeights bool
	// AppendAction: HeaderValueOption.append_action replaces append.
	AppendAction bool
	// DefaultRegexEngine: RegexMatcher needs no google_re2.
	DefaultRegexEngine bool
	// EarlyHeaderMutation: HttpConnectionManager.early_header_mutation_extensions.
	EarlyHeaderMutation bool
	// SurvivesLocal: a PROXY header with the command LOCAL does not crash an Envoy whose cluster sends PROXY headers
	// (CVE-2024-23327).
	SurvivesLocal bool
	// DisallowedProxyVersions: ProxyProtocol.disallowed_versions.
	DisallowedProxyVersions bool
	// ProxyStatPrefix: ProxyProtocol.stat_prefix.
	ProxyStatPrefix bool
	// Expressions: the network filter set_filter_state with skip_if_empty, the log operator CEL and the access log
	// filter of the same language.
	Expressions bool
	// BinaryTLVs: ProxyProtocol.KeyValuePair.value_string_encoding.
	BinaryTLVs bool
	// AddressMasks: the log operators of addresses can show a network.
	AddressMasks bool
	// LogRateLimit: a token bucket can limit a log.
	LogRateLimit bool
	// LogOperators is the minor release whose log operators the Envoy has. Releases with the same operators have the
	// same number.
	LogOperators uint32
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
		Expressions:  v.AtLeast(1, 32),
		BinaryTLVs:   v.AtLeast(1, 39),
		AddressMasks: v.AtLeast(1, 38),
		LogRateLimit: v.AtLeast(1, 37),
		LogOperators: newest(v, 22, 32, 36, 37, 38, 39, 40),
	}
}

// newest returns the newest of some minor releases that is not newer than v.
func newest(v gateway.EnvoyVersion, minors ...uint32) uint32 {
	var newest uint32
	for _, minor := range minors {
		if v.AtLeast(1, minor) {
			newest = max(newest, minor)
		}
	}
	return newest
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

// Requires is the error of a setting that needs a newer Envoy: why this one cannot do it, the release that can, and
// what to use instead.
func Requires(setting, why, release, instead string) error {
	return fmt.Errorf("usher.%s: %s; this needs Envoy %s or later: upgrade Envoy, or %s", setting, why, release, instead)
}
