// Package xds serves Envoy's discovery protocol over one aggregated stream
// (ADS), in its delta and in its state-of-the-world variant.
//
//	ResourceSource --put(*Set)--> session --responses--> Envoy
//	                           ^                     |
//	Authorizer --allowed?------+<---subscriptions,---+
//	                                ACK, NACK
//
// A Set holds every resource once, already encoded; all Envoys share its memory.
// A session belongs to one stream, and one goroutine runs it. It joins two parts:
//
//   - a protocol reads requests and writes responses, delta or state of the world,
//   - the conversation, a state machine without goroutines and without locks,
//     decides what is sent and when. Its ledgers keep of each name only what
//     differs from the set.
//
// The order of a push is Consul's: secrets (and token buckets), clusters,
// endpoints, then listeners and routes once Envoy acknowledged those, and removals
// last. See
// https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol.
package xds
