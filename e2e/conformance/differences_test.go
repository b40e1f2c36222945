//go:build e2e

package conformance

import (
	"fmt"
	"slices"
	"strings"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/e2e/lab"
)

// allowance is a difference that is meant: one field of one type, and why.
type allowance struct {
	typeURL  string
	path     string   // as difference.Path
	consul   string   // what Consul writes where it is allowed; "" for anything
	usher    string   // what Usher writes; "" for anything
	versions []string // of the Consuls that it concerns; none for all
	peered   bool     // only cases with a cluster peer need it
	reason   string
}

// allows reports whether a difference is the one that is meant.
func (a allowance) allows(d difference) bool {
	return a.typeURL == d.TypeURL && a.path == d.Path &&
		(a.consul == "" || a.consul == d.Before) && (a.usher == "" || a.usher == d.After)
}

// concerns reports whether it is about a version of Consul.
func (a allowance) concerns(version string) bool {
	return len(a.versions) == 0 || slices.Contains(a.versions, version)
}

// olderConsuls are those that lack what the newest has.
var olderConsuls = []string{lab.ConsulBetween, lab.ConsulOld}

// allowed are all differences that are meant. One that no case needs fails.
var allowed = []allowance{
	{
		typeURL:  resource.ClusterType,
		path:     "outlier_detection.max_ejection_percent",
		consul:   "0",
		versions: []string{lab.ConsulNew, lab.ConsulBetween},
		reason: "A PassiveHealthCheck without MaxEjectionPercent: Consul's servers read it as 0, which lets Envoy eject nothing and so " +
			"switches the check off; Consul's client agents leave it to Envoy, and so does Usher.",
	},
	{
		typeURL:  resource.ListenerType,
		path:     "filter_chains[].filters[].typed_config.upgrade_configs",
		consul:   "absent",
		usher:    `[{"upgrade_type":"websocket"}]`,
		versions: []string{lab.ConsulOld},
		reason:   "Consul 1.15 lets no WebSocket through a gateway; Consul 1.22 and Usher do.",
	},
	{
		typeURL:  resource.ListenerType,
		path:     "filter_chains[].filters[].typed_config.max_request_headers_kb",
		consul:   "absent",
		versions: olderConsuls,
		reason:   "Consul before 1.22 does not know the key max_request_headers_kb at a gateway.",
	},
	{
		typeURL:  resource.ListenerType,
		path:     "filter_chains[].filters[].typed_config.rds.config_source.initial_fetch_timeout",
		consul:   "absent",
		versions: []string{lab.ConsulOld},
		reason:   "Consul 1.15 does not know the key xds_fetch_timeout_ms.",
	},
	{
		typeURL:  resource.ClusterType,
		path:     "eds_cluster_config.eds_config.initial_fetch_timeout",
		consul:   "absent",
		versions: []string{lab.ConsulOld},
		reason:   "As for the listener: the same key.",
	},
	{
		typeURL:  resource.RouteType,
		path:     "validate_clusters",
		consul:   "true",
		usher:    "absent",
		versions: []string{lab.ConsulOld},
		reason: "Consul 1.15 always asks Envoy to refuse routes to unknown clusters; Consul 1.22 asks for it when the mesh entry does. " +
			"Without it, a route and its cluster may come in any order.",
	},
	{
		typeURL:  resource.RouteType,
		path:     "virtual_hosts[].routes[].route.timeout",
		consul:   "absent",
		usher:    `"0s"`,
		versions: []string{lab.ConsulOld},
		reason:   "A negative RequestTimeout: no timeout in Consul 1.22, Envoy's 15 seconds in Consul 1.15.",
	},
	{
		typeURL:  resource.RouteType,
		path:     "virtual_hosts[].routes[].route.idle_timeout",
		consul:   "absent",
		usher:    `"0s"`,
		versions: []string{lab.ConsulOld},
		reason:   "A negative IdleTimeout: as for the timeout.",
	},
	{
		typeURL:  resource.ClusterType,
		path:     "outlier_detection.max_ejection_percent",
		consul:   "100",
		usher:    "absent",
		versions: []string{lab.ConsulOld},
		peered:   true,
		reason: "Consul 1.15 lets Envoy eject all mesh gateways of a cluster peer, where nothing is set; Consul 1.22 leaves it to Envoy, " +
			"as for any other cluster.",
	},
	{
		typeURL:  resource.RouteType,
		path:     "virtual_hosts[].routes[].route.prefix_rewrite",
		consul:   `"/"`,
		usher:    "absent",
		versions: olderConsuls,
		reason:   "A prefix that is rewritten to /: Consul before 1.22.1 makes //b of /a/b; see the next.",
	},
	{
		typeURL:  resource.RouteType,
		path:     "virtual_hosts[].routes[].route.regex_rewrite",
		consul:   "absent",
		versions: olderConsuls,
		reason:   "Consul 1.22.1 and later and Usher make /b of it.",
	},
	{
		typeURL:  resource.RouteType,
		path:     "virtual_hosts[].routes[].route.prefix_rewrite",
		consul:   "absent",
		usher:    `"/"`,
		versions: []string{lab.ConsulNew},
		reason:   "An exact path that is rewritten to /: since 1.22.1 Consul replaces nothing; see the next.",
	},
	{
		typeURL:  resource.RouteType,
		path:     "virtual_hosts[].routes[].route.regex_rewrite",
		usher:    "absent",
		versions: []string{lab.ConsulNew},
		reason:   "Its expression has the path's prefix, and an exact path has none.",
	},
	{
		typeURL:  resource.RouteType,
		path:     "virtual_hosts[].routes[].route.retry_policy.retry_priority",
		consul:   "absent",
		versions: olderConsuls,
		reason:   "A route to a splitter that fails over: Consul before 1.22 does not prefer what was not tried.",
	},
	{
		typeURL:  resource.ClusterType,
		path:     "alt_stat_name",
		consul:   "absent",
		versions: []string{lab.ConsulOld},
		peered:   true,
		reason:   "Consul 1.15 leaves it out for a cluster peer. It is the cluster's name, which Envoy takes then.",
	},
}

// describe is a difference for the output of a test.
func describe(d difference) string {
	kind := d.TypeURL[strings.LastIndex(d.TypeURL, ".")+1:]
	return fmt.Sprintf("%s %s: %s\n  consul: %s\n  usher:  %s", kind, d.Name, d.Path, shortened(d.Before), shortened(d.After))
}

// shortened keeps a resource that only one of them has from filling the screen.
func shortened(s string) string {
	const most = 600
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

// unexplained returns the differences that nothing allows, and marks what allowed
// the others as used.
func unexplained(found []difference, version string, used map[*allowance]bool) []difference {
	var out []difference
	for _, d := range found {
		i := slices.IndexFunc(allowed, func(a allowance) bool { return a.concerns(version) && a.allows(d) })
		if i < 0 {
			out = append(out, d)
			continue
		}
		used[&allowed[i]] = true
	}
	return out
}
