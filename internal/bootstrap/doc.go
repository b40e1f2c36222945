// Package bootstrap makes the configuration that an Envoy starts with to become
// an instance of an ingress gateway: who it is, and where Usher is. All else
// Envoy gets from Usher.
//
// The shape, and every name in it, is that of Consul's own bootstraps
// (https://developer.hashicorp.com/consul/commands/connect/envoy), so that
// dashboards and scripts that read Envoy's admin interface find what they know.
package bootstrap
