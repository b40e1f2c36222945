// Package admission is a mutating admission webhook of Kubernetes
// (https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/): it changes the pods of
// ingress gateways when they are created, so that an unmodified consul-dataplane connects to Usher.
//
// Which pods it is asked about is decided by the MutatingWebhookConfiguration. What it changes is decided by its
// Options, and by nothing in the request: it has no state, and sends no requests.
package admission
