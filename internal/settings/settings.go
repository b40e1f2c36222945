// Package settings is the language of Usher's own settings: the key "usher" of Consul's opaque configs and of the
// file given with --config.
//
//	raw value ──Decode──> Settings ──Layer──> Resolve(port, layers…) ──> Listener
//
// One table (Groups) holds every setting: its key, the values it accepts, its default and its documentation.
// Decoding, merging, messages and docs/settings.md follow from it.
package settings

import (
	"net/netip"
	"slices"

	"github.com/usherproxy/usher/internal/problem"
)

// Key is the key of Usher's settings inside an opaque config of Consul's (proxy-defaults' Config, a gateway's
// Proxy.Config).
const Key = "usher"

// Settings are the settings of one layer. The zero value sets nothing and leaves every setting to a more general layer.
type Settings struct {
	Listener
	// Listeners holds, by port, the settings of single listeners.
	Listeners map[int]Listener
}

// Listener holds the settings of one listener. The table of settings (Groups) has the values and meaning of each
// field. In a layer, a field with its zero value is not set. No setting has a zero value with a meaning, because
// Consul loses zero values when it merges proxy-defaults into a registration.
type Listener struct {
	ProxyProtocol ProxyProtocol
	ClientAddress ClientAddress
	AccessLog     AccessLog
}

// ProxyProtocol is how a listener treats PROXY protocol headers
// (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt).
type ProxyProtocol struct {
	Mode     Mode
	Versions []Version // sorted
	// TrustedCIDRs are the networks whose PROXY headers are believed, masked, and without IPv4 addresses mapped into IPv6.
	TrustedCIDRs      []netip.Prefix
	TLVs              []TLV // empty and not nil: none
	Upstream          Upstream
	UpstreamTLVs      []uint8 // the types that Upstream hands on, sorted; empty and not nil: none
	ServerSpeaksFirst YesNo
}

// ClientAddress is how a listener treats request headers that name the client.
type ClientAddress struct {
	XFF XFF
	// TrustedCIDRs are the networks of HTTP proxies that are believed, as those of ProxyProtocol; empty and not nil: none.
	TrustedCIDRs   []netip.Prefix
	Header         string // in which those proxies name the client, in lower case, or NoHeader
	FailClosed     YesNo  // a request of those proxies without the header is refused
	TrustedHops    HopCount
	ForwardedProto ForwardedProto
	ForwardedPort  ForwardedPort
}

// Mode says which connections a listener accepts.
type Mode string

// The modes.
const (
	// Auto follows the load balancer's settings. A listener always has one of the other modes.
	Auto       Mode = "auto"
	Off        Mode = "off"        // Consul's own listener: PROXY headers are not looked for
	Permissive Mode = "permissive" // with a PROXY header or without one
	Strict     Mode = "strict"     // with a PROXY header only
)

// Version is a version of the PROXY protocol.
type Version string

// The versions.
const (
	V1 Version = "v1" // a line of text
	V2 Version = "v2" // binary, with TLVs
)

// Upstream is the version of the PROXY header that a tcp service gets.
type Upstream string

// The versions of the PROXY header for a tcp service.
const (
	UpstreamNone Upstream = "none"
	UpstreamV1   Upstream = "v1"
	UpstreamV2   Upstream = "v2"
)

// YesNo is yes or no.
type YesNo string

// The answers.
const (
	Yes YesNo = "yes"
	No  YesNo = "no"
)

// XFF is how a listener changes the X-Forwarded-For of requests.
type XFF string

// The changes to X-Forwarded-For.
const (
	XFFDefault   XFF = "default"   // append where PROXY protocol is on, else as Consul's own gateway
	XFFAppend    XFF = "append"    // add the client's address
	XFFKeep      XFF = "keep"      // leave the header as it was sent
	XFFOverwrite XFF = "overwrite" // replace the header by the client's address
)

// HopCount is a number of proxies in front of the gateway.
type HopCount int

