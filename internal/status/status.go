// Package status is the model of what one Usher knows at one moment: its source, gateways, Envoys and problems, as plain
// values that are never modified. The admin port serves it as JSON at Path, and usher status prints it.
//
//	controlplane.Plane, Problems, xds.Server ──State──> GET /status ──> usher status, the status page
//
// It has no secrets: no resources, tokens, keys or headers.
package status

import (
	"time"

	"github.com/usherproxy/usher/internal/problem"
)

// Path is where the admin port serves a State.
const Path = "/status"

// State is what an Usher knows. Lists are sorted, and never nil.
type State struct {
	Time     time.Time `json:"time"` // of the state, by Usher's clock
	Usher    Usher     `json:"usher"`
	Source   Source    `json:"source"`
	Gateways []Gateway `json:"gateways"` // those that Usher watches, by name
	Envoys   []Envoy   `json:"envoys"`   // those that are connected, by gateway, service ID and address
	Problems []Problem `json:"problems"` // the worst first
	Changes  []Change  `json:"changes"`  // the last ones, the newest first
}

// Usher says which Usher this is, and whether it is ready.
type Usher struct {
	Version   string    `json:"version"`
	Commit    string    `json:"commit,omitempty"`
	GoVersion string    `json:"goVersion"` // of the Go that it is built with
	Started   time.Time `json:"started"`
	Ready     bool      `json:"ready"`            // what /readyz answers
	Reason    string    `json:"reason,omitempty"` // why it is not ready
	// Warnings are what /readyz answers besides, without the problems.
	Warnings []string `json:"warnings,omitempty"`
}

// The types of sources.
const (
	Consul = "consul"
	Files  = "files"
)

// Source is where Usher reads gateways.
type Source struct {
	Type    string `json:"type"` // Consul or Files
	Answers bool   `json:"answers"`
	// Address is the one of Consul's HTTP API that is in use; empty for files.
	Address string `json:"address,omitempty"`
	// Error says why it does not answer, and Since is when Usher found that first. Both are zero while it answers.
	Error string    `json:"error,omitempty"`
	Since time.Time `json:"since,omitzero"`
}

// Gateway is an ingress gateway that Usher watches: it has an Envoy here, had one a moment ago, or --gateway names it.
type Gateway struct {
	// Name is the name alone, or with Consul Enterprise "partition/namespace/name".
	Name string `json:"name"`
	// Known is whether the source has delivered the gateway. If it has not, the rest is zero.
	Known bool `json:"known"`
	// Entry is whether there is an ingress-gateway config entry. Without one, there are no listeners.
	Entry bool `json:"entry"`
	// Instances is how many instances are registered, and Envoys how many are connected to this Usher. Others can be
	// connected to other replicas, or get their configuration from Consul itself.
	Instances int `json:"instances"`
	Envoys    int `json:"envoys"`
	// Restored is when the oldest part was saved that Usher uses of its state directory, because the source has not answered
	// since Usher started. Zero: every part is from the source.
	Restored  time.Time  `json:"restored,omitzero"`
	Listeners []Listener `json:"listeners"` // by port
}

// Registered reports whether an instance of the gateway is registered.
func (g Gateway) Registered() bool { return g.Instances > 0 }

// Listener is a listener of those instances of a gateway that have an Envoy here; of all instances if none has. Instances
// whose listeners differ have one each, with the same port.
type Listener struct {
	Port     int    `json:"port"`
	Protocol string `json:"protocol"` // http, http2, grpc or tcp
	TLS      bool   `json:"tls"`
	Mode
	// Place says where Asked is set: file:line, a config entry, a registration, or "the default". Where each instance has its
	// own, it is that of the first.
	Place string `json:"place,omitempty"`
	// Instances are those with this listener. Nil: all that have an Envoy here, or if none has, all.
	Instances []Instance `json:"instances,omitempty"`
	// Settings are those that do not have their default, and the mode. Where each instance has its own, they are those of the
	// first.
	Settings []Setting `json:"settings,omitempty"`
	Services []Service `json:"services,omitempty"` // by name
}

// Setting is a setting of Usher for a listener.
type Setting struct {
	Setting string `json:"setting"` // such as "proxy_protocol.mode"
	// Value is what is written, in JSON, without secrets. Place says where, as Listener.Place does.
	Value string `json:"value"`
	Place string `json:"place"`
}

// Service is a service on a listener.
type Service struct {
	Name  string   `json:"name"`            // as Gateway.Name
	Hosts []string `json:"hosts,omitempty"` // nil: the default domain of the service
}

