package configdir

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"
)

// keysOfConsul are the keys that Consul from 1.15 to 1.22 and its tools read in an opaque config, by what reads them.
var keysOfConsul = map[string]string{
	"for the bootstrap that consul connect envoy or consul-dataplane writes": `
		envoy_bootstrap_json_tpl envoy_dogstatsd_url envoy_extra_static_clusters_json envoy_extra_static_listeners_json
		envoy_extra_stats_sinks_json envoy_hcp_metrics_bind_socket_dir envoy_prometheus_bind_addr envoy_stats_bind_addr
		envoy_stats_config_json envoy_stats_flush_interval envoy_stats_tags envoy_statsd_url
		envoy_telemetry_collector_bind_socket_dir envoy_tracing_json`,
	"which sidecars read": `
		balance_inbound_connections balance_outbound_connections bind_address bind_port connect_timeout_ms
		envoy_cluster_json envoy_listener_json envoy_listener_tracing_json envoy_local_cluster_json
		envoy_public_listener_json limits local_connect_timeout_ms local_idle_timeout_ms local_request_timeout_ms
		max_inbound_connections mesh_gateway passive_health_check`,
	"mesh gateways and terminating gateways read": `
		envoy_dns_discovery_type envoy_gateway_remote_tcp_enable_keepalive envoy_gateway_remote_tcp_keepalive_interval
		envoy_gateway_remote_tcp_keepalive_probes envoy_gateway_remote_tcp_keepalive_time connect_timeout_ms`,
	"which the proxy of consul connect proxy reads": "handshake_timeout_ms local_service_address telemetry",
}

func TestConsulsOwnKeysAreNamedAsSuch(t *testing.T) {
	for readers, keys := range keysOfConsul {
		words := strings.TrimSuffix(strings.TrimPrefix(readers, "which "), " read")
		for key := range strings.FieldsSeq(keys) {
			for _, files := range []tree{
				hclFile(`kind = "proxy-defaults"`, `name = "global"`, `config { `+key+` = "1" }`),
				hclFile(`service { name = "gw" kind = "ingress-gateway"`, ``, `proxy { config { `+key+` = "1" } } }`),
				yml("apiVersion: consul.hashicorp.com/v1alpha1", "kind: ProxyDefaults", "metadata: {name: global}\nspec: {config: {"+key+": '1'}}"),
			} {
				lines := linesOf(t, NewSource(write(t, files), Options{}))
				if len(lines) != 1 || !strings.Contains(lines[0], key+": this is Consul's own key, ") ||
					!strings.Contains(lines[0], words) || !strings.Contains(lines[0], "; it has no meaning in file mode; remove it") {
					t.Errorf("%s, %s: got %q", key, readers, lines)
				}
			}
		}
	}
}

// laterFields are those of Consul's library that Consul 1.22 does not have.
var laterFields = []string{"AI", "LocalServicePorts", "Consecutive5xx", "ConsecutiveGatewayFailure", "EnforcingConsecutiveGatewayFailure"}

func TestEveryFieldOfConsulsEntriesIsKnown(t *testing.T) {
	for kind, entry := range map[string]any{
		"proxy-defaults": api.ProxyConfigEntry{}, "service-defaults": api.ServiceConfigEntry{},
		"ingress-gateway": api.IngressGatewayConfigEntry{}, "service-intentions": api.ServiceIntentionsConfigEntry{},
		"service": api.AgentServiceRegistration{},
	} {
		all := emptyFields(reflect.TypeOf(entry), 5).(map[string]any)
		if kind == "service" {
			all = map[string]any{"service": all}
		} else {
			all["Kind"] = kind
		}
		text, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range linesOf(t, NewSource(write(t, js(string(text))), Options{})) {
			if strings.Contains(line, "this key is unknown") {
				t.Errorf("%s: %s", kind, line)
			}
		}
	}
}

// emptyFields returns an object with every field of a type, and of the types in it, which may contain themselves.
func emptyFields(of reflect.Type, depth int) any {
	switch {
	case depth == 0:
		return nil
	case of.Kind() == reflect.Pointer:
		return emptyFields(of.Elem(), depth)
	case of.Kind() == reflect.Slice && of.Elem().Kind() != reflect.Uint8:
		return []any{emptyFields(of.Elem(), depth)}
	case of.Kind() != reflect.Struct || of.PkgPath() != reflect.TypeFor[api.ProxyConfigEntry]().PkgPath():
		return nil
	}
	fields := map[string]any{}
	for _, f := range reflect.VisibleFields(of) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); f.IsExported() && !f.Anonymous && !slices.Contains(laterFields, f.Name) {
			if name == "" {
				name = f.Name
			}
			fields[name] = emptyFields(f.Type, depth-1)
		}
	}
	return fields
}
