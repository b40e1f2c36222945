// Package lab is a network of hosts for end-to-end tests: Consul, Envoy, Usher
// and load balancers as their makers built them, each in a network namespace of
// its own, and the clients and services that talk through them.
//
// Everything else in it has the build tag e2e and needs root. A function fails
// the test when a part is missing: nothing is skipped.
package lab
