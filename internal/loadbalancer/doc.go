// Package loadbalancer finds out which mode listeners need behind the load balancer in front of them, from the
// Service that configures it:
//
//	Service ──readIntent──> serviceIntent ──afterRevision──> serviceState ──balancer──> gateway.Balancer
//
// A cloud's controller reads annotations of a Service of type LoadBalancer, and each cloud has its own (Providers is
// the table of them, with the Conditions under which a cloud does not honour them). The load balancer follows a change
// seconds to minutes later. During a grace period, a listener therefore accepts connections with and without a PROXY
// header, before it gets its new mode.
//
// Unknown is not off: while it is unknown what a Service asks for, its listeners keep their mode, and a listener
// without a mode is held back.
//
// These steps are functions of a Service, the state before it, and the time. Only Watcher and what it starts know the
// API server, and nothing here knows Envoy or asks Consul.
package loadbalancer
