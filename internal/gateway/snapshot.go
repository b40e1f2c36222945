// Package gateway is the model: everything that is known about one ingress gateway at one moment, as plain immutable
// values.
//
//	consul, configdir ──Snapshot──> listeners.Compiler ──Resources──> xds ──> Envoy
//
// A source builds a new Snapshot for each change and never modifies one that it has published. A part that did not
// change keeps its pointer, so equal pointers mean equal content. The package knows no Consul client, no protobuf,
// no context and no lock. The settings in the key "usher" are in package settings.
//
// Entry, Chain and the types below them carry the names of Consul's own JSON, so that an answer of Consul's HTTP API
// decodes straight into them. They are our own types because consul/api's lose fields that the JSON has (a target's
// Peer, a split's header modifiers, a resolver's request timeout).
package gateway

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/ordered"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// ID names an ingress gateway: the name its instances are registered under. Namespace and Partition are Consul
// Enterprise's; empty means the default one.
type ID struct{ Name, Namespace, Partition string }

// String returns the name alone in the default namespace and partition, and "partition/namespace/name" in others.
func (id ID) String() string {
	if id.Namespace == "" && id.Partition == "" {
		return id.Name
	}
	return OrDefault(id.Partition) + "/" + OrDefault(id.Namespace) + "/" + id.Name
}

// ParseID parses what String returns. It reports whether the text has one of its two forms.
func ParseID(text string) (id ID, ok bool) {
	parts := strings.Split(text, "/")
	if slices.Contains(parts, "") {
		return ID{}, false
	}
	switch len(parts) {
	case 1:
		return ID{Name: text}, true
	case 3:
		return ID{Name: parts[2], Namespace: OmitDefault(parts[1]), Partition: OmitDefault(parts[0])}, true
	}
	return ID{}, false
}

// Snapshot is everything known of one gateway at one moment. A source publishes one only when its parts agree: every
// row of Services has its listener in Entry.
//
// If a key is absent from Chains, Endpoints, MeshGateways or Peers, its value is not known: the source has never
// read it. Usher holds back the resources that need it, so that an Envoy keeps those that it has. If the source
// knows that there is nothing, the value is present and empty.
type Snapshot struct {
	ID         ID
	Datacenter string // the local datacenter; never empty
	// DualStack means that Consul's agent has an IPv6 address: an instance that is registered without an address
	// then listens on "::" instead of "0.0.0.0".
	DualStack bool
	// NormalizePath means that Consul's agent is of 2.0 or later: Envoys then route by paths without "." and "..".
	NormalizePath bool

	// Entry is the gateway's ingress-gateway config entry. Nil means that there is none, and the gateway has no listeners.
	Entry *Entry
	// Services are the rows of gateway-services: the entry's services with wildcards expanded, sorted by Port and
	// then Service. A service that ACLs hide from the source has a row here, too.
	Services []Service
	// Chains holds the compiled discovery chains of the rows in Services.
	Chains map[ServiceName]*Chain
	// Endpoints holds the instances of the chains' targets, by Target.ID.
	Endpoints ordered.Map[*Endpoints]
	// MeshGateways holds, by MeshGatewayKey, the mesh gateways for traffic to another datacenter or partition.
	MeshGateways map[string]*Endpoints
	// Peers holds, by name, the roots of the cluster peers that targets are in. If a peer has sent no certificates
	// yet, its value is empty.
	Peers map[string]*Roots

	Mesh  *Mesh  // the mesh config entry; nil when there is none
	Roots *Roots // nil in plain mode
	Leaf  *Leaf  // towards the mesh; nil in plain mode
	// DownstreamLeaf is the certificate for clients of listeners with TLS.Enabled, with DNS names; nil while there
	// is none, or if no listener needs one.
	DownstreamLeaf *Leaf

	// Plain means that upstreams speak plain text: there is no service mesh and no certificate (file mode). Roots,
	// Leaf and DownstreamLeaf are nil then.
	Plain bool

	// FileAll holds the settings of the config file for every gateway, ProxyDefaults those of proxy-defaults, and
	// FileGateway those of the config file for this gateway.
	FileAll, ProxyDefaults, FileGateway settings.Layer

	// Balancers holds the load balancers by their Kubernetes Services. A Service that has not been read yet is
	// absent. Nil means that Usher does not watch Services.
	Balancers map[KubernetesService]*Balancer

	// Instances are the registered instances, sorted by Node and ServiceID.
	Instances []*Instance

	// Problems found while reading: bad settings, unreadable parts.
	Problems []problem.Problem

	// Restored is when the oldest part was saved that comes from the state directory, because the source has not answered
	// since Usher started. Zero: every part is from the source.
	Restored time.Time
	// Keep is what an Envoy that serves keeps of what it has, because a restored part may be older.
	Keep Keep
}

// Keep is which resources of an Envoy a snapshot must not change.
type Keep int

