package loadbalancer

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// healthCheck is how annotations make a cloud check a gateway over HTTP. The zero value: no annotation does.
type healthCheck struct {
	key        string // the annotation with the protocol: words that begin with http are HTTP or HTTPS
	tcp        string // the word for TCP
	perPort    bool   // the value can be a list by port, such as "80:http;443,8443:tcp"
	pathKey    string // the annotation that means HTTP where key is absent; empty: none does
	portKey    string // the annotation with the port of a pod or a node to check; empty: only the Service's ports are
	withHeader bool   // all health checks carry a PROXY header, to whatever port
	// headerKey is the annotation with which they carry one if it is "true", and else none. Without both, it is not
	// documented whether they do.
	headerKey string
}

// checkHealthChecks adds a problem for each health check that fails because headers are sent.
func (r *intentReader) checkHealthChecks() {
	sent := func(i portIntent) bool { return i.State == proxyOn || i.State == proxyMixed }
	if !slices.ContainsFunc(slices.Collect(maps.Values(r.ports)), sent) {
		return
	}
	for _, p := range Providers {
		if r.checksOverHTTP(p.healthCheck) {
			r.checkHealthCheck(p.healthCheck)
		}
	}
	r.checkNodeHealthCheck()
}

// sendsTo reports whether headers are sent to the listener that a port of the Service leads to.
func (r *intentReader) sendsTo(p corev1.ServicePort) bool {
	return r.ports[targetPort(p)].State == proxyOn
}

// checksOverHTTP reports whether a listener that headers are sent to is checked over HTTP.
func (r *intentReader) checksOverHTTP(c healthCheck) bool {
	value := strings.ToLower(r.service.Annotations[c.key])
	switch {
	case value == "":
		return c.pathKey != "" && r.service.Annotations[c.pathKey] != ""
	case !c.perPort || !strings.Contains(value, ":"):
		return strings.HasPrefix(value, "http")
	}
	for item := range strings.SplitSeq(value, ";") {
		list, protocol, _ := strings.Cut(item, ":")
		ports, _ := parsePortNumbers(list)
		if strings.HasPrefix(protocol, "http") && slices.ContainsFunc(r.service.Spec.Ports, func(p corev1.ServicePort) bool {
			return slices.Contains(ports, p.Port) && r.sendsTo(p)
		}) {
			return true
		}
	}
	return false
}

func (r *intentReader) checkHealthCheck(c healthCheck) {
	port, err := strconv.Atoi(r.service.Annotations[c.portKey])
	leadsToHeader := func(p corev1.ServicePort) bool { return int(p.NodePort) == port && r.sendsTo(p) }
	otherPort := c.portKey != "" && err == nil && r.ports[port].State != proxyOn &&
		!slices.ContainsFunc(r.service.Spec.Ports, leadsToHeader)
	key, fix := c.key, fmt.Sprintf("use %q", c.tcp)
	if c.pathKey != "" && r.service.Annotations[c.key] == "" {
		key, fix = c.pathKey, fmt.Sprintf("remove it, or set %s to %q", c.key, c.tcp)
	}
	switch {
	case c.withHeader && otherPort:
		r.addProblem(key, fmt.Sprintf("the load balancer's health checks carry a PROXY header as well, "+
			"and port %d answers HTTP checks with 400; %s", port, fix))
	case c.withHeader || otherPort || c.headerKey != "" && r.service.Annotations[c.headerKey] == "true":
	case c.headerKey != "":
		r.addProblem(key, fmt.Sprintf("the load balancer's HTTP health checks carry no PROXY header, "+
			`and the listener rejects them; %s, or set %s to "true"`, fix, c.headerKey))
	default:
		r.addProblem(key, "the listener rejects health checks without a PROXY header, "+
			"and the cloud does not document whether its HTTP checks carry one; "+fix)
	}
}

// checkNodeHealthCheck is for AWS: with the traffic policy Local, it asks kube-proxy over HTTP whether an instance
// has a pod of the Service, and kube-proxy does not understand the header in front of the question.
func (r *intentReader) checkNodeHealthCheck() {
	s := r.service
	byInstance := s.Annotations[awsTargetType] == "instance" ||
		s.Annotations[awsTargetType] == "" && s.Spec.LoadBalancerClass != nil && *s.Spec.LoadBalancerClass == awsClass
	local := s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if byInstance && local && s.Annotations[awsPrefix+"healthcheck-protocol"] == "" {
		r.addProblem(awsTargetType, fmt.Sprintf("with instances and externalTrafficPolicy Local, health checks go to "+
			`kube-proxy, which answers 400 to a check with a PROXY header; use "ip", or set %[1]shealthcheck-protocol `+
			`to "tcp" and %[1]shealthcheck-port to "traffic-port"`, awsPrefix))
	}
}
