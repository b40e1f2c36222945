// Package conformance holds what Usher must have in common with Consul's own
// xDS: each case is one file of config entries and registrations, loaded into a
// real Consul, and an Envoy that asks Consul and one that asks Usher must get
// the same resources.
//
// Everything in it has the build tag e2e and is run by `make conformance`. It
// needs no root: Consul and Usher listen on a loopback address of their own.
package conformance