// Keep values.
const (
	KeepNothing       Keep = iota
	KeepConfiguration      // all but endpoints: what they follow from is not restored
	KeepAll
)

// MeshGatewayKey names a partition of a datacenter as Consul does: "dc1" is the default partition, and "east.dc1"
// the partition east.
func MeshGatewayKey(datacenter, partition string) string {
	if OmitDefault(partition) == "" {
		return datacenter
	}
	return partition + "." + datacenter
}

// ServiceName names a service of the catalog. Empty Namespace and Partition mean the default ones.
type ServiceName struct{ Name, Namespace, Partition string }

// String returns the name alone in the default namespace and partition.
func (n ServiceName) String() string { return ID(n).String() }

// Service is one row of gateway-services: a service on a listener of the gateway.
type Service struct {
	Service      ServiceName
	Port         int
	Protocol     string   // the listener's: tcp, http, http2 or grpc
	Hosts        []string // empty: the default domain of the service
	FromWildcard bool     // the row comes from a "*" service of the entry
}

// Instance is one registered instance of the gateway. Several instances may have the same ServiceID on different nodes.
type Instance struct {
	Node, NodeAddress string // the name and address of its node
	ServiceID         string
	Address           string // the service's own; empty means all addresses
	Port              int    // of the ready listener, not of the gateway's listeners
	TaggedAddresses   map[string]Address
	Kubernetes        KubernetesService // the Service in front of it

	Config       ProxyConfig
	AccessLogs   AccessLogs
	AccessLogsAt problem.Position // where AccessLogs is; the zero value if it is not in a file
	// Registration holds the settings of this instance's registration, without those that it inherits from proxy-defaults.
	Registration settings.Layer
}

// Address is an IP address or host name with a port; port 0 means none.
type Address struct {
	Address string
	Port    int
}

// ProxyConfig holds the keys of a gateway's opaque Proxy.Config that Consul honours for ingress gateways
// (https://developer.hashicorp.com/consul/docs/reference/proxy/envoy#gateway-options). The keys that start with
// envoy_mesh_gateway_ are older names of the same.
type ProxyConfig struct {
	NoDefaultBind       bool
	BindTaggedAddresses bool
	BindAddresses       map[string]Address
	// FetchTimeout is xds_fetch_timeout_ms: how long Envoy waits for a route configuration or a load assignment; nil
	// leaves Envoy's default (15 s).
	FetchTimeout *time.Duration
	// MaxRequestHeadersKB limits the headers of a request; 0 leaves Envoy's default (60 KiB).
	MaxRequestHeadersKB uint32
}

// AccessLogs is proxy-defaults' AccessLogs
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/proxy-defaults#accesslogs). The zero value
// means no access logs.
type AccessLogs struct {
	Enabled             bool
	DisableListenerLogs bool
	Type                string // "", stdout, stderr or file; "" means stdout
	Path                string // of Type file
	JSONFormat          string // wins over TextFormat
	TextFormat          string
}

// Endpoints are the instances of one chain target, or the mesh gateways of one datacenter, sorted by address.
type Endpoints struct{ Endpoints []Endpoint }

// Endpoint is one instance of a service, seen through its sidecar.
type Endpoint struct {
	NodeDatacenter  string
	NodePartition   string // empty: the default one
	NodeAddress     string
	NodeWANAddress  string // the node's tagged address "wan"; empty: none
	Address         string // empty: the node's
	Port            int
	TaggedAddresses map[string]Address
	Status          Status
	Weights         Weights
	Peer            *PeerMeta // of an instance that was imported from a cluster peer
}

// Status is the worst status among an instance's checks.
type Status uint8

// The statuses from best to worst; the zero value means that every check passes, or that there is none.
const (
	Passing Status = iota
	Warning
	Critical
)

// Weights are an instance's load balancing weights by its status. Zero means not set.
type Weights struct{ Passing, Warning int }

// PeerMeta is how to reach and verify an instance imported from a cluster peer.
type PeerMeta struct {
	SNI, SpiffeID []string
	Protocol      string
}

// Roots are the root certificates of a mesh: the gateway's own, or a cluster peer's, whose TrustDomain is empty if
// it is not known.
type Roots struct {
	TrustDomain string
	PEMs        []string // in Consul's order; the active root is among them
}

// Leaf is a certificate of the gateway's in the mesh, with its key.
type Leaf struct {
	CertPEM     string
	KeyPEM      Secret
	ValidAfter  time.Time
	ValidBefore time.Time
	// Names are the DNS names in it, sorted. Those in the mesh's own domains are wildcards: "*.ingress.consul".
	Names []string
}

// Secret is text that must not be printed. It formats as its length.
type Secret string

// String hides the text.
func (s Secret) String() string { return "secret of " + strconv.Itoa(len(s)) + " bytes" }

