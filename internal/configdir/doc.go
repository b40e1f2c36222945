// Package configdir reads gateways from a directory, without a Consul: config
// entries and service definitions as Consul and its Kubernetes resources write
// them, in *.hcl, *.json, *.yaml and *.yml.
//
//	files ──parse──> nodes with lines ──decode, check──> config ──build──> content ──Watch──> gateway.Snapshot
//
// There is no service mesh then: upstreams are plain, no certificate exists and
// no sidecar enforces anything. What cannot be honoured so is refused with
// file:line and never ignored; a value that says nothing (null, 0, "", false,
// {} and [], which Consul prints where nothing was set) may stand anywhere.
//
//	file                       holds
//	*.hcl, *.json              one config entry, as `consul config write` takes it, or
//	                           service definitions (service, services) of an agent
//	*.yaml, *.yml              Consul's custom resources, several documents, lists too
//
//	entry                      fields that count
//	ingress-gateway            all but TLS without an SDS certificate
//	proxy-defaults             AccessLogs; of Config: usher, protocol, max_request_headers_kb,
//	                           xds_fetch_timeout_ms, envoy_gateway_{no_default_bind,
//	                           bind_tagged_addresses,bind_addresses}
//	service-defaults           Protocol; MaxRequestHeadersKB of an ingress gateway
//	service-intentions         sources with an action, none with permissions; what no
//	                           intention matches is allowed
//	every other kind           refused
//
//	service definition         fields that count
//	plain                      id, name, address (an IP address), port, weights,
//	                           tagged_addresses; every instance counts as passing
//	kind ingress-gateway       id, name, address, port, tagged_addresses, and of
//	                           proxy.config what counts of proxy-defaults' Config
//	both                       tags, meta and enable_tag_override have no effect on a
//	                           gateway in Consul either; all else is refused
//
// The directory counts as a whole: as long as anything in it is wrong, the last
// good content stays. Only Usher's own settings stand by themselves, with a
// gateway.Layer's memory for each source.
package configdir
