// Package apiserver runs a Kubernetes API server for tests: a real kube-apiserver with
// RBAC on a real etcd, with the requests of an administrator.
package apiserver
