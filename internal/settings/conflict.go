package settings

import (
	"errors"
	"slices"
)

// ListenerProperties is what of a listener its policy has to agree with.
type ListenerProperties struct {
	TCP bool // its service gets connections and not requests
	TLS bool // clients begin with a TLS handshake
	// PreservesClientIP says that a balancer keeps the clients' addresses on its
	// connections.
	PreservesClientIP bool
	BalancerVersion   Version // the version that a balancer sends; "" if that is not known
}

// Conflict is a combination of settings that a listener refuses.
type Conflict struct {
	Doc     string // as documentation has it
	Reason  string // one line: what is wrong and what to do
	applies func(Listener, ListenerProperties) bool
}

// Conflicts are all combinations that are refused.
var Conflicts = []Conflict{
	{
		Doc: "`mode = \"permissive\"` with one of the `versions`, on a tcp listener",
		Reason: `usher.proxy_protocol.versions: with mode "permissive" a header of the version that is left out would reach the service as data; ` +
			`use ["v1", "v2"], or mode "strict"`,
		applies: func(p Listener, t ListenerProperties) bool {
			return t.TCP && p.ProxyProtocol.Mode == Permissive && len(p.ProxyProtocol.Versions) < 2
		},
	},
	{
		Doc: "`versions` without the one that the load balancer sends (where its Service in Kubernetes tells)",
		Reason: `usher.proxy_protocol.versions: the load balancer sends the version that is left out, so that every connection of its would be closed; ` +
			`add it, or leave the setting out`,
		applies: func(p Listener, t ListenerProperties) bool {
			return p.ProxyProtocol.Enabled() && t.BalancerVersion != "" && !slices.Contains(p.ProxyProtocol.Versions, t.BalancerVersion)
		},
	},
	{
		Doc: "`trusted_cidrs` other than `\"any\"` behind a load balancer that keeps the clients' addresses (`preserve_client_ip.enabled=true`)",
		Reason: `usher.proxy_protocol.trusted_cidrs: the load balancer keeps the clients' addresses on its connections, so that none of them would be trusted; ` +
			`add preserve_client_ip.enabled=false to the Service's annotation service.beta.kubernetes.io/aws-load-balancer-target-group-attributes, or use trusted_cidrs "any"`,
		applies: func(p Listener, t ListenerProperties) bool {
			return t.PreservesClientIP && p.ProxyProtocol.Enabled() && !p.ProxyProtocol.TrustsAll()
		},
	},
	{
		Doc: "`server_speaks_first = \"yes\"` with `mode = \"permissive\"` or `\"strict\"`, on a tcp listener without TLS",
		Reason: `usher.proxy_protocol.server_speaks_first: Envoy waits for a PROXY header or other first bytes of the client, and this client waits for the server; ` +
			`use mode "off", or, if your balancer sends the header by itself as soon as it connects, server_speaks_first "no" and mode "strict"`,
		applies: func(p Listener, t ListenerProperties) bool {
			return t.TCP && !t.TLS && p.ProxyProtocol.ServerSpeaksFirst == Yes && p.ProxyProtocol.Mode != Off
		},
	},
	{
		Doc: "`xff = \"overwrite\"` with `trusted_hops`, on an http, http2 or grpc listener",
		Reason: `usher.client_address.xff: "overwrite" throws away what the trusted hops have written; ` +
			`use "append", or trusted_hops "none"`,
		applies: func(p Listener, t ListenerProperties) bool {
			return !t.TCP && p.ClientAddress.XFF == XFFOverwrite && p.ClientAddress.TrustedHops.Uint32() > 0
		},
	},
}

// Check says which combination of the policy a listener with this traffic
// refuses.
func (p Listener) Check(t ListenerProperties) error {
	for _, c := range Conflicts {
		if c.applies(p, t) {
			return errors.New(c.Reason)
		}
	}
	return nil
}

// TrustsAll says whether the headers of every peer are believed.
func (p ProxyProtocol) TrustsAll() bool {
	for _, all := range AnyNetwork {
		if !slices.Contains(p.TrustedCIDRs, all) {
			return false
		}
	}
	return true
}

// On says whether PROXY headers are looked for.
func (p ProxyProtocol) Enabled() bool { return p.Mode != Off }

// On says whether any setting departs from what Consul's own gateway does.
func (c ClientAddress) IsCustom() bool {
	return c.XFF != XFFDefault || c.TrustedHops.Uint32() > 0 || c.ForwardedProto.Type != ForwardedProtoDefault
}
