// Package doctor finds out what is wrong between a load balancer, a gateway's listener, Envoy, Usher and Consul, and how
// to correct it:
//
//	a listener, Consul, Kubernetes, Envoy, Usher ──internal/doctor/collect, cmd/usher──> Facts ──Diagnose──> Report
//
// Facts are plain values, and each source of them is optional. Diagnose is a pure function: each check reads facts and
// adds findings. Nothing here sends a request, and no fact is a secret.
package doctor
