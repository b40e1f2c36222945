// Package xds serves Envoy's discovery protocol over one aggregated stream (ADS), in its delta and in its
// state-of-the-world variant.
//
//	ResourceSource --update(*Set)--> session --responses--> Envoy
//	                                  ^   ^                  |
//	Authorizer ------allowed?---------+   +<-- requests -----+
//
// A Set has every resource once, already encoded. All Envoys share its memory. A session serves one stream, with two
// parts:
//
//   - protocol decodes requests and encodes responses: delta or state of the world.
//   - streamState decides what is sent and when, without goroutines and locks. It stores only how Envoy's resources
//     differ from the set. Its push order is Consul's.
//
// See https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol.
package xds
