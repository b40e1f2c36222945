package gateway

// Chain is a compiled discovery chain, in the form of the response to GET /v1/discovery-chain/<service>
// (https://developer.hashicorp.com/consul/api-docs/discovery-chain).
type Chain struct {
	ServiceName, Namespace, Partition, Datacenter string

	Protocol  string
	Default   bool
	StartNode string
	Nodes     map[string]*ChainNode
	Targets   map[string]*Target
}

// The types of a ChainNode.
const (
	NodeRouter   = "router"
	NodeSplitter = "splitter"
	NodeResolver = "resolver"
)

// ChainNode is one node of a chain; which fields are set follows from Type.
type ChainNode struct {
	Type         string
	Name         string
	Routes       []*ChainRoute // of a router
	Splits       []*ChainSplit // of a splitter
	Resolver     *Resolver     // of a resolver
	LoadBalancer *LoadBalancer // of a splitter or a resolver
}

// ChainRoute leads the requests that match to another node.
type ChainRoute struct {
	Definition *RouteDefinition
	NextNode   string
}

// RouteDefinition is one route of a service-router config entry.
type RouteDefinition struct {
	Match       *RouteMatch
	Destination *RouteDestination
}

// RouteMatch selects the requests of a route.
type RouteMatch struct{ HTTP *HTTPMatch }

// HTTPMatch matches HTTP requests; an empty one matches all.
type HTTPMatch struct {
	PathExact, PathPrefix, PathRegex string
	CaseInsensitive                  bool
	Header                           []HeaderMatch
	QueryParam                       []QueryMatch
	Methods                          []string
}

// HeaderMatch matches one request header.
type HeaderMatch struct {
	Name                         string
	Present                      bool
	Exact, Prefix, Suffix, Regex string
	Invert                       bool
}

// QueryMatch matches one query parameter.
type QueryMatch struct {
	Name         string
	Present      bool
	Exact, Regex string
}

// RouteDestination is where the requests of a route go, and how.
type RouteDestination struct {
	Service, ServiceSubset, Namespace, Partition string

	PrefixRewrite                   string
	RequestTimeout, IdleTimeout     Duration
	NumRetries                      uint32
	RetryOnConnectFailure           bool
	RetryOnStatusCodes              []uint32
	RetryOn                         []string
	RequestHeaders, ResponseHeaders *HeaderModifiers
}

// ChainSplit sends a share of the requests, in percent, to another node.
type ChainSplit struct {
	Definition *SplitDefinition
	Weight     float32
	NextNode   string
}

// SplitDefinition is one split of a service-splitter config entry.
type SplitDefinition struct{ RequestHeaders, ResponseHeaders *HeaderModifiers }

// Resolver leads to a target, and to others when that one fails.
type Resolver struct {
	Default                        bool
	ConnectTimeout, RequestTimeout Duration
	Target                         string // a key of Chain.Targets
	Failover                       *Failover
}

// Failover lists the targets to try next, in order.
type Failover struct {
	Targets []string
	Policy  FailoverPolicy
}

// FailoverPolicy is how failover chooses; Mode "" means sequential.
type FailoverPolicy struct {
	Mode    string
	Regions []string
}

// Target is a set of instances that a resolver can choose.
type Target struct {
	ID                                     string
	Service, ServiceSubset                 string
	Namespace, Partition, Datacenter, Peer string

	MeshGateway    MeshGatewayMode
	Subset         Subset
	ConnectTimeout Duration
	External       bool
	SNI, Name      string
}

// MeshGatewayMode decides whether traffic to another datacenter goes through mesh gateways: "", none, local or remote.
type MeshGatewayMode struct{ Mode string }

// Subset narrows the instances of a target.
type Subset struct {
	Filter      string
	OnlyPassing bool
}

// LoadBalancer is how requests are spread over a target's instances.
type LoadBalancer struct {
	Policy             string
	RingHashConfig     *RingHash
	LeastRequestConfig *LeastRequest
	HashPolicies       []HashPolicy
}

// RingHash bounds the ring of policy ring_hash.
type RingHash struct{ MinimumRingSize, MaximumRingSize uint64 }

// LeastRequest tunes policy least_request.
type LeastRequest struct{ ChoiceCount uint32 }

// HashPolicy is a part of a request that is hashed.
type HashPolicy struct {
	Field        string // header, cookie or query_parameter
	FieldValue   string
	CookieConfig *Cookie
	SourceIP     bool
	Terminal     bool
}

// Cookie is the cookie that a hash policy makes.
type Cookie struct {
	Session bool
	TTL     Duration
	Path    string
}
