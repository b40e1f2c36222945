package settings

import (
	"net/netip"
	"slices"
	"strings"
)

// ListenerProperties are the properties of a listener that its settings have to agree with.
type ListenerProperties struct {
	TCP bool // its service gets connections and not requests
	TLS bool // clients begin with a TLS handshake
	// PreservesClientIP means that the load balancer connects from the clients' addresses.
	PreservesClientIP bool
	BalancerVersion   Version // the version that the load balancer sends; "" if that is not known
}

// Conflict is a combination of settings that a listener refuses.
type Conflict struct {
	Doc     string // for documentation
	Setting string // that has to change
	Reason  string // one line: what is wrong and what to do; VERSION stands for the version that the load balancer sends
	applies func(Listener, ListenerProperties) bool
}

// Conflicts are all combinations that are refused.
var Conflicts = []Conflict{
	{
		Doc:     "`mode = \"permissive\"` with only one of the `versions`, on a tcp listener",
		Setting: "proxy_protocol.versions",
		Reason: `with mode "permissive", the service would get a header of the missing version as data; ` +
			`use ["v1", "v2"], or mode "strict"`,
		applies: func(l Listener, p ListenerProperties) bool {
			return p.TCP && l.ProxyProtocol.Mode == Permissive && len(l.ProxyProtocol.Versions) < 2
		},
	},
	{
		Doc:     "`versions` without the version that the load balancer sends, if its Service in Kubernetes says which one it is",
		Setting: "proxy_protocol.versions",
		Reason: `the load balancer sends VERSION, which is not in versions, so Envoy would close every connection; ` +
			`add "VERSION", or remove versions`,
		applies: func(l Listener, p ListenerProperties) bool {
			return l.ProxyProtocol.Enabled() && p.BalancerVersion != "" && !slices.Contains(l.ProxyProtocol.Versions, p.BalancerVersion)
		},
	},
	{
		Doc:     "`trusted_cidrs` other than `\"any\"` behind a load balancer that preserves the clients' addresses (`preserve_client_ip.enabled=true`)",
		Setting: "proxy_protocol.trusted_cidrs",
		Reason: `the load balancer preserves the clients' addresses, so no connection would come from these networks; ` +
			`add preserve_client_ip.enabled=false to the Service's annotation service.beta.kubernetes.io/aws-load-balancer-target-group-attributes, ` +
			`or use trusted_cidrs "any" (any address that reaches the port can then claim to be any client)`,
		applies: func(l Listener, p ListenerProperties) bool {
			return p.PreservesClientIP && l.ProxyProtocol.Enabled() && !l.ProxyProtocol.TrustsAll()
		},
	},
	{
		Doc:     "`server_speaks_first = \"yes\"` with `mode = \"permissive\"` or `\"strict\"`, on a tcp listener without TLS",
		Setting: "proxy_protocol.server_speaks_first",
		Reason: `Envoy would wait for the client, and the client would wait for the service; ` +
			`disable the headers for this port and use mode "off"; ` +
			`or, if your load balancer sends the PROXY header as soon as it connects, use server_speaks_first "no" and mode "strict"`,
		applies: func(l Listener, p ListenerProperties) bool {
			return p.TCP && !p.TLS && l.ProxyProtocol.ServerSpeaksFirst == Yes && l.ProxyProtocol.Mode != Off
		},
	},
	{
		Doc:     "`upstream_tlvs` without `upstream = \"v2\"`, on a tcp listener",
		Setting: "proxy_protocol.upstream_tlvs",
		Reason:  `only a header of version 2 has TLVs; use upstream "v2", or upstream_tlvs "none"`,
		applies: func(l Listener, p ListenerProperties) bool {
			return p.TCP && len(l.ProxyProtocol.UpstreamTLVs) > 0 && l.ProxyProtocol.Upstream != UpstreamV2
		},
	},
	{
		Doc:     "`upstream_tlvs` with `mode = \"permissive\"` and `trusted_cidrs`, on a tcp listener",
		Setting: "proxy_protocol.upstream_tlvs",
		Reason:  `Envoy would hand on what addresses outside of trusted_cidrs write; use mode "strict", or upstream_tlvs "none"`,
		applies: func(l Listener, p ListenerProperties) bool {
			return p.TCP && len(l.ProxyProtocol.UpstreamTLVs) > 0 && l.ProxyProtocol.Mode == Permissive && !l.ProxyProtocol.TrustsAll()
		},
	},
	{
		Doc:     "`xff = \"overwrite\"` with `trusted_hops`, on an http, http2 or grpc listener",
		Setting: "client_address.xff",
		Reason:  `"overwrite" discards what the trusted hops wrote; use "append", or trusted_hops "none"`,
		applies: func(l Listener, p ListenerProperties) bool {
			return !p.TCP && l.ClientAddress.XFF == XFFOverwrite && l.ClientAddress.TrustedHops.Uint32() > 0
		},
	},
	{
		Doc:     "`forwarded_port = \"trust\"` without `trusted_hops` or `client_address.trusted_cidrs`, on an http, http2 or grpc listener",
		Setting: "client_address.forwarded_port",
		Reason:  `"trust" without trusted proxies would believe every client; set trusted_cidrs or trusted_hops, or use "connection"`,
		applies: func(l Listener, p ListenerProperties) bool {
			return !p.TCP && l.ClientAddress.ForwardedPort == ForwardedPortTrust && !l.ClientAddress.trustsProxies()
		},
	},
	{
		Doc:     "`client_address.trusted_cidrs` with `trusted_hops`, on an http, http2 or grpc listener",
		Setting: "client_address.trusted_hops",
		Reason:  `trusted_hops would believe addresses outside of trusted_cidrs; remove trusted_hops, and list all proxies in trusted_cidrs`,
		applies: func(l Listener, p ListenerProperties) bool {
			return !p.TCP && len(l.ClientAddress.TrustedCIDRs) > 0 && l.ClientAddress.TrustedHops.Uint32() > 0
		},
	},
	{
		Doc:     "`client_address.trusted_cidrs` with all addresses (`0.0.0.0/0`, `::/0`) and without `header`, on an http, http2 or grpc listener",
		Setting: "client_address.trusted_cidrs",
		Reason: `if every address is that of a proxy, the client is the first address of X-Forwarded-For, which every client can write; ` +
			`list the addresses of your proxies, or use trusted_hops`,
		applies: func(l Listener, p ListenerProperties) bool {
			c := l.ClientAddress
			return !p.TCP && !c.HasHeader() && slices.ContainsFunc(c.TrustedCIDRs, func(n netip.Prefix) bool { return n.Bits() == 0 })
		},
	},
	{
		Doc:     "`client_address.header` without `client_address.trusted_cidrs`, on an http, http2 or grpc listener",
		Setting: "client_address.header",
		Reason:  `without trusted_cidrs, every client could send the header; set trusted_cidrs to the addresses of the CDN`,
		applies: func(l Listener, p ListenerProperties) bool {
			return !p.TCP && l.ClientAddress.HasHeader() && len(l.ClientAddress.TrustedCIDRs) == 0
		},
	},
	{
		Doc:     "`client_address.header` that one of `proxy_protocol.tlvs` has, too, on an http, http2 or grpc listener",
		Setting: "client_address.header",
		Reason:  `a value of the PROXY header replaces this header before it is read; use another header in proxy_protocol.tlvs`,
		applies: func(l Listener, p ListenerProperties) bool {
			return !p.TCP && l.ProxyProtocol.Enabled() && l.ClientAddress.HasHeader() &&
				slices.ContainsFunc(l.ProxyProtocol.TLVs, func(t TLV) bool { return t.Header == l.ClientAddress.Header })
		},
	},
	{
		Doc:     "`fail_closed = \"yes\"` without `client_address.header`, on an http, http2 or grpc listener",
		Setting: "client_address.fail_closed",
		Reason:  `there is no header that a request could lack; set header, or remove fail_closed`,
		applies: func(l Listener, p ListenerProperties) bool {
			return !p.TCP && l.ClientAddress.FailClosed == Yes && !l.ClientAddress.HasHeader()
		},
	},
	{
		Doc:     "`forwarded_proto = \"proxy_protocol\"` with `mode = \"off\"`, on an http, http2 or grpc listener",
		Setting: "client_address.forwarded_proto",
		Reason: `with mode "off", no PROXY header says whether the client uses TLS; ` +
			`use proxy_protocol.mode "strict" or "permissive", or another forwarded_proto`,
		applies: func(l Listener, p ListenerProperties) bool {
			return !p.TCP && !l.ProxyProtocol.Enabled() && l.ClientAddress.ForwardedProto.Type == ForwardedProtoTLV
		},
	},
	{
		Doc: "`xff = \"keep\"` with `forwarded_proto = { https_ports = [443] }` or `\"proxy_protocol\"`, or with `\"trust\"` and without `client_address.trusted_cidrs`, " +
			"where there are no `trusted_hops`, on an http, http2 or grpc listener",
		Setting: "client_address.xff",
		Reason:  `Envoy takes X-Forwarded-Proto from a request only if the client's address is in X-Forwarded-For; use "append", or remove forwarded_proto`,
		applies: func(l Listener, p ListenerProperties) bool {
			c := l.ClientAddress
			by := c.ForwardedProto.Type
			byRequest := by == ForwardedProtoPorts || by == ForwardedProtoTLV || by == ForwardedProtoTrust && len(c.TrustedCIDRs) == 0
			return !p.TCP && c.XFF == XFFKeep && byRequest && c.TrustedHops.Uint32() == 0
		},
	},
}

