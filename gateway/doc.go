// Package gateway is the model in the middle of Usher: everything that is known
// of one ingress gateway at one moment, as plain immutable values.
//
//	consul, files ──Snapshot──> listeners.Compile ──Resources──> xds ──> Envoy
//
// A source builds a new Snapshot whenever a fact changes and never modifies one
// that it has handed on; a part that did not change keeps its pointer, so that
// equal pointers mean equal content. The package imports the standard library
// only: no Consul client, no protobuf, no context, no lock.
//
// Entry, Chain and the types below them carry the names of Consul's own JSON,
// so that an answer of Consul's HTTP API decodes straight into them. They are
// types of our own because consul/api's lose fields that the JSON has (a
// target's Peer, a split's header modifiers, a resolver's request timeout).
package gateway
