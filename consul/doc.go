// Package consul watches Consul's HTTP API and turns what it answers into
// snapshots of ingress gateways.
//
//	Client     asks once: a read, or an ACL question
//	hub        keeps every question that somebody has as one blocking query
//	source     of one gateway: which facts it needs, and a Snapshot from them
//	Watcher    one hub, and a source for every Watch
//
// A source holds no state but the facts: whenever one changes, it works out
// afresh which facts it needs and builds a new Snapshot. A service that goes
// away is not removed anywhere; it is no longer there in the next one.
package consul
