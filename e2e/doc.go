// Package e2e tests Usher with real parts: Consul, Envoy, HAProxy, nginx, Apache
// and a Kubernetes API server.
//
// Everything in it has the build tag e2e, needs root, and is run by `make e2e`.
// A file is a story. What only one story uses is in files that begin with its
// name; what several share is in e2e/lab.
package e2e
