package xds

import "github.com/envoyproxy/go-control-plane/pkg/resource/v3"

// Type is a kind of resource. The values are in push order: what a resource
// refers to comes before it.
type Type uint8

// The types that are served.
const (
	Secret Type = iota
	// TokenBucket says how often something may happen, such as an entry in an
	// access log. Its messages have no names of their own.
	TokenBucket
	Cluster
	Endpoint
	Listener
	Route
)

// NumTypes is the number of types; every Type is less than it.
const NumTypes = 6

// dependencies are the types that listeners and routes need, in push order.
var dependencies = []Type{Secret, TokenBucket, Cluster, Endpoint}

var typeURLs = [NumTypes]string{
	Secret:      resource.SecretType,
	TokenBucket: "type.googleapis.com/envoy.type.v3.TokenBucket",
	Cluster:     resource.ClusterType,
	Endpoint:    resource.EndpointType,
	Listener:    resource.ListenerType,
	Route:       resource.RouteType,
}

// URL is the type's name in requests and responses.
func (t Type) URL() string { return typeURLs[t] }

// String gives a short lower-case name, as used in logs and metrics.
func (t Type) String() string {
	return [NumTypes]string{"secret", "token_bucket", "cluster", "endpoint", "listener", "route"}[t]
}

// typeOf finds the type of a URL; false when it is none that is served.
func typeOf(url string) (Type, bool) {
	for t, known := range typeURLs {
		if known == url {
			return Type(t), true
		}
	}
	return 0, false
}

// child is the type whose resources a resource of t names, so that Envoy waits
// for them again whenever the parent changes.
func (t Type) child() (Type, bool) {
	switch t {
	case Cluster:
		return Endpoint, true
	case Listener:
		return Route, true
	default:
		return 0, false
	}
}

// isNamed says whether a message of the type has its name in itself.
func (t Type) isNamed() bool { return t != TokenBucket }

// isFullState says whether a state-of-the-world response of the type lists
// everything, so that leaving a name out removes it.
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#grouping-resources-into-responses
func (t Type) isFullState() bool { return t == Cluster || t == Listener }
