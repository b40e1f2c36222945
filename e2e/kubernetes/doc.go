// Package kubernetes has the stories of Usher in Kubernetes, on the real Consul
// chart: its Jobs, controllers, webhooks and dataplanes run in a cluster of
// package cluster. `make kubernetes CONSUL_K8S=DIR` builds the parts and runs them.
package kubernetes
