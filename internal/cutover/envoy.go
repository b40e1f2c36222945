package cutover

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/internal/envoyadmin"
	"github.com/usherproxy/usher/internal/resourcediff"
)

// envoy is what an Envoy's admin interface says at one moment.
type envoy struct {
	envoyadmin.ServerInfo
	addresses []string               // that its listeners have, also those of its bootstrap; sorted
	resources resourcediff.Resources // that it got over xDS and uses, without endpoints
	refused   map[string]string      // the listeners that it refuses, and why
	stats     stats
}

// observe asks an Envoy for everything.
func observe(ctx context.Context, admin envoyadmin.Client) (*envoy, error) {
	info, err := admin.ServerInfo(ctx)
	if err != nil {
		return nil, err
	}
	e := &envoy{ServerInfo: info}
	if e.addresses, err = addressesOf(ctx, admin); err != nil {
		return nil, err
	}
	dump, err := admin.Get(ctx, "/config_dump")
	if err != nil {
		return nil, err
	}
	if e.resources, err = resourcediff.ReadDump(dump); err != nil {
		return nil, err
	}
	if e.resources, err = canonical(e.resources); err != nil {
		return nil, err
	}
	if e.refused, err = refusedListeners(dump); err != nil {
		return nil, err
	}
	e.stats, err = readStats(ctx, admin)
	return e, err
}

// canonical returns resources in a form in which those of two servers, and of an Envoy, look equal if they are. Envoy does
// not show endpoints as it got them.
func canonical(r resourcediff.Resources) (resourcediff.Resources, error) {
	return r.Without(resource.EndpointType).Redact().Canonical()
}

// socketAddress is an address in Envoy's JSON.
type socketAddress struct {
	Socket struct {
		Address string `json:"address"`
		Port    int    `json:"port_value"`
	} `json:"socket_address"`
}

func (a socketAddress) String() string {
	return net.JoinHostPort(a.Socket.Address, strconv.Itoa(a.Socket.Port))
}

