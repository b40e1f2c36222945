package configdir

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/configtree"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// proxyConfig holds the keys that count of an opaque config: proxy-defaults' Config and a gateway's proxy.config
// (https://developer.hashicorp.com/consul/docs/reference/proxy/envoy#gateway-options).
type proxyConfig struct {
	EnvoyGatewayNoDefaultBind       bool
	EnvoyGatewayBindTaggedAddresses bool
	EnvoyGatewayBindAddresses       map[string]gateway.Address

	// Older names of the same.
	EnvoyMeshGatewayNoDefaultBind       bool
	EnvoyMeshGatewayBindTaggedAddresses bool
	EnvoyMeshGatewayBindAddresses       map[string]gateway.Address

	XDSFetchTimeoutMs   *int64
	MaxRequestHeadersKB uint32
	Protocol            string // proxy-defaults': of services without one
	Usher               *yaml.Node

	consulKeys

	file string
	root *yaml.Node
}

// consulKeys are the keys of an opaque config that Consul from 1.15 to 1.22 and its tools read, and that mean nothing
// to an ingress gateway in file mode.
type consulKeys struct {
	EnvoyBootstrapJSONTpl, EnvoyExtraStaticClustersJSON,
	EnvoyExtraStaticListenersJSON, EnvoyExtraStatsSinksJSON,
	EnvoyStatsConfigJSON, EnvoyStatsFlushInterval, EnvoyStatsTags,
	EnvoyStatsdURL, EnvoyDogstatsdURL, EnvoyTracingJSON,
	EnvoyHCPMetricsBindSocketDir, EnvoyTelemetryCollectorBindSocketDir configtree.Refused `why:"this is Consul's own key, for the bootstrap that consul connect envoy or consul-dataplane writes; it has no meaning in file mode; remove it"`
	EnvoyPrometheusBindAddr, EnvoyStatsBindAddr configtree.Refused `why:"this is Consul's own key, for the bootstrap that consul connect envoy or consul-dataplane writes; it has no meaning in file mode; remove it, and read /stats/prometheus at Envoy's admin address"`

	EnvoyPublicListenerJSON, EnvoyListenerTracingJSON, EnvoyLocalClusterJSON,
	LocalConnectTimeoutMs, LocalRequestTimeoutMs, LocalIdleTimeoutMs,
	MaxInboundConnections, BalanceInboundConnections, BindAddress, BindPort configtree.Refused `why:"this is Consul's own key, which sidecars read; it has no meaning in file mode; remove it"`
	LocalServiceAddress, HandshakeTimeoutMs, Telemetry configtree.Refused `why:"this is Consul's own key, which the proxy of consul connect proxy reads; it has no meaning in file mode; remove it"`

	EnvoyListenerJSON, EnvoyClusterJSON, BalanceOutboundConnections configtree.Refused `why:"this is Consul's own key, which sidecars read for an upstream; it has no meaning in file mode; remove it"`
	Limits, PassiveHealthCheck                                      configtree.Refused `why:"this is Consul's own key, which sidecars read for an upstream; it has no meaning in file mode; remove it, and set limits in the ingress-gateway entry"`

	ConnectTimeoutMs configtree.Refused `why:"this is Consul's own key, which sidecars, mesh gateways and terminating gateways read; it has no meaning in file mode; remove it"`
	MeshGateway      configtree.Refused `why:"this is Consul's own key, which sidecars read to find mesh gateways; it has no meaning in file mode; remove it"`
	EnvoyDNSDiscoveryType,
	EnvoyGatewayRemoteTCPEnableKeepalive, EnvoyGatewayRemoteTCPKeepaliveTime,
	EnvoyGatewayRemoteTCPKeepaliveInterval, EnvoyGatewayRemoteTCPKeepaliveProbes configtree.Refused `why:"this is Consul's own key, which mesh gateways and terminating gateways read; it has no meaning in file mode; remove it"`
}

