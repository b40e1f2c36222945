//go:build e2e

package conformance

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/internal/resourcediff"
)

// spelling is a field that an older Consul writes otherwise, with the same
// meaning.
type spelling struct {
	typeURL string
	path    string // of the field, as difference.Path
	reason  string
	// rewrite says the same in the newest Consul's words. The object has lost the
	// field, whose value comes with it.
	rewrite func(object map[string]any, value tree)
	// rename replaces rewrite where the field is part of resources' names; it says
	// whether there were any.
	rename func(resources) bool
}

func (s spelling) key() string { return s.typeURL + " " + s.path }

// bareAddresses is that of Consul before 1.22.
var bareAddresses = spelling{
	typeURL: resource.ListenerType,
	path:    "name",
	reason:  "An IPv6 address in a listener's name has no brackets.",
	rename:  bracketAddresses,
}

// oldSpellings are those of Consul 1.15. One that no case has fails.
var oldSpellings = slices.Concat(
	[]spelling{
		{
			typeURL: resource.ClusterType,
			path:    "transport_socket.typed_config.common_tls_context.validation_context.match_subject_alt_names",
			reason:  "Deprecated by Envoy 1.22 for matchers that name the kind of name.",
			rewrite: typedNames,
		},
		{
			typeURL: resource.RouteType,
			path:    "virtual_hosts[].routes[].route.weighted_clusters.total_weight",
			reason:  "Deprecated by Envoy 1.23: the total is the sum of the weights.",
			rewrite: leaveOut,
		},
		bareAddresses,
		{
			typeURL: resource.ClusterType,
			path:    "cluster_type.typed_config.clusters[]",
			reason:  "Consul 1.15 names a cluster to fail over to by itself alone, Consul 1.22 by its place and what it stands in for.",
			rename:  placeFailoverTargets,
		},
	},
	headerMatches("exact", "prefix", "suffix", "safe_regex"),
	inRoutes("Deprecated by Envoy 1.23: RE2 is the only engine.", leaveOut,
		"match.safe_regex.google_re2", "match.headers[].safe_regex_match.google_re2",
		"match.query_parameters[].string_match.safe_regex.google_re2",
	),
	appends("virtual_hosts[].", "virtual_hosts[].routes[].", "virtual_hosts[].routes[].route.weighted_clusters.clusters[]."),
)

func headerMatches(ways ...string) []spelling {
	var out []spelling
	for _, way := range ways {
		out = append(out, inRoutes("Deprecated by Envoy 1.22 for one matcher of strings.", func(object map[string]any, value tree) {
			object["string_match"] = map[string]any{way: value}
		}, "match.headers[]."+way+"_match")...)
	}
	return out
}

func inRoutes(reason string, rewrite func(map[string]any, tree), paths ...string) []spelling {
	var out []spelling
	for _, path := range paths {
		out = append(out, spelling{
			typeURL: resource.RouteType, path: "virtual_hosts[].routes[]." + path, reason: reason, rewrite: rewrite,
		})
	}
	return out
}

func appends(levels ...string) []spelling {
	var out []spelling
	for _, level := range levels {
		for _, list := range []string{"request_headers_to_add[]", "response_headers_to_add[]"} {
			out = append(out, spelling{
				typeURL: resource.RouteType, path: level + list + ".append",
				reason: "Deprecated by Envoy 1.22 for an action with more than two values.", rewrite: appendAction,
			})
		}
	}
	return out
}

func leaveOut(map[string]any, tree) {}

// typedNames says that a sidecar is known by its SPIFFE id, which is a URI.
func typedNames(object map[string]any, value tree) {
	matchers, _ := value.([]any)
	var typed []any
	for _, m := range matchers {
		typed = append(typed, map[string]any{"san_type": "URI", "matcher": m})
	}
	object["match_typed_subject_alt_names"] = typed
}

// appendAction leaves out the action that is the default.
func appendAction(object map[string]any, value tree) {
	if value == false {
		object["append_action"] = "OVERWRITE_IF_EXISTS_OR_ADD"
	}
}

// bracketAddresses renames listeners on IPv6 addresses.
func bracketAddresses(r resources) bool {
	found := false
	listeners := r[resource.ListenerType]
	for _, name := range slices.Sorted(maps.Keys(listeners)) {
		listener, _ := listeners[name].(map[string]any)
		socket, _ := at(listener, "address", "socket_address").(map[string]any)
		address, port := resourcediff.StringOr(socket["address"], ""), fmt.Sprint(socket["port_value"])
		before, bare := strings.CutSuffix(name, address+":"+port)
		if !bare || !strings.Contains(address, ":") {
			continue
		}
		found = true
		delete(listeners, name)
		listener["name"] = before + net.JoinHostPort(address, port)
		listeners[resourcediff.StringOr(listener["name"], "")] = listener
	}
	return found
}

// placeFailoverTargets gives every aggregate cluster its own clusters.
func placeFailoverTargets(r resources) bool {
	old := map[string]bool{}
	clusters, endpoints := r[resource.ClusterType], r[resource.EndpointType]
	for _, base := range slices.Sorted(maps.Keys(clusters)) {
		aggregate, _ := at(clusters[base], "cluster_type", "typed_config").(map[string]any)
		targets, _ := aggregate["clusters"].([]any)
		for i, target := range targets {
			before, after := resourcediff.StringOr(target, ""), fmt.Sprintf("failover-target~%d~%s", i, base)
			targets[i], old[before] = after, true
			copyAs(clusters, before, after, "name", "alt_stat_name")
			copyAs(endpoints, before, after, "cluster_name")
		}
	}
	for name := range old {
		delete(clusters, name)
		delete(endpoints, name)
	}
	return len(old) > 0
}

// copyAs adds a copy of a resource under another name, which it has in fields.
func copyAs(byName map[string]tree, before, after string, fields ...string) {
	object, ok := resourcediff.Clone(byName[before]).(map[string]any)
	if !ok {
		return
	}
	for _, field := range fields {
		object[field] = after
	}
	byName[after] = object
}

// at returns what is below keys, nil when it is not there.
func at(t tree, keys ...string) tree {
	for _, key := range keys {
		object, _ := t.(map[string]any)
		t = object[key]
	}
	return t
}

// modernise returns the resources as the newest Consul would spell them, and marks
// the old spellings that were met.
func (ref reference) modernise(r resources, met map[string]bool) resources {
	out := resources{}
	for typeURL, byName := range r {
		out[typeURL] = map[string]tree{}
		for name, t := range byName {
			out[typeURL][name] = resourcediff.Clone(t)
		}
	}
	for _, s := range ref.spellings {
		if s.rename != nil && s.rename(out) {
			met[s.key()] = true
		}
	}
	for typeURL, byName := range out {
		for _, t := range byName {
			ref.rewrite(typeURL, "", t, met)
		}
	}
	return out
}

// rewrite replaces the old spellings in a tree at a path, the inner ones first.
func (ref reference) rewrite(typeURL, path string, t tree, met map[string]bool) {
	switch t := t.(type) {
	case []any:
		for _, e := range t {
			ref.rewrite(typeURL, path+"[]", e, met)
		}
	case map[string]any:
		for _, field := range slices.Sorted(maps.Keys(t)) {
			value, below := t[field], strings.TrimPrefix(path+"."+field, ".")
			ref.rewrite(typeURL, below, value, met)
			for _, s := range ref.spellings {
				if s.rewrite != nil && s.typeURL == typeURL && s.path == below {
					met[s.key()] = true
					delete(t, field)
					s.rewrite(t, value)
				}
			}
		}
	}
}