// NoHops is the word "none".
const NoHops HopCount = -1

// Uint32 returns the number of proxies.
func (h HopCount) Uint32() uint32 { return uint32(max(0, h)) }

// ForwardedProto is where X-Forwarded-Proto comes from.
type ForwardedProto struct {
	Type ForwardedProtoType
	// HTTPSPorts are the ports that clients reach with https; of ForwardedProtoPorts.
	HTTPSPorts []uint32
}

// ForwardedProtoType is what decides about X-Forwarded-Proto.
type ForwardedProtoType string

// What decides about X-Forwarded-Proto.
const (
	ForwardedProtoDefault    ForwardedProtoType = "default"    // trust with trusted hops, else connection
	ForwardedProtoConnection ForwardedProtoType = "connection" // whether the connection to the gateway has TLS
	ForwardedProtoTrust      ForwardedProtoType = "trust"      // the request
	ForwardedProtoPorts      ForwardedProtoType = "ports"      // the port that the client connected to
	// ForwardedProtoTLV: the TLV of SSLType, in which the load balancer says whether the client uses TLS.
	ForwardedProtoTLV ForwardedProtoType = "proxy_protocol"
)

// ForwardedPort is where X-Forwarded-Port comes from.
type ForwardedPort string

// What decides about X-Forwarded-Port.
const (
	ForwardedPortDefault    ForwardedPort = "default"    // the request, as with Consul's own gateway
	ForwardedPortConnection ForwardedPort = "connection" // the port that the client connected to
	ForwardedPortTrust      ForwardedPort = "trust"      // the trusted hops, or else the port that the client connected to
)

// Layer is one place that settings come from, with its last valid content. The zero value sets nothing.
type Layer struct {
	Settings Settings
	// NeverValid means that the layer is invalid and never was valid, so that its settings are not known. Listeners
	// that depend on it must not be built.
	NeverValid bool

	// Where names the layer in messages, such as "usher.hcl:3" or a config entry. It is empty if Places say it, and for the
	// zero value.
	Where string
	At    problem.Position // of its beginning, if it is a block of the config file
	// Places are where the settings are in a file, by their paths, such as "listeners.8080.proxy_protocol.mode". It has
	// none of a layer that is not in a file.
	Places map[string]problem.Position

	valid bool // Settings are those of the last valid content
	raw   any  // the last valid content as it was written
}

// Update returns the layer after its content became raw, the value of the key "usher" (nil if it is absent). where
// names the layer in problems. If raw is invalid, the problems say why, and the layer keeps its last valid settings;
// without any, it is NeverValid.
func (l Layer) Update(where string, raw any) (Layer, []problem.Problem) {
	s, problems := Decode(where, raw)
	switch {
	case len(problems) == 0:
		return Layer{Settings: s, Where: where, valid: true, raw: raw}, nil
	case l.valid:
		return l, problems
	default:
		return Layer{NeverValid: true}, problems
	}
}

// File is the content of Usher's config file: a layer for every gateway, one for each gateway that the file names,
// and the file's problems.
type File struct {
	All      Layer
	Gateways map[string]Layer // by gateway name
	Problems []problem.Problem
}

// Resolve returns the settings of the listener on a port. The layers are ordered from general to specific. Each
// setting comes from the most specific layer that sets it for this listener, else from the most specific one that
// sets it for all listeners, else it has its default.
//
// known is false if a layer is NeverValid: it could set anything for this listener.
func Resolve(port int, layers ...Layer) (l Listener, known bool) {
	if !allKnown(layers) {
		return Listener{}, false
	}
	all := candidates(port, layers)
	for _, group := range Groups {
		for _, s := range group.Settings {
			s.copy(&l, s.firstOf(all).Listener)
		}
	}
	return l, true
}

// allKnown reports whether no layer is NeverValid.
func allKnown(layers []Layer) bool {
	return !slices.ContainsFunc(layers, func(l Layer) bool { return l.NeverValid })
}