// model returns the config as a gateway's Envoy has it.
func (p proxyConfig) model() gateway.ProxyConfig {
	c := gateway.ProxyConfig{
		NoDefaultBind:       p.EnvoyGatewayNoDefaultBind || p.EnvoyMeshGatewayNoDefaultBind,
		BindTaggedAddresses: p.EnvoyGatewayBindTaggedAddresses || p.EnvoyMeshGatewayBindTaggedAddresses,
		BindAddresses:       p.EnvoyGatewayBindAddresses,
		MaxRequestHeadersKB: p.MaxRequestHeadersKB,
	}
	if c.BindAddresses == nil {
		c.BindAddresses = p.EnvoyMeshGatewayBindAddresses
	}
	if p.XDSFetchTimeoutMs != nil && *p.XDSFetchTimeoutMs >= 0 {
		span := time.Duration(*p.XDSFetchTimeoutMs) * time.Millisecond
		c.FetchTimeout = &span
	}
	return c
}

// layer returns the layer before with the settings under the key usher.
func (p proxyConfig) layer(before settings.Layer) (settings.Layer, []problem.Problem) {
	after, problems := before.Update("", configtree.Plain(p.Usher))
	if len(problems) == 0 && p.Usher != nil {
		after.Places = configtree.Places(p.file, p.Usher)
	}
	configtree.AtLines(p.file, p.root, "", problems)
	return after, problems
}

// proxyConfig decodes the opaque config n that steps lead to; nil is an empty one. It leaves the value of usher as
// it is: a settings.Layer decodes that, and keeps the last valid one.
func (e *entry[T]) proxyConfig(n *yaml.Node, at ...any) proxyConfig {
	p := proxyConfig{file: e.decoder.File, root: configtree.Single(n)}
	if n == nil {
		return p
	}
	_, path := e.decoder.Locate(e.root, e.steps(at)...)
	// Consul decodes these keys in one way, also in a custom resource.
	weak := &configtree.Decoder{File: e.decoder.File}
	weak.Object(p.root, path, &p)
	e.decoder.Problems = append(e.decoder.Problems, weak.Problems...)
	if len(weak.Problems) == 0 {
		e.checkBind(join(at, "EnvoyGatewayBindAddresses"), p.EnvoyGatewayBindAddresses)
		e.checkBind(join(at, "EnvoyMeshGatewayBindAddresses"), p.EnvoyMeshGatewayBindAddresses)
	}
	return p
}

func (e *entry[T]) checkBind(at []any, addresses map[string]gateway.Address) {
	for _, name := range slices.Sorted(maps.Keys(addresses)) {
		if address := addresses[name].Address; !isIP(address) {
			e.add(join(at, name), "%q is not an IP address to listen on; use one", address)
		}
	}
}

func isIP(address string) bool {
	_, err := netip.ParseAddr(address)
	return err == nil
}

// checkProxyDefaults applies the rules of
// https://developer.hashicorp.com/consul/docs/reference/config-entry/proxy-defaults.
func checkProxyDefaults(e *entry[proxyDefaults]) {
	if e.name != "global" {
		e.addAtName("%q is not allowed; the only proxy-defaults entry is called \"global\"", e.name)
	}
	e.spec.proxyConfig = e.proxyConfig(e.spec.Config, "Config")
	e.checkProtocol(steps("Config", "protocol"), e.spec.proxyConfig.Protocol)
	logs := e.spec.AccessLogs
	if !slices.Contains([]string{"", "stdout", "stderr", "file"}, logs.Type) {
		e.add(steps("AccessLogs", "Type"), "%q is not allowed; use one of stdout, stderr, file", logs.Type)
	}
	switch {
	case logs.Type == "file" && logs.Path == "":
		e.add(steps("AccessLogs", "Path"), "access logs of type file need a path; add one")
	case logs.Type != "file" && logs.Path != "":
		e.add(steps("AccessLogs", "Path"), "only type file has a path; remove it, or set the type")
	case logs.JSONFormat != "" && logs.TextFormat != "":
		e.add(steps("AccessLogs", "TextFormat"), "there is a JSON format as well; remove one of the two")
	case logs.JSONFormat != "" && json.Unmarshal([]byte(logs.JSONFormat), &map[string]any{}) != nil:
		e.add(steps("AccessLogs", "JSONFormat"), "the format is not a JSON object; correct it")
	}
}

