// Package cluster is a small Kubernetes for end-to-end tests. Its API server is
// the real one. What stands around it in a cluster is here in little, so that
// it can be read: controllers (Deployments, StatefulSets, Jobs, endpoints,
// service accounts, load balancers), a cluster DNS and a kubelet. There is no
// container engine: a container is a process in its own mount and process
// namespaces, in the network namespace of its pod.
//
// Everything else in it has the build tag kubernetes, and needs root.
package cluster
