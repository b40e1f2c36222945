package kubernetes

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// healthCheck is how a cloud is told to check a gateway over HTTP.
type healthCheck struct {
	key  string   // the annotation
	http []string // its values that mean HTTP
	tcp  string   // the one that means TCP
	// port is the annotation with the port that is checked; "" if the provider
	// checks the listeners only.
	port string
	// header says that checks carry a PROXY header, too, wherever they go.
	header bool
}

// healthChecks is the table of what clouds read.
var healthChecks = []healthCheck{
	{key: awsPrefix + "healthcheck-protocol", http: []string{"http", "https"}, tcp: "tcp", port: awsPrefix + "healthcheck-port", header: true},
	{key: "service.beta.kubernetes.io/do-loadbalancer-healthcheck-protocol", http: []string{"http", "https"}, tcp: "tcp", port: "service.beta.kubernetes.io/do-loadbalancer-healthcheck-port"},
	{key: "service.beta.kubernetes.io/scw-loadbalancer-health-check-type", http: []string{"http", "https"}, tcp: "tcp"},
	{key: "load-balancer.hetzner.cloud/health-check-protocol", http: []string{"http", "https"}, tcp: "tcp", port: "load-balancer.hetzner.cloud/health-check-port"},
	{key: "service.beta.kubernetes.io/linode-loadbalancer-check-type", http: []string{"http", "http_body"}, tcp: "connection"},
	{key: "service.beta.kubernetes.io/vultr-loadbalancer-healthcheck-protocol", http: []string{"http"}, tcp: "tcp", port: "service.beta.kubernetes.io/vultr-loadbalancer-healthcheck-port"},
	{key: "service.beta.kubernetes.io/alibaba-cloud-loadbalancer-health-check-type", http: []string{"http"}, tcp: "tcp"},
}

// health notes the health checks that fail now that headers are sent.
func (r *reader) health(t told) {
	if !t.on() {
		return
	}
	for _, c := range healthChecks {
		if slices.Contains(c.http, strings.ToLower(r.service.Annotations[c.key])) {
			r.check(c, t)
		}
	}
	r.nodeCheck()
}

// on says whether headers are sent to any listener.
func (t told) on() bool {
	for _, of := range t.listeners {
		if of.signal == on || of.signal == mixed {
			return true
		}
	}
	return false
}

func (r *reader) check(c healthCheck, t told) {
	port, err := strconv.Atoi(r.service.Annotations[c.port])
	elsewhere := c.port != "" && err == nil && t.listeners[port].signal != on
	switch {
	case c.header && elsewhere:
		r.problem(c.key, fmt.Sprintf("the balancer's health checks carry a PROXY header as well, and port %d answers those over HTTP with 400; use %q", port, c.tcp))
	case !c.header && !elsewhere:
		r.problem(c.key, fmt.Sprintf("the balancer's health checks over HTTP carry no PROXY header, and the listener will refuse them; use %q", c.tcp))
	}
}

// nodeCheck: AWS asks kube-proxy whether an instance has a pod of the Service
// when the traffic policy is Local, over HTTP, and kube-proxy does not know the
// header that comes with it.
func (r *reader) nodeCheck() {
	s := r.service
	byInstance := s.Annotations[awsTargetType] == "instance" ||
		s.Annotations[awsTargetType] == "" && s.Spec.LoadBalancerClass != nil && *s.Spec.LoadBalancerClass == awsClass
	if byInstance && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && s.Annotations[awsPrefix+"healthcheck-protocol"] == "" {
		r.problem(awsTargetType, fmt.Sprintf("with instances and externalTrafficPolicy Local the balancer's health checks go to kube-proxy, which answers those with a PROXY header with 400; "+
			"use \"ip\", or %shealthcheck-protocol: \"tcp\" with %shealthcheck-port: \"traffic-port\"", awsPrefix, awsPrefix))
	}
}
