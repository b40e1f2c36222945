package settings

import (
	"net/netip"
	"slices"

	"github.com/usherproxy/usher/internal/problem"
)

// Key is the key of Usher's settings inside an opaque config of Consul's
// (proxy-defaults' Config, a gateway's Proxy.Config).
const Key = "usher"

// Settings are Usher's own settings as one source says them. The zero value
// says nothing, and leaves every setting to a more general source.
type Settings struct {
	Listener
	// Listeners holds, by port, what the source says of single listeners.
	Listeners map[int]Listener
}

// Listener says for one listener who may tell who the client is, who is told, and
// what is logged.
// What may stand in each field, and what it means, is in the table of settings
// (schema), from which docs/settings.md is written. In what a source says, the
// zero value of a field says nothing; no other zero value has a meaning,
// because Consul's merge of proxy-defaults into a registration loses them.
type Listener struct {
	ProxyProtocol ProxyProtocol
	ClientAddress ClientAddress
	AccessLog     AccessLog
}

// ProxyProtocol is the policy towards PROXY protocol headers
// (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt).
type ProxyProtocol struct {
	Mode     Mode
	Versions []Version // sorted
	// TrustedCIDRs are the peers whose headers are believed, masked, and
	// without IPv4 addresses mapped into IPv6.
	TrustedCIDRs []netip.Prefix
	// TLVs are not nil where a source says that there are none.
	TLVs              []TLV
	Upstream          Upstream
	ServerSpeaksFirst YesNo
}

// ClientAddress is the policy towards the headers with which those in front of
// the gateway tell who the client is.
type ClientAddress struct {
	XFF            XFF
	TrustedHops    HopCount
	ForwardedProto ForwardedProto
}

// Mode says which connections a listener takes.
type Mode string

// The modes.
const (
	// Auto is what the balancer in front was told; a listener is one of the others.
	Auto       Mode = "auto"
	Off        Mode = "off"        // Consul's own listener: no header is looked for
	Permissive Mode = "permissive" // with a header or without one
	Strict     Mode = "strict"     // with a header, and nothing else
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

// What a tcp service gets.
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

// XFF says what becomes of the request's X-Forwarded-For.
type XFF string

// What becomes of X-Forwarded-For.
const (
	XFFDefault   XFF = "default"   // append where PROXY protocol is on, else as Consul has it
	XFFAppend    XFF = "append"    // the client's address is put behind what there is
	XFFOverwrite XFF = "overwrite" // the client's address is all there is
)

// Hops is a number of proxies in front of the gateway; NoHops says that there
// are none.
type HopCount int

// NoHops is the word "none".
const NoHops HopCount = -1

// Count gives the number of proxies.
func (h HopCount) Uint32() uint32 { return uint32(max(0, h)) }

// ForwardedProto says where X-Forwarded-Proto comes from.
type ForwardedProto struct {
	Type ForwardedProtoType
	// HTTPSPorts are the ports that clients reach with https; of ForwardedProtoPorts.
	HTTPSPorts []uint32
}

// ProtoSource is what X-Forwarded-Proto follows from.
type ForwardedProtoType string

// The sources of X-Forwarded-Proto.
const (
	ForwardedProtoDefault    ForwardedProtoType = "default"    // trust where there are trusted hops, else connection
	ForwardedProtoConnection ForwardedProtoType = "connection" // TLS or none, on the connection to the gateway
	ForwardedProtoTrust      ForwardedProtoType = "trust"      // what the request says
	ForwardedProtoPorts      ForwardedProtoType = "ports"      // the port that the client connected to
)

// Layer is one source of settings with its memory: a bad source counts with
// its last good content. The zero value is a source that says nothing.
type Layer struct {
	Settings Settings
	// Unknown says that the source is bad and never was good, so that nobody
	// knows what it wants: what depends on it must not be built.
	NeverValid bool

	valid bool // Settings are what the source said when it was last good
}

// Next gives the layer after the source's content became raw, the value of
// the key "usher", nil when it is absent. where names the source in problems.
// If raw is bad, the problems say why, and the layer keeps its last good
// settings or, without any, is Unknown.
func (l Layer) Update(where string, raw any) (Layer, []problem.Problem) {
	s, problems := Decode(where, raw)
	switch {
	case len(problems) == 0:
		return Layer{Settings: s, valid: true}, nil
	case l.valid:
		return l, problems
	default:
		return Layer{NeverValid: true}, problems
	}
}

// Resolve gives the policy of the listener on a port when the layers are laid
// over each other, the most general first. Each setting is taken from the most
// special layer that says it of this listener, or else from the most special
// one that says it of all listeners; what nobody says has its initial value.
//
// known is false where a layer is Unknown: it may say of this listener what no
// other layer can overrule.
func Resolve(port int, layers ...Layer) (p Listener, known bool) {
	var said []*Listener // the most special first
	for i := range slices.Backward(layers) {
		if layers[i].NeverValid {
			return Listener{}, false
		}
		if own, ok := layers[i].Settings.Listeners[port]; ok {
			said = append(said, &own)
		}
	}
	for i := range slices.Backward(layers) {
		said = append(said, &layers[i].Settings.Listener)
	}
	for _, s := range schema {
		s.resolve(&p, said)
	}
	return p, true
}

// File is the content of Usher's config file: a layer for every gateway, one for
// each gateway that the file names, and the file's problems.
type File struct {
	All      Layer
	Gateways map[string]Layer // by gateway name
	Problems []problem.Problem
}
