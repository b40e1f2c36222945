// Package apiserver runs a Kubernetes API server for tests: a real
// kube-apiserver with RBAC on a real etcd, and what an administrator does with
// it.
package apiserver
