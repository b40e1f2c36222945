// Package gateway is the model: everything that is known about one ingress
// gateway at one moment, as plain immutable values.
//
//	consul, configdir ──Snapshot──> listeners.Compile ──Resources──> xds ──> Envoy
//
// A source builds a new Snapshot for each change and never modifies one that it
// has published. A part that did not change keeps its pointer, so equal pointers
// mean equal content. The package knows no Consul client, no protobuf, no context
// and no lock. What operators set in the key "usher" is in package settings.
//
// Entry, Chain and the types below them carry the names of Consul's own JSON,
// so that an answer of Consul's HTTP API decodes straight into them. They are
// our own types because consul/api's lose fields that the JSON has (a target's
// Peer, a split's header modifiers, a resolver's request timeout).
package gateway
