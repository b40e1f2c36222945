package cutover

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/internal/resourcediff"
)

// unexpected returns what differs between the configurations before and after, apart from the PROXY filters and what
// follows from them. A resource that only one of them has matters where others refer to it, and these are compared.
func unexpected(before, after resourcediff.Resources) []string {
	before, after = common(before, after), common(after, before)
	for name := range before[resource.ListenerType] {
		a, _ := before[resource.ListenerType][name].(map[string]any)
		b, _ := after[resource.ListenerType][name].(map[string]any)
		before[resource.ListenerType][name], after[resource.ListenerType][name] = withoutProxy(a), withoutProxy(b)
	}
	return describe(resourcediff.Compare(before, after))
}

// common returns the resources that another configuration has, too. Those of listeners may be changed.
func common(r, other resourcediff.Resources) resourcediff.Resources {
	out := resourcediff.Resources{}
	for typeURL, byName := range r {
		out[typeURL] = maps.Clone(byName)
		maps.DeleteFunc(out[typeURL], func(name string, _ resourcediff.Tree) bool { return other[typeURL][name] == nil })
	}
	return out
}

func chains(listener map[string]any) []any {
	list, _ := listener["filter_chains"].([]any)
	return list
}

// followsProxy are the fields that Usher sets because of a PROXY filter.
var followsProxy = []string{
	"access_log", "use_remote_address", "preserve_external_request_id", "internal_address_config", "xff_num_trusted_hops",
	"skip_xff_append", "early_header_mutation_extensions",
}

// withoutProxy returns a copy of a listener without its PROXY filter and what follows from it.
func withoutProxy(listener map[string]any) map[string]any {
	listener, _ = resourcediff.Clone(listener).(map[string]any)
	resourcediff.Walk(listener, func(object map[string]any) {
		for _, field := range followsProxy {
			delete(object, field)
		}
	})
	removeNamed(listener, "listener_filters", proxyFilter)
	for _, tree := range chains(listener) {
		chain, _ := tree.(map[string]any)
		delete(chain, "name")
		removeNamed(chain, "filters", "envoy.filters.network.set_filter_state")
	}
	if merged := merge(chains(listener)); len(merged) > 0 {
		listener["filter_chains"] = merged
	}
	return listener
}

// merge leaves one of the chains that do the same for the networks of trusted_cidrs and for all others: the first.
func merge(all []any) []any {
	var left []any
	same := map[string]map[string]any{}
	for _, tree := range all {
		chain, _ := tree.(map[string]any)
		key := resourcediff.Text(forAnyNetwork(chain))
		first := same[key]
		switch {
		case first == nil:
			same[key] = chain
			left = append(left, chain)
		case servesAll(chain):
			removeNetworks(first)
		}
	}
	return left
}

// untrustedRoutes begins the name of Usher's route configurations for other networks than trusted_cidrs.
const untrustedRoutes = "usher-untrusted:"

// forAnyNetwork returns a copy of a chain without what Usher sets because of trusted_cidrs.
func forAnyNetwork(chain map[string]any) map[string]any {
	chain, _ = resourcediff.Clone(chain).(map[string]any)
	removeNetworks(chain)
	resourcediff.Walk(chain, func(object map[string]any) {
		delete(object, "stat_prefix")
		if name, ok := object["route_config_name"].(string); ok {
			object["route_config_name"] = strings.TrimPrefix(name, untrustedRoutes)
		}
	})
	return chain
}

const networks = "direct_source_prefix_ranges"

// servesAll reports whether a chain is for all networks.
func servesAll(chain map[string]any) bool {
	match, _ := chain["filter_chain_match"].(map[string]any)
	return match[networks] == nil
}

// removeNetworks makes a chain one for all networks.
func removeNetworks(chain map[string]any) {
	match, _ := chain["filter_chain_match"].(map[string]any)
	delete(match, networks)
	if len(match) == 0 {
		delete(chain, "filter_chain_match")
	}
}

// removeNamed removes the objects of a name from a list of an object.
func removeNamed(object map[string]any, list, name string) {
	items, _ := object[list].([]any)
	items = slices.DeleteFunc(slices.Clone(items), func(tree any) bool {
		item, _ := tree.(map[string]any)
		return item["name"] == name
	})
	delete(object, list)
	if len(items) > 0 {
		object[list] = items
	}
}

// describe names what differs.
func describe(differences []resourcediff.Difference) []string {
	names := map[string]string{resource.ListenerType: "listener", resource.ClusterType: "cluster", resource.RouteType: "route"}
	var all []string
	for _, d := range differences {
		text := fmt.Sprintf("%s %s", names[d.TypeURL], d.Name)
		if d.Path != "" {
			text += ": " + d.Path
		}
		all = append(all, text)
	}
	return slices.Compact(all)
}
