// Package e2e holds the stories that Usher must tell with real parts: Consul,
// Envoy, HAProxy and Apache as their makers built them, each in a network
// namespace with an address of its own.
//
// Everything in it has the build tag e2e, needs root, and is run by `make e2e`.
// A file is a story; the files that begin with harness_ are what the stories
// are told with. A part that is missing fails the test: nothing is skipped.
package e2e
