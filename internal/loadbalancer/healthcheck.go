package loadbalancer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// healthCheck is how a cloud is told to check a gateway over HTTP. Keys and values
// were read in the sources that the cloud's rows of Annotations name, unless it is
// said otherwise.
type healthCheck struct {
	key  string   // the annotation
	http []string // its values that mean HTTP
	tcp  string   // the one that means TCP
	// perPort says that the value can be a list by port, as in "80:http;443,8443:tcp".
	perPort bool
	// path is the annotation that means HTTP where key is not there; "": none does.
	path string
	// port is the annotation with the port that is checked, of a pod or a node; ""
	// if the provider checks the Service's ports only.
	port string
	// carry says whether checks carry a PROXY header, too.
	carry checkHeader
	// carryKey is the annotation that makes them carry one with "true"; "": none does.
	carryKey string
}

// carry is whether health checks carry a PROXY header.
type checkHeader uint8

const (
	checkHeaderUndocumented checkHeader = iota // nobody has written it down
	checkHeaderNever                           // none does, unless carryKey says so
	checkHeaderAlways                          // all do, wherever they go
)

// healthChecks is the table of what clouds read. DigitalOcean is not in it: its
// checks of a Service's port carry the header, and all others go to kube-proxy
// without one.
var healthChecks = []healthCheck{
	{key: awsPrefix + "healthcheck-protocol", http: []string{"http", "https"}, tcp: "tcp", port: awsPrefix + "healthcheck-port", carry: checkHeaderAlways},
	{
		key: "service.beta.kubernetes.io/scw-loadbalancer-health-check-type", http: []string{"http", "https"}, tcp: "tcp", perPort: true,
		carry: checkHeaderNever, carryKey: "service.beta.kubernetes.io/scw-loadbalancer-health-check-send-proxy",
	},
	{key: "load-balancer.hetzner.cloud/health-check-protocol", http: []string{"http", "https"}, tcp: "tcp", port: "load-balancer.hetzner.cloud/health-check-port"},
	{key: "service.beta.kubernetes.io/linode-loadbalancer-check-type", http: []string{"http", "http_body"}, tcp: "connection"},
	{
		key: "service.beta.kubernetes.io/vultr-loadbalancer-healthcheck-protocol", http: []string{"http"}, tcp: "tcp",
		path: "service.beta.kubernetes.io/vultr-loadbalancer-healthcheck-path",
	},
	{
		key: "service.beta.kubernetes.io/alibaba-cloud-loadbalancer-health-check-type", http: []string{"http"}, tcp: "tcp",
		port: "service.beta.kubernetes.io/alibaba-cloud-loadbalancer-health-check-connect-port",
	},
	{
		key: "service.kubernetes.io/ibm-load-balancer-cloud-provider-vpc-health-check-protocol", http: []string{"http", "https"}, tcp: "tcp",
		port: "service.kubernetes.io/ibm-load-balancer-cloud-provider-vpc-health-check-port",
	},
	{key: "service.beta.kubernetes.io/brightbox-load-balancer-healthcheck-protocol", http: []string{"http"}, tcp: "tcp"},
	{key: "k8s.cloudscale.ch/loadbalancer-health-monitor-type", http: []string{"http", "https"}, tcp: "tcp"},
}

// health notes the health checks that fail now that headers are sent.
func (r *intentReader) checkHealthChecks(t serviceIntent) {
	if !t.anyOn() {
		return
	}
	for _, c := range healthChecks {
		if r.overHTTP(c, t) {
			r.checkHealthCheck(c, t)
		}
	}
	r.checkNodeHealthCheck()
}

// on says whether headers are sent to any listener.
func (t serviceIntent) anyOn() bool {
	for _, of := range t.listeners {
		if of.state == proxyOn || of.state == proxyMixed {
			return true
		}
	}
	return false
}

// overHTTP says whether a listener that headers are sent to is checked over HTTP.
func (r *intentReader) overHTTP(c healthCheck, t serviceIntent) bool {
	value := strings.ToLower(r.service.Annotations[c.key])
	if value == "" {
		return c.path != "" && r.service.Annotations[c.path] != ""
	}
	if !c.perPort || !strings.Contains(value, ":") {
		return slices.Contains(c.http, value)
	}
	for item := range strings.SplitSeq(value, ";") {
		list, kind, _ := strings.Cut(item, ":")
		ports, _ := portsIn(list)
		if slices.Contains(c.http, kind) && slices.ContainsFunc(r.service.Spec.Ports, func(p corev1.ServicePort) bool {
			return slices.Contains(ports, p.Port) && t.sentTo(p)
		}) {
			return true
		}
	}
	return false
}

// sentTo says whether headers are sent by way of a port of the Service.
func (t serviceIntent) sentTo(p corev1.ServicePort) bool {
	return t.listeners[listenerOf(p)].state == proxyOn
}

func (r *intentReader) checkHealthCheck(c healthCheck, t serviceIntent) {
	port, err := strconv.Atoi(r.service.Annotations[c.port])
	elsewhere := c.port != "" && err == nil && t.listeners[port].state != proxyOn &&
		!slices.ContainsFunc(r.service.Spec.Ports, func(p corev1.ServicePort) bool { return int(p.NodePort) == port && t.sentTo(p) })
	key, use := c.key, fmt.Sprintf("use %q", c.tcp)
	if c.path != "" && r.service.Annotations[c.key] == "" {
		key, use = c.path, fmt.Sprintf("remove it, or use %s: %q", c.key, c.tcp)
	}
	switch {
	case c.carry == checkHeaderAlways && elsewhere:
		r.addProblem(key, fmt.Sprintf("the balancer's health checks carry a PROXY header as well, and port %d answers those over HTTP with 400; %s", port, use))
	case c.carry == checkHeaderAlways || elsewhere || c.carryKey != "" && r.service.Annotations[c.carryKey] == "true":
	case c.carryKey != "":
		r.addProblem(key, fmt.Sprintf("the balancer's health checks over HTTP carry no PROXY header, and the listener will refuse them; %s, or %s: \"true\"", use, c.carryKey))
	default:
		r.addProblem(key, fmt.Sprintf("nobody has written down whether the balancer's health checks over HTTP carry a PROXY header, and the listener refuses those that carry none; %s", use))
	}
}

// nodeCheck: AWS asks kube-proxy whether an instance has a pod of the Service
// when the traffic policy is Local, over HTTP, and kube-proxy does not know the
// header that comes with it.
func (r *intentReader) checkNodeHealthCheck() {
	s := r.service
	byInstance := s.Annotations[awsTargetType] == "instance" ||
		s.Annotations[awsTargetType] == "" && s.Spec.LoadBalancerClass != nil && *s.Spec.LoadBalancerClass == awsClass
	if byInstance && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal && s.Annotations[awsPrefix+"healthcheck-protocol"] == "" {
		r.addProblem(awsTargetType, fmt.Sprintf("with instances and externalTrafficPolicy Local the balancer's health checks go to kube-proxy, which answers those with a PROXY header with 400; "+
			"use \"ip\", or %shealthcheck-protocol: \"tcp\" with %shealthcheck-port: \"traffic-port\"", awsPrefix, awsPrefix))
	}
}