// GoString hides the text.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the text.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the text, in every encoding that asks for one.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ListenerSettings returns the settings of the listener that an instance has on a port. Its mode is never Auto, but
// the mode that Auto stands for. known is false while the settings or that mode are not known.
func (s *Snapshot) ListenerSettings(in *Instance, port int) (l settings.Listener, known bool) {
	l, known = s.resolve(in, port)
	if known && l.ProxyProtocol.Mode == settings.Auto {
		l.ProxyProtocol.Mode = s.BalancerOf(in).ForPort(port).Mode
		if s.OnlyTrusted(in, port) && l.ProxyProtocol.TrustsAll() {
			l.ProxyProtocol.Mode = settings.Off
		}
		known = l.ProxyProtocol.Mode != ""
	}
	return l, known
}

// OnlyTrusted reports whether an instance's listener follows a load balancer that sends headers which its settings do not
// switch on (PortState.OnlyTrusted). If the listener's other settings do not allow the mode, it is Off.
func (s *Snapshot) OnlyTrusted(in *Instance, port int) bool {
	return s.FollowsService(in, port) && s.BalancerOf(in).ForPort(port).OnlyTrusted
}

// PlaceOfMode returns where the mode of an instance's listener is set: in a layer, or in its Service.
func (s *Snapshot) PlaceOfMode(in *Instance, port int) string {
	if s.FollowsService(in, port) {
		return in.Kubernetes.String()
	}
	_, place, _ := s.ModeSetting(in, port)
	return place
}

// ModeSetting returns the mode that is set for an instance's listener, which may be Auto, and where: in a layer, or "the
// default". known is false while the settings are not known.
func (s *Snapshot) ModeSetting(in *Instance, port int) (mode settings.Mode, place string, known bool) {
	return s.ModeSettings(in)(port)
}

// ModeSettings is ModeSetting for many ports of an instance.
func (s *Snapshot) ModeSettings(in *Instance) func(port int) (mode settings.Mode, place string, known bool) {
	layers := s.layers(in)
	return func(port int) (mode settings.Mode, place string, known bool) {
		mode, place, known = settings.ModeOf(port, layers...)
		return mode, cmp.Or(place, "the default"), known
	}
}

// PlaceOf returns where a setting of an instance's listener is set (see settings.PlaceOf).
func (s *Snapshot) PlaceOf(in *Instance, port int, setting string) settings.Place {
	return settings.PlaceOf(setting, port, s.layers(in)...)
}

// FollowsService reports whether the mode of an instance's listener is that of its Service in Kubernetes.
func (s *Snapshot) FollowsService(in *Instance, port int) bool {
	if s.Balancers == nil || in.Kubernetes == (KubernetesService{}) {
		return false
	}
	mode, _, known := s.ModeSetting(in, port)
	return known && mode == settings.Auto
}

// resolve merges the layers of settings, from the most general to the most specific.
func (s *Snapshot) resolve(in *Instance, port int) (l settings.Listener, known bool) {
	return settings.Resolve(port, s.layers(in)...)
}

// KnowsSettings reports whether the settings of an instance are known: none of their layers has always been invalid.
func (s *Snapshot) KnowsSettings(in *Instance) bool {
	_, known := s.resolve(in, 0)
	return known
}

// The layers of settings in Snapshot.ExplainListener.
const (
	LayerFileAll = iota
	LayerProxyDefaults
	LayerRegistration
	LayerFileGateway
)

func (s *Snapshot) layers(in *Instance) []settings.Layer {
	return []settings.Layer{LayerFileAll: s.FileAll, LayerProxyDefaults: s.ProxyDefaults, LayerRegistration: in.Registration, LayerFileGateway: s.FileGateway}
}

// ExplainListener returns where each setting of the listener that an instance has on a port comes from. The layers are those
// above.
func (s *Snapshot) ExplainListener(in *Instance, port int) []settings.Origin {
	return settings.Explain(port, s.layers(in)...)
}

// EnvoyVersion is the release of an Envoy, from the node in the first request of a stream
// (user_agent_build_version). The zero value means that it is not known, and counts as newer than every release.
type EnvoyVersion struct{ Major, Minor, Patch uint32 }

// AtLeast reports whether e is the release major.minor or a later one.
func (e EnvoyVersion) AtLeast(major, minor uint32) bool {
	return e == (EnvoyVersion{}) || e.Major > major || e.Major == major && e.Minor >= minor
}

// String returns "1.36.2", or "unknown".
func (e EnvoyVersion) String() string {
	if e == (EnvoyVersion{}) {
		return "unknown"
	}
	return fmt.Sprintf("%d.%d.%d", e.Major, e.Minor, e.Patch)
}

// Envoy is what Usher knows of an Envoy itself. Equal ones get equal resources.
type Envoy struct {
	EnvoyVersion
	// ReportCluster is the cluster in its bootstrap that leads to Usher. Empty: it reports nothing about its listeners.
	ReportCluster string
}
