// Package loadbalancer tells what the load balancers in front of gateways do, from
// the Services that told them:
//
//	Service ──read──> told ──memory──> gateway.Balancer ──put──> internal/controlplane
//
// A cloud's controller reads annotations of a Service of type LoadBalancer, and
// each cloud has its own (Annotations is the table of them). The cloud follows a
// change seconds to minutes later, so that a listener takes connections with and
// without a PROXY header for a while (the grace) before it does what it was
// changed to.
//
// Unknown is not off: while nobody knows what a balancer was told, its listeners
// stay what they are, and one that never was anything is held back.
//
// Read, and all that is below it, is a function of a Service. Only Watcher knows
// the API server, and nothing here knows Envoy or Consul.
package loadbalancer
