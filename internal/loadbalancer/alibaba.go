package loadbalancer

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Alibaba's controller reads each annotation with a newer prefix and, where a Service has none with that, with an older
// one. It creates a network load balancer for Services with its class, and a classic one for Services without a class.
const (
	alibabaPrefix  = prefix + "alibaba-cloud-loadbalancer-"
	alicloudPrefix = prefix + "alicloud-loadbalancer-"
	alibabaNLB     = "alibabacloud.com/nlb"
	alibabaCheck   = alibabaPrefix + "health-check-"

	alibabaSource = "https://github.com/kubernetes/cloud-provider-alibaba-cloud/blob/master/pkg/controller/"
)

// alibabaValue returns the value of an annotation, whichever prefix it has.
func alibabaValue(s *corev1.Service, name string) string {
	if value, found := s.Annotations[alibabaPrefix+name]; found {
		return value
	}
	return s.Annotations[alicloudPrefix+name]
}

// alibabaFact is the fact that holds says something about the value of an annotation with either prefix.
func alibabaFact(name, clause string, holds func(value string) bool) Fact {
	return Fact{
		Clause: alibabaPrefix + name + " " + clause,
		fields: []field{annotationField(alibabaPrefix + name), annotationField(alicloudPrefix + name)},
		holds:  func(s *corev1.Service, _ corev1.ServicePort) bool { return holds(alibabaValue(s, name)) },
	}
}

func isAlibabaNLB(s *corev1.Service) bool {
	return s.Spec.LoadBalancerClass != nil && *s.Spec.LoadBalancerClass == alibabaNLB
}

// alibabaListener returns the protocol of the load balancer's listener for a port; false: the controller refuses the
// annotation.
func alibabaListener(s *corev1.Service, p corev1.ServicePort) (string, bool) {
	list, known := alibabaValue(s, "protocol-port"), []string{"tcp", "udp", "http", "https"}
	if isAlibabaNLB(s) {
		list, known = strings.ToLower(list), []string{"tcp", "udp", "tcpssl"}
	}
	if list == "" {
		return "tcp", true
	}
	for item := range strings.SplitSeq(list, ",") {
		parts := strings.Split(item, ":")
		switch {
		case len(parts) < 2 || !slices.Contains(known, parts[0]):
			return "", false
		case parts[1] == strconv.Itoa(int(p.Port)):
			return parts[0], true
		}
	}
	return "tcp", true
}

// alibabaProtocols is the fact that holds says something about the listener for a port.
func alibabaProtocols(clause string, holds func(*corev1.Service, corev1.ServicePort) bool) Fact {
	f := alibabaFact("protocol-port", clause, nil)
	f.fields, f.holds = append(f.fields, specField("ports"), specField("loadBalancerClass")), holds
	return f
}

var alibabaNotHonoured = []Condition{
	{
		When: []Fact{hasOtherClass(alibabaNLB)}, State: Ignored, Elsewhere: true,
		Cloud: leavesClasses.Cloud, Fix: leavesClasses.Fix, URL: alibabaSource + "helper/service_utils.go",
	},
	{
		When: []Fact{hasNoClass(), not(isUnset(prefix+"class"), "the annotation "+prefix+"class is set")}, State: Ignored, Elsewhere: true,
		Cloud: leavesClasses.Cloud, Fix: "remove that annotation, or this one", URL: alibabaSource + "helper/service_utils.go",
	},
	refuses(alibabaProtocols("is not valid", func(s *corev1.Service, _ corev1.ServicePort) bool {
		return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
			_, valid := alibabaListener(s, p)
			return !valid
		})
	}), `use a list such as "tcp:80,tcp:443" (a network load balancer has no "http" and "https")`).readAt(alibabaSource + "helper/service_utils.go"),
	{
		When: []Fact{
			alibabaFact("id", "is set", func(value string) bool { return value != "" }),
			alibabaFact("force-override-listeners", `is not "true"`, func(value string) bool { return value != "true" }),
		},
		State: Unclear, PersistsWhenRemoved: true, Cloud: "the controller does not change the listeners of this load balancer, which you created",
		Fix: "look at its listeners and set Usher's proxy_protocol.mode; or set " + alibabaPrefix + `force-override-listeners to "true"`,
		URL: alibabaSource + "service/clbv1/listeners.go",
	},
	{
		When: []Fact{alibabaProtocols(`makes the port "http" or "https"`, func(s *corev1.Service, p corev1.ServicePort) bool {
			protocol, _ := alibabaListener(s, p)
			return strings.HasPrefix(protocol, "http")
		})},
		State: Ignored, Cloud: "a classic load balancer sends headers on TCP listeners only", Fix: `use "tcp" for the port, or remove this annotation`,
		URL: alibabaSource + "service/clbv1/listeners.go",
	},
}

// alibabaUnset is when the older annotation stands beside an empty newer one.
var alibabaUnset = []Condition{{
	When: []Fact{{
		Clause: alibabaPrefix + "proxy-protocol is there and empty", fields: []field{annotationField(alibabaPrefix + "proxy-protocol")},
		holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
			value, found := s.Annotations[alibabaPrefix+"proxy-protocol"]
			return found && value == ""
		},
	}},
	State: Unclear, Cloud: "the controller reads neither and leaves the load balancer as it is", Fix: "remove the empty annotation",
}}

// alibabaHTTPCheck is how Alibaba checks a port. A network load balancer needs a flag for its annotations to count.
func alibabaHTTPCheck(s *corev1.Service, _ corev1.ServicePort) httpCheck {
	counts := !isAlibabaNLB(s) || strings.EqualFold(alibabaValue(s, "health-check-flag"), "on")
	if !counts || !strings.EqualFold(alibabaValue(s, "health-check-type"), "http") {
		return httpCheck{}
	}
	return httpCheck{alibabaCheck + "type", `use "tcp"`, alibabaValue(s, "health-check-connect-port"), "HTTP"}
}