// checkServiceDefaults applies the rules of
// https://developer.hashicorp.com/consul/docs/reference/config-entry/service-defaults.
func checkServiceDefaults(e *entry[serviceDefaults]) {
	if e.name == wildcard {
		e.addAtName("service-defaults are for one service, not for \"*\"; use proxy-defaults")
	}
	e.checkProtocol(steps("Protocol"), e.spec.Protocol)
	if e.spec.Protocol != "" {
		e.spec.Protocol = gateway.NormalProtocol(e.spec.Protocol)
	}
}

// checkProtocol reports whether the protocol of a listener or a service is one that Consul knows.
func (e *entry[T]) checkProtocol(at []any, protocol string) bool {
	protocols := []string{gateway.ProtocolTCP, gateway.ProtocolHTTP, gateway.ProtocolHTTP2, gateway.ProtocolGRPC}
	known := slices.Contains(protocols, gateway.NormalProtocol(protocol))
	if !known {
		e.add(at, "%q is not allowed%s; use one of %s",
			protocol, problem.DidYouMean(protocol, protocols), strings.Join(protocols, ", "))
	}
	return known
}

// checkIntentions applies the rules of
// https://developer.hashicorp.com/consul/docs/reference/config-entry/service-intentions.
func checkIntentions(e *entry[serviceIntentions]) {
	if len(e.spec.Sources) == 0 {
		e.add(steps("Sources"), "there is no source; add one")
	}
	names := map[string]string{}
	for i, s := range e.spec.Sources {
		at := func(name string) []any { return steps("Sources", i, name) }
		e.onlyDefault(steps("Sources", i), s.Namespace, s.Partition)
		if s.Name == "" {
			e.add(at("Name"), "this source has no name; give it one")
		}
		if earlier, twice := names[s.Name]; twice {
			e.add(at("Name"), "source %q is already given at %s; remove one of the two", s.Name, earlier)
		}
		names[s.Name] = e.at(at("Name")...)
		if s.Action != "allow" && s.Action != "deny" {
			e.add(at("Action"), "%q is not allowed; use allow or deny", s.Action)
		}
		if s.Type != "" && s.Type != "consul" {
			e.add(at("Type"), "%q is not allowed; use consul, or remove it", s.Type)
		}
	}
}

// denied returns the position of the intention that denies a source access to a destination, or "". It decides as
// Consul does (https://developer.hashicorp.com/consul/docs/secure-mesh/intention#precedence-and-match-order): an
// exact destination goes before "*", then an exact source before "*". If none matches, access is allowed, as in a
// Consul without ACLs.
func (c *config) denied(source, destination string) (position string) {
	for _, to := range []string{destination, wildcard} {
		e := named(c.intentions, to)
		for _, from := range []string{source, wildcard} {
			i := slices.IndexFunc(e.spec.Sources, func(s intentionSource) bool { return s.Name == from })
			switch {
			case i < 0:
			case e.spec.Sources[i].Action == "deny":
				return e.at("Sources", i, "Action")
			default:
				return ""
			}
		}
	}
	return ""
}

// allowsAny reports whether the intentions allow any source to reach a service.
func (c *config) allowsAny(destination string) bool {
	sources := []string{""} // one that no intention names
	for _, to := range []string{destination, wildcard} {
		for _, s := range named(c.intentions, to).spec.Sources {
			sources = append(sources, s.Name)
		}
	}
	return slices.ContainsFunc(sources, func(source string) bool { return c.denied(source, destination) == "" })
}
