package cutover

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/internal/resourcediff"
)

// listenerTree is the configuration that has one listener, from JSON.
func listenerTree(t *testing.T, text string) resourcediff.Resources {
	t.Helper()
	var tree any
	if err := json.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatal(err)
	}
	return resourcediff.Resources{resource.ListenerType: {"a": tree}}
}

func TestOnlyWhatFollowsFromThePROXYFilterIsExpected(t *testing.T) {
	const inspector = `{"name": "envoy.filters.listener.tls_inspector"}`
	chain := func(name, filters, manager string) string {
		return `{"name": "` + name + `", "filters": [` + filters + `{"name": "http", "typed_config": {"stat_prefix": "a"` + manager + `}}]}`
	}
	// trusted is what Usher makes of one chain: one for trusted_cidrs, and one for all other networks.
	trusted := func(forTrusted, forOthers string) string {
		return `{"listener_filters": [{"name": "` + proxyFilter + `"}, ` + inspector + `], "filter_chains": [` +
			`{"name": "a", "filter_chain_match": {"direct_source_prefix_ranges": [{"address_prefix": "10.0.0.0"}]}, "filters": [` + forTrusted + `]}` + forOthers + `]}`
	}
	manager := func(prefix, more string) string {
		return `{"name": "http", "typed_config": {"stat_prefix": "` + prefix + `"` + more + `}}`
	}
	const rbac = `, "http_filters": [{"name": "rbac"}]`
	before := `{"listener_filters": [` + inspector + `], "filter_chains": [{"filters": [{"name": "http", "typed_config": {"stat_prefix": "a"}}]}]}`
	for _, tc := range []struct {
		name, after string
		want        []string
	}{
		{"nothing", before, nil},
		{"everything that follows", `{"access_log": [1], "listener_filters": [{"name": "` + proxyFilter + `"}, ` + inspector + `], "filter_chains": [` +
			chain("8080", `{"name": "envoy.filters.network.set_filter_state"}, `, `, "access_log": [1], "use_remote_address": true, "preserve_external_request_id": true,
			"internal_address_config": 1, "xff_num_trusted_hops": 1, "skip_xff_append": true, "early_header_mutation_extensions": [1]`) + `]}`, nil},
		{"chains for trusted_cidrs", trusted(manager("a", ""), `, {"name": "b", "filters": [`+manager("a_untrusted", "")+`]}`), nil},
		{"another filter for all", trusted(manager("a", rbac), `, {"name": "b", "filters": [`+manager("a_untrusted", rbac)+`]}`), []string{"listener a: filter_chains[].filters[].typed_config.http_filters"}},
		{"another filter for trusted_cidrs", trusted(manager("a", rbac), `, {"name": "b", "filters": [`+manager("a_untrusted", "")+`]}`), []string{"listener a: filter_chains"}},
		{"another filter for other networks", trusted(manager("a", ""), `, {"name": "b", "filters": [`+manager("a_untrusted", rbac)+`]}`), []string{"listener a: filter_chains"}},
		{
			"chains for two networks, and none for all others",
			trusted(manager("a", ""), `, {"name": "b", "filter_chain_match": {"direct_source_prefix_ranges": [{"address_prefix": "10.1.0.0"}]}, "filters": [`+manager("a", "")+`]}`),
			[]string{"listener a: filter_chains[].filter_chain_match"},
		},
		{"no chain for other networks", trusted(manager("a", ""), ""), []string{"listener a: filter_chains[].filter_chain_match"}},
		{"no TLS inspector", `{"filter_chains": [` + chain("", "", "") + `]}`, []string{"listener a: listener_filters"}},
		{
			"another timeout", `{"listener_filters": [` + inspector + `], "filter_chains": [` + chain("", "", `, "stream_idle_timeout": "1s"`) + `]}`,
			[]string{"listener a: filter_chains[].filters[].typed_config.stream_idle_timeout"},
		},
	} {
		for _, undo := range []bool{false, true} {
			a, b := listenerTree(t, before), listenerTree(t, tc.after)
			if undo {
				a, b = b, a
			}
			if got := unexpected(a, b); !slices.Equal(got, tc.want) {
				t.Errorf("%s, undo %t: differs in %q, want %q", tc.name, undo, got, tc.want)
			}
		}
	}
}

func TestEachNameOfAChainForTrustedNetworksIsCompared(t *testing.T) {
	chain := func(match, route string) string {
		return `{` + match + `"filters": [{"name": "http", "typed_config": {"rds": {"route_config_name": "` + route + `"}}}]}`
	}
	const networks = `"direct_source_prefix_ranges": [{"address_prefix": "10.0.0.0"}]`
	shop, other := `"filter_chain_match": {"server_names": ["shop"]}, `, ""
	before := `{"filter_chains": [` + chain(shop, "8443_shop") + `, ` + chain(other, "8443") + `]}`
	after := func(shops string) string {
		return `{"filter_chains": [` + chain(`"filter_chain_match": {`+networks+`, "server_names": ["shop"]}, `, shops) + `, ` + chain(`"filter_chain_match": {`+networks+`}, `, "8443") + `, ` +
			chain(shop, "usher-untrusted:"+shops) + `, ` + chain(other, "8443") + `]}`
	}
	for shops, want := range map[string][]string{"8443_shop": nil, "8443": {"listener a: filter_chains[].filters[].typed_config.rds.route_config_name"}} {
		if got := unexpected(listenerTree(t, before), listenerTree(t, after(shops))); !slices.Equal(got, want) {
			t.Errorf("%s: differs in %q, want %q", shops, got, want)
		}
	}
}

func TestManyDifferencesAreCounted(t *testing.T) {
	if got := some([]string{"a", "b", "c", "d", "e"}); got != "a, b, c and 2 more" {
		t.Errorf("got %q", got)
	}
}
