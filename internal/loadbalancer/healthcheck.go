package loadbalancer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// healthCheck is how annotations make a cloud check a gateway over HTTP, or over another protocol in which the load
// balancer sends something: a strict listener rejects that without a header in front of it. A check that only connects
// is fine. The zero value: no annotation makes the cloud send anything to a listener.
type healthCheck struct {
	key     string   // the annotation with the protocol: words that begin with http are HTTP or HTTPS
	tcp     string   // the word for TCP
	words   []string // the words for other protocols in which the load balancer sends something
	perPort bool     // the value can be a list by port, such as "80:http;443,8443:tcp"
	elseKey string   // the annotation whose value counts where key is absent; empty: TCP does
	pathKey string   // the annotation that means HTTP where key is absent; empty: none does
	portKey string   // the annotation with the port of a pod or a node to check; empty: only the Service's ports are
	// find finds the check of a port where the fields above cannot say it.
	find func(*corev1.Service, corev1.ServicePort) httpCheck
	// except reports whether, in spite of these annotations, the cloud checks a port over TCP, or kube-proxy in place
	// of it; nil: it never does.
	except     func(*corev1.Service, corev1.ServicePort) bool
	withHeader bool // all health checks carry a PROXY header, to whatever port
	noHeader   bool // no health check carries one
	// headerKey is the annotation with which they carry one if it is true, and else none. Without all three, it is not
	// documented whether they do.
	headerKey string
	doubt     string // what is not known then, if there is more to say
}

// httpCheck is a health check in which the load balancer sends something. The zero value: it only connects.
type httpCheck struct {
	key      string // the annotation that makes it one; empty: none does
	fix      string // what to do, as an imperative
	port     string // the port of a pod or of a node that is checked; if it is no number, that is the Service's port
	protocol string // as in a problem
}

// setTCP is what to do about checks that are HTTP without an annotation.
const setTCP = `set it to "tcp", because it is "http" where nothing is said`

// of returns the check of a port of the Service.
func (c healthCheck) of(s *corev1.Service, p corev1.ServicePort) httpCheck {
	if c.except != nil && c.except(s, p) {
		return httpCheck{}
	}
	if c.find != nil {
		return c.find(s, p)
	}
	fix, port := fmt.Sprintf("use %q", c.tcp), s.Annotations[c.portKey]
	value := strings.ToLower(s.Annotations[c.key])
	if c.perPort && strings.Contains(value, ":") {
		value = valueForPort(value, p.Port)
	}
	switch {
	case strings.HasPrefix(value, "http"):
		return httpCheck{c.key, fix, port, "HTTP"}
	case slices.Contains(c.words, value):
		return httpCheck{c.key, fix, port, strconv.Quote(value)}
	case value == "" && strings.HasPrefix(strings.ToLower(s.Annotations[c.elseKey]), "http"):
		return httpCheck{c.key, setTCP, port, "HTTP"}
	case s.Annotations[c.key] == "" && s.Annotations[c.pathKey] != "":
		return httpCheck{c.pathKey, fmt.Sprintf("remove it, or set %s to %q", c.key, c.tcp), port, "HTTP"}
	}
	return httpCheck{}
}

// valueForPort returns what a list such as "80:http;443,8443:tcp" says about a port.
func valueForPort(list string, port int32) string {
	for item := range strings.SplitSeq(list, ";") {
		numbers, value, _ := strings.Cut(item, ":")
		if ports, _ := parsePortNumbers(numbers); slices.Contains(ports, port) {
			return value
		}
	}
	return ""
}

// checkHealthChecks adds a problem for each health check that fails because headers are sent.
func (r *intentReader) checkHealthChecks() {
	sends := false
	for _, port := range r.service.Spec.Ports {
		state := r.ports[targetPort(port)].State
		if port.Protocol == corev1.ProtocolUDP || state != proxyOn && state != proxyMixed {
			continue
		}
		sends = true
		for _, p := range Providers {
			if check := p.healthCheck.of(r.service, port); check != (httpCheck{}) {
				r.checkHealthCheck(p.healthCheck, check)
			}
		}
	}
	if sends {
		r.checkNodeHealthCheck()
	}
}

func (r *intentReader) checkHealthCheck(c healthCheck, check httpCheck) {
	port, err := strconv.Atoi(check.port)
	leadsToHeader := func(p corev1.ServicePort) bool {
		return int(p.NodePort) == port && r.ports[targetPort(p)].State == proxyOn
	}
	otherPort := err == nil && r.ports[port].State != proxyOn && !slices.ContainsFunc(r.service.Spec.Ports, leadsToHeader)
	headers, _ := strconv.ParseBool(r.service.Annotations[c.headerKey])
	switch {
	case c.withHeader && otherPort:
		r.addProblem(check.key, fmt.Sprintf("the load balancer's health checks carry a PROXY header as well, "+
			"and port %d answers HTTP checks with 400; %s", port, check.fix))
	case c.withHeader || otherPort || headers:
	case c.noHeader || c.headerKey != "":
		fix := check.fix
		if c.headerKey != "" {
			fix += fmt.Sprintf(`, or set %s to "true"`, c.headerKey)
		}
		r.addProblem(check.key, fmt.Sprintf("the load balancer's %s health checks carry no PROXY header, and the listener rejects them; %s",
			check.protocol, fix))
	case c.doubt != "":
		r.addProblem(check.key, fmt.Sprintf("%s; %s", c.doubt, check.fix))
	default:
		r.addProblem(check.key, fmt.Sprintf("the listener rejects health checks without a PROXY header, "+
			"and the cloud does not document whether its %s checks carry one; %s", check.protocol, check.fix))
	}
}