// addressesOf returns the addresses of an Envoy's active listeners.
func addressesOf(ctx context.Context, admin envoyadmin.Client) ([]string, error) {
	var answer struct {
		Statuses []struct {
			Local socketAddress   `json:"local_address"`
			More  []socketAddress `json:"additional_local_addresses"`
		} `json:"listener_statuses"`
	}
	if err := admin.GetJSON(ctx, "/listeners?format=json", &answer); err != nil {
		return nil, err
	}
	var all []string
	for _, status := range answer.Statuses {
		for _, address := range append(status.More, status.Local) {
			if address.Socket.Port != 0 { // else it is a pipe or an internal listener
				all = append(all, address.String())
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// refusedListeners returns the listeners of a /config_dump that Envoy has refused since it last accepted them.
func refusedListeners(dump []byte) (map[string]string, error) {
	var answer struct {
		Configs []struct {
			Listeners []struct {
				Error struct {
					Failed struct {
						Name string `json:"name"`
					} `json:"failed_configuration"`
					Details string `json:"details"`
				} `json:"error_state"`
			} `json:"dynamic_listeners"`
		} `json:"configs"`
	}
	if err := json.Unmarshal(dump, &answer); err != nil {
		return nil, err
	}
	refused := map[string]string{}
	for _, config := range answer.Configs {
		for _, l := range config.Listeners {
			if l.Error.Details != "" {
				refused[l.Error.Failed.Name] = l.Error.Details
			}
		}
	}
	return refused, nil
}

// stats are counters and gauges by their names.
type stats map[string]int

// statsFilter matches those that matter here.
const statsFilter = `^(listener\..*\.downstream_(pre_)?cx_active|listener_manager\.(listener_stopped|total_listeners_(active|warming))` +
	`|cluster_manager\.warming_clusters|cluster\..*\.membership_healthy|proxy_proto\..*)$`

func readStats(ctx context.Context, admin envoyadmin.Client) (stats, error) {
	var answer struct {
		Stats []struct {
			Name  string `json:"name"`
			Value int    `json:"value"`
		} `json:"stats"`
	}
	if err := admin.GetJSON(ctx, "/stats?format=json&filter="+url.QueryEscape(statsFilter), &answer); err != nil {
		return nil, err
	}
	s := stats{}
	for _, stat := range answer.Stats {
		s[stat.Name] = stat.Value
	}
	return s, nil
}

// complete reports whether the Envoy has the gauges that stopped and open read.
func (s stats) complete() bool {
	_, manager := s["listener_manager.total_listeners_active"]
	listeners := 0
	for name := range s {
		if _, ok := countedListener(name); ok {
			listeners++
		}
	}
	return manager && listeners > 0
}

// countedListener returns the listener of a gauge of connections. It is not ok for those
// of the admin interface, and of single threads.
func countedListener(stat string) (listener string, ok bool) {
	name, isListener := strings.CutPrefix(stat, "listener.")
	listener, gauge, _ := strings.Cut(name, ".downstream_")
	counts := gauge == "cx_active" || gauge == "pre_cx_active"
	return listener, isListener && counts && listener != "admin" && !strings.Contains(listener, ".worker_") && !strings.HasSuffix(listener, ".main_thread")
}

// stopped reports whether no listener accepts connections any more.
func (s stats) stopped() bool {
	return s["listener_manager.listener_stopped"] > 0 &&
		s["listener_manager.listener_stopped"] >= s["listener_manager.total_listeners_active"]
}

// drains reports whether the Envoy has been asked to take no connections any more. It may not show in its state.
func (e *envoy) drains() bool {
	return e.State == "DRAINING" || e.stats["listener_manager.listener_stopped"] > 0
}

// open returns how many connections the listeners have, by listener; those with none are left out. It counts connections
// whose PROXY header has not come, too.
func (s stats) open() map[string]int {
	open := map[string]int{}
	for name, value := range s {
		if listener, ok := countedListener(name); ok && value > 0 {
			open[listener] += value
		}
	}
	return open
}

// headers returns how many connections have come to a listener with a PROXY header, and how many without one that were
// accepted. ok is false if this Envoy does not count them. Before 1.31, it counts those of all listeners together.
func (s stats) headers(listener map[string]any) (now traffic, ok bool) {
	prefix := "proxy_proto."
	if name := resourcediff.StringOr(proxyConfig(listener)["stat_prefix"], ""); name != "" {
		prefix += name + "."
	}
	for name, value := range s {
		switch counter, ofListener := strings.CutPrefix(name, prefix); {
		case !ofListener:
		case strings.HasPrefix(counter, "versions.") && strings.HasSuffix(counter, ".found"):
			now.with, ok = now.with+value, true
		case counter == "not_found_allowed":
			now.without, ok = now.without+value, true
		}
	}
	return now, ok
}

// withoutEndpoints returns the clusters that have healthy endpoints before and none after.
func withoutEndpoints(before, after stats) []string {
	var lost []string
	for name, n := range before {
		has, there := after[name]
		if cluster, ok := strings.CutSuffix(name, ".membership_healthy"); ok && n > 0 && there && has == 0 {
			lost = append(lost, strings.TrimPrefix(cluster, "cluster."))
		}
	}
	slices.Sort(lost)
	return lost
}

// withoutTarget returns the clusters that have healthy endpoints before, and whose endpoints an xDS server sends without a
// healthy one.
func withoutTarget(before stats, after resourcediff.Resources) []string {
	var lost []string
	for name, tree := range after[resource.ClusterType] {
		cluster, _ := tree.(map[string]any)
		eds, ok := cluster["eds_cluster_config"].(map[string]any)
		if !ok {
			continue
		}
		stat := strings.ReplaceAll(resourcediff.StringOr(cluster["alt_stat_name"], name), ":", "_") // Envoy's rule
		service := resourcediff.StringOr(eds["service_name"], name)
		if before["cluster."+stat+".membership_healthy"] > 0 && !hasHealthy(after[resource.EndpointType][service]) {
			lost = append(lost, name)
		}
	}
	slices.Sort(lost)
	return lost
}

// hasHealthy reports whether a ClusterLoadAssignment has an endpoint that Envoy sends requests to.
func hasHealthy(assignment resourcediff.Tree) bool {
	found := false
	resourcediff.Walk(assignment, func(object map[string]any) {
		switch object["health_status"] {
		case nil, "UNKNOWN", "HEALTHY", "DEGRADED":
			found = found || object["endpoint"] != nil
		}
	})
	return found
}

// listen returns the listeners that came over xDS, by address.
func listen(r resourcediff.Resources) map[string]map[string]any {
	byAddress := map[string]map[string]any{}
	for _, tree := range r[resource.ListenerType] {
		listener, _ := tree.(map[string]any)
		byAddress[addressOf(listener)] = listener
	}
	return byAddress
}

// addressOf returns the address of a listener's configuration.
func addressOf(listener map[string]any) string {
	var address socketAddress
	if err := json.Unmarshal([]byte(resourcediff.Text(listener["address"])), &address); err != nil {
		return ""
	}
	return address.String()
}

// mode is what a listener does with PROXY headers.
type mode string

const (
	off        mode = "off"
	permissive mode = "permissive"
	strict     mode = "strict"
)

const proxyFilter = "envoy.filters.listener.proxy_protocol"

// modeOf returns the mode of a listener's configuration.
func modeOf(listener map[string]any) mode {
	switch config := proxyConfig(listener); {
	case config == nil:
		return off
	case config["allow_requests_without_proxy_protocol"] == true:
		return permissive
	}
	return strict
}

// proxyConfig returns the configuration of a listener's PROXY filter; nil if it has none.
func proxyConfig(listener map[string]any) map[string]any {
	filters, _ := listener["listener_filters"].([]any)
	for _, tree := range filters {
		if filter, _ := tree.(map[string]any); filter["name"] == proxyFilter {
			config, _ := filter["typed_config"].(map[string]any)
			return config
		}
	}
	return nil
}

// sharesPorts reports whether another Envoy may listen on the same address: Envoy's default.
func sharesPorts(listener map[string]any) bool { return listener["enable_reuse_port"] != false }

// sorted returns the keys of a map in order.
func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
