package listeners

import "github.com/usherproxy/usher/gateway"

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
	// proxyStatPrefix: ProxyProtocol.stat_prefix.
	proxyStatPrefix bool
}

// dialectOf is the table of what came with which release, from the version
// history (https://www.envoyproxy.io/docs/envoy/latest/version_history/version_history).
func dialectOf(e gateway.Envoy) dialect {
	return dialect{
		optionalProxy: e.AtLeast(1, 23),
		sumOfWeights:  e.AtLeast(1, 23),
		appendAction:  e.AtLeast(1, 24),
		// The engine is optional since 1.23, but 1.23 and 1.24 crash without it.
		defaultRegexEngine: e.AtLeast(1, 25),
		proxyStatPrefix:    e.AtLeast(1, 31),
	}
}