// Check returns why a listener with these properties refuses the settings; nil if it does not.
func (l Listener) Check(p ListenerProperties) *RefusedError {
	for _, c := range Conflicts {
		if c.applies(l, p) {
			return &RefusedError{Setting: c.Setting, Reason: strings.ReplaceAll(c.Reason, "VERSION", string(p.BalancerVersion))}
		}
	}
	return nil
}

// TrustsAll reports whether the PROXY headers of every address are believed.
func (p ProxyProtocol) TrustsAll() bool {
	for _, all := range AnyNetwork {
		if !slices.Contains(p.TrustedCIDRs, all) {
			return false
		}
	}
	return true
}

// Enabled reports whether the listener looks for PROXY headers.
func (p ProxyProtocol) Enabled() bool { return p.Mode != Off }

// IsCustom reports whether a setting departs from Consul's own gateway in where the client's address comes from. That of
// X-Forwarded-Port changes nothing else.
func (c ClientAddress) IsCustom() bool {
	return c.XFF != XFFDefault || c.trustsProxies() || c.ForwardedProto.Type != ForwardedProtoDefault
}

// trustsProxies reports whether what some proxies say about the client is believed.
func (c ClientAddress) trustsProxies() bool {
	return len(c.TrustedCIDRs) > 0 || c.TrustedHops.Uint32() > 0
}

// HasHeader reports whether a header names the client.
func (c ClientAddress) HasHeader() bool { return isHeader(c.Header) }