// Mode is the mode of a listener, and how it came to be. Equal ones are ==.
type Mode struct {
	// Asked is the proxy_protocol.mode that is set: auto, off, permissive or strict; empty while it is not known.
	Asked string `json:"asked,omitempty"`
	// InForce is the mode of the listener that Usher sends: off, permissive or strict. It is empty while it sends none: no
	// Envoy is connected here, or the listener is held back.
	InForce string `json:"inForce,omitempty"`
	// Unconfirmed means that an Envoy has not accepted that listener, or not yet: it may have another mode, or none. See
	// Envoy.Types.
	Unconfirmed bool `json:"unconfirmed,omitempty"`
	// Reason says why InForce is not Asked, such as what the load balancer does; empty if it is.
	Reason string `json:"reason,omitempty"`
	// GraceEnd is until when the listener accepts connections with and without a header, because its load balancer is
	// being switched. Zero: there is no such time.
	GraceEnd time.Time `json:"graceEnd,omitzero"`
	Built    Built     `json:"built"`
}

// Instance names a registered instance of a gateway.
type Instance struct {
	Node      string `json:"node"`
	ServiceID string `json:"serviceId"`
}

// Built says whether a listener could be built from its settings.
type Built string

// The results of building a listener.
const (
	Current  Built = "current"   // it is as its settings ask
	Kept     Built = "kept"      // it cannot be built; the last valid version of it stays
	HeldBack Built = "held_back" // it cannot be built and never could: Usher neither sends nor removes it
)

// Envoy is an Envoy with an open stream.
type Envoy struct {
	Gateway   string `json:"gateway"`
	ServiceID string `json:"serviceId"` // the instance
	// Node is the instance's node in Consul; empty if the Envoy does not say which one it is and several have its
	// service ID, or if its instance is not registered.
	Node    string `json:"node,omitempty"`
	Address string `json:"address,omitempty"` // that it connects from; empty for a unix socket
	Release string `json:"release"`           // such as "1.36.2", or "unknown"
	// Protocol is delta or sotw (state of the world). Dataplane is whether its stream came over --dataplane-addr.
	Protocol  string    `json:"protocol"`
	Dataplane bool      `json:"dataplane,omitempty"`
	Connected time.Time `json:"connected"` // when it was authorized
	// Types are the types of resources that it has asked for, in the order in which Usher sends them.
	Types []Type `json:"types"`
}

// Type is what an Envoy has of one type of resources.
type Type struct {
	Type  string    `json:"type"` // listener, route, cluster, endpoint, secret or token_bucket
	Sync  Sync      `json:"sync"`
	Since time.Time `json:"since"` // since when it is so
	// Version is a hash of all resources of the type that the Envoy has accepted, in hexadecimal. Equal ones have equal
	// versions, on every replica. It is empty if the Envoy has accepted none on this stream.
	Version   string `json:"version,omitempty"`
	Resources int    `json:"resources"` // how many these are
	// Error is what the Envoy says about the update that it refuses, and Refused are the first names in that update.
	Error   string   `json:"error,omitempty"`
	Refused []string `json:"refused,omitempty"`
	// Missing are resources of which the Envoy has no version, because it has refused each one.
	Missing []string `json:"missing,omitempty"`
}

// Sync says whether an Envoy has what Usher has for it.
type Sync string

// The states of a type of resources, the best first.
const (
	Synced  Sync = "synced"  // it has accepted everything
	Pending Sync = "pending" // there is something that it has not been sent yet, or there is nothing to send yet
	Stale   Sync = "stale"   // it was sent something, and has not answered
	Refused Sync = "refused" // it has refused the last update, and none has been accepted since
	// Waiting means that it keeps what it has until the source answers: what Usher has is from its state directory, differs,
	// and may be older.
	Waiting Sync = "waiting"
)

// Problem is a current problem.
type Problem struct {
	Gateway  string           `json:"gateway,omitempty"` // empty: Usher itself
	Severity problem.Severity `json:"severity"`          // outage, degraded or notice
	Where    string           `json:"where"`
	What     string           `json:"what"` // what is wrong, and what to do
}

// Change is a change of what Envoys of a gateway get. Those that connect get everything, which is not a change.
type Change struct {
	Number    uint64     `json:"number"` // larger than that of the change before
	Time      time.Time  `json:"time"`   // when Usher began to send it
	Gateway   string     `json:"gateway"`
	Resources []Resource `json:"resources"` // what changes, in the order in which Usher sends it
	// Envoys is how many it is for. Acknowledged of them have accepted it or a later one, Refused have refused it, and
	// Disconnected have gone before.
	Envoys       int `json:"envoys"`
	Acknowledged int `json:"acknowledged"`
	Refused      int `json:"refused"`
	Disconnected int `json:"disconnected"`
	// Milliseconds is how long it took until the last of them had acknowledged it. Zero while it waits for one.
	Milliseconds float64 `json:"milliseconds,omitempty"`
}

// Waiting is how many Envoys have not answered yet.
func (c Change) Waiting() int { return c.Envoys - c.Acknowledged - c.Refused - c.Disconnected }

// Resource is how the resources of one type change.
type Resource struct {
	Type    string   `json:"type"` // as in Type
	Added   int      `json:"added"`
	Changed int      `json:"changed"`
	Removed int      `json:"removed"`
	Names   []string `json:"names"` // of the first few
}