// isLocal reports whether the Service has the traffic policy Local. Kubernetes then gives it a healthCheckNodePort, and
// kube-proxy answers there, without a header in front of the question, whether a node has a pod of the Service.
func isLocal(s *corev1.Service, _ corev1.ServicePort) bool {
	return s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// awsIgnoresChecks reports whether the load balancer is a classic one, for which the controller in Kubernetes always
// creates TCP checks, or, with the traffic policy Local, checks of kube-proxy, which carry no header.
func awsIgnoresChecks(s *corev1.Service, _ corev1.ServicePort) bool {
	return !slices.ContainsFunc(awsClassic, func(f Fact) bool { return !f.holds(s, corev1.ServicePort{}) })
}

// checkNodeHealthCheck is for AWS: with the traffic policy Local, it asks kube-proxy over HTTP whether an instance
// has a pod of the Service, and kube-proxy does not understand the header in front of the question.
func (r *intentReader) checkNodeHealthCheck() {
	s := r.service
	byInstance := s.Annotations[awsTargetType] == "instance" ||
		s.Annotations[awsTargetType] == "" && s.Spec.LoadBalancerClass != nil && *s.Spec.LoadBalancerClass == awsClass
	protocol, port := s.Annotations[awsPrefix+"healthcheck-protocol"], s.Annotations[awsPrefix+"healthcheck-port"]
	nodePort := port == "" || protocol == "" && port == strconv.Itoa(int(s.Spec.HealthCheckNodePort))
	local := isLocal(s, corev1.ServicePort{}) && !awsIgnoresChecks(s, corev1.ServicePort{})
	if byInstance && local && nodePort && !strings.EqualFold(protocol, "tcp") {
		r.addProblem(awsTargetType, fmt.Sprintf("with instances and externalTrafficPolicy Local, health checks go to "+
			`kube-proxy, which answers 400 to a check with a PROXY header; use "ip", or set %[1]shealthcheck-protocol `+
			`to "tcp" and %[1]shealthcheck-port to "traffic-port"`, awsPrefix))
	}
}

// outscaleCheck is how Outscale checks all ports: over TCP, or, where an annotation names the port of a node, over the
// protocol of another one.
func outscaleCheck(s *corev1.Service, _ corev1.ServicePort) httpCheck {
	const name = prefix + "osc-load-balancer-healthcheck-"
	protocol, port := strings.ToLower(s.Annotations[name+"protocol"]), s.Annotations[name+"port"]
	switch {
	case port == "" || port == "0":
	case protocol == "" && s.Annotations[name+"path"] != "":
		return httpCheck{name + "path", "remove it, or set " + name + `protocol to "tcp"`, port, "HTTP"}
	case protocol == "http" || protocol == "https" || protocol == "ssl":
		return httpCheck{name + "protocol", `use "tcp"`, port, strings.ToUpper(protocol)}
	}
	return httpCheck{}
}

// hetznerConnects reports whether Hetzner checks over TCP, because no annotation is about health checks.
func hetznerConnects(s *corev1.Service, _ corev1.ServicePort) bool {
	for key := range s.Annotations {
		if strings.HasPrefix(key, "load-balancer.hetzner.cloud/health-check-") {
			return false
		}
	}
	return true
}

// scalewayAsksNodes reports whether Scaleway checks kube-proxy in place of a port.
func scalewayAsksNodes(s *corev1.Service, p corev1.ServicePort) bool {
	return isLocal(s, p) && scalewayPorts("").parse(s.Annotations[scaleway+"health-check-from-service"], p).state == proxyOn
}

// brightboxCheck is how Brightbox checks a load balancer: by the first port, and over HTTP unless annotations say
// otherwise.
func brightboxCheck(s *corev1.Service, p corev1.ServicePort) httpCheck {
	const protocol = brightboxPrefix + "healthcheck-protocol"
	if isLocal(s, p) || p != s.Spec.Ports[0] {
		return httpCheck{}
	}
	switch {
	case strings.HasPrefix(s.Annotations[protocol], "http"):
		return httpCheck{key: protocol, fix: `use "tcp"`, protocol: "HTTP"}
	case s.Annotations[protocol] == "" && s.Annotations[brightboxKey] != "" && s.Annotations[brightboxPrefix+"listener-protocol"] != "tcp":
		return httpCheck{key: protocol, fix: setTCP, protocol: "HTTP"}
	}
	return httpCheck{}
}

// thalassaCheck is how Thalassa checks a port: only if an annotation names the port to check.
func thalassaCheck(s *corev1.Service, p corev1.ServicePort) httpCheck {
	const name = thalassaPrefix + "health-check-"
	port, protocol := s.Annotations[name+"port"], s.Annotations[name+"protocol"]
	enabled, _ := strconv.ParseBool(s.Annotations[name+"enabled"])
	switch {
	case port == "":
	case isLocal(s, p):
		return httpCheck{name + "port", "remove it", port, "HTTP"}
	case enabled && protocol == "":
		return httpCheck{name + "port", "set " + name + `protocol to "tcp"`, port, "HTTP"}
	case enabled && strings.HasPrefix(strings.ToLower(protocol), "http"):
		return httpCheck{name + "protocol", `use "tcp"`, port, "HTTP"}
	}
	return httpCheck{}
}
