// Package xds serves Envoy's discovery protocol over one aggregated stream
// (ADS), in its delta and in its state-of-the-world variant.
//
//	Supplier --put(*Set)--> session --responses--> Envoy
//	                           ^                     |
//	Authorizer --allowed?------+<---subscriptions,---+
//	                                ACK, NACK
//
// A Set holds every resource once, already encoded; all Envoys share it. A
// session belongs to one stream. It joins three parts:
//
//   - go-control-plane's stream servers keep nonces and subscriptions; the
//     session is their cache (cache.ConfigWatcher),
//   - the conversation, a state machine without goroutines and without locks,
//     decides what is sent and when,
//   - three goroutines bring sets, push them, and ask again whether the caller
//     is still allowed.
//
// The order of a push is Consul's: secrets, clusters, endpoints, then listeners
// and routes once Envoy acknowledged those, and removals last. See
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol.
package xds
