package loadbalancer

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Condition is when a cloud does not honour an annotation that switches headers on: the annotation stands, and other
// facts of the Service decide. Its texts are plain: the page shows what is in quotes, and names of annotations, as code.
type Condition struct {
	When  []Fact     // all of them hold
	State proxyState // Ignored or Unclear
	Cloud string     // what the cloud does then, as a clause
	Fix   string     // what to do, as an imperative
	URL   string     // where that was read, if not where the provider's values were
	// Elsewhere says that the load balancer is not one of this row at all. So the annotation does not contradict what
	// another row reads.
	Elsewhere bool
	// PersistsWhenRemoved says that the load balancer may stay as it was when the annotation is removed.
	PersistsWhenRemoved bool
}

// What follows from a condition.
const (
	// Ignored: the cloud certainly sends no headers because of this annotation. The provider's next annotation may
	// still say something about the port.
	Ignored = proxyOff
	// Unclear: the cloud refuses the Service and leaves its load balancer as it was, or what it does depends on the
	// release of its controller, on the load balancer itself, or on something that the cloud decides later.
	Unclear = proxyUnknown
)

// Fact is something about a Service, or about one of its ports, that a cloud regards.
type Fact struct {
	Clause string // "KEY is "value"", or the like
	holds  func(*corev1.Service, corev1.ServicePort) bool
	fields []field // what it reads: a change of them can switch headers on or off
}

// field is the path of a field of the Service in managedFields.
type field []string

// annotationField is the field of an annotation.
func annotationField(key string) field { return field{"f:metadata", "f:annotations", "f:" + key} }

// specField is a field of the Service's spec.
func specField(name string) field { return field{"f:spec", "f:" + name} }

// leavesClasses is the condition of controllers on Kubernetes' own framework for clouds (k8s.io/cloud-provider): none
// of them creates a load balancer for a Service that has a class.
var leavesClasses = Condition{
	When: []Fact{hasClass()}, State: Ignored, Elsewhere: true, Cloud: "the cloud's controller leaves the Service to another one",
	Fix: "create another Service without the class; or remove this annotation and, if the other load balancer sends PROXY headers, " +
		"set Usher's proxy_protocol.mode",
	URL: "https://github.com/kubernetes/cloud-provider/blob/master/controllers/service/controller.go",
}

// refusesService is what controllers do with a Service that they cannot create a load balancer for.
const refusesService = "the cloud's controller refuses the Service and does not change the load balancer"

// refuses is the condition of controllers that refuse a Service because of a fact.
func refuses(f Fact, fix string) Condition {
	return Condition{When: []Fact{f}, State: Unclear, Cloud: refusesService, Fix: fix}
}

// refusesUDP is the condition of controllers that refuse any Service with a UDP port.
var refusesUDP = refuses(hasUDPPort(), "create another Service for the UDP port")

// readAt is the condition with the address where it was read.
func (c Condition) readAt(url string) Condition {
	c.URL = url
	return c
}

// holds reports whether the condition holds for a port of the Service.
func (c Condition) holds(s *corev1.Service, p corev1.ServicePort) bool {
	return !slices.ContainsFunc(c.When, func(f Fact) bool { return !f.holds(s, p) })
}

// problem says what is wrong with a port, what the cloud does, and what to do.
func (c Condition) problem(port int32) string {
	return fmt.Sprintf("where %s, %s; %s", forPort(c.Clause(), port), c.Cloud, c.Fix)
}

// Clause says when the condition holds.
func (c Condition) Clause() string {
	var clauses []string
	for _, f := range c.When {
		clauses = append(clauses, f.Clause)
	}
	return joined(clauses, "and")
}

// notHonoured returns the first condition under which the provider does not honour the annotation; false: it does.
func (p Provider) notHonoured(a Annotation, s *corev1.Service, port corev1.ServicePort) (Condition, bool) {
	for _, c := range slices.Concat(a.NotHonoured, p.NotHonoured) {
		if c.holds(s, port) {
			return c, true
		}
	}
	return Condition{}, false
}

// fields returns what the conditions on an annotation read for a port.
func (p Provider) fields(a Annotation, port int32) []field {
	var all []field
	for _, c := range slices.Concat(a.NotHonoured, p.NotHonoured) {
		for _, f := range c.When {
			for _, path := range f.fields {
				last := len(path) - 1
				all = append(all, append(path[:last:last], forPort(path[last], port)))
			}
		}
	}
	return all
}

// annotation is the fact that holds says something about the value of an annotation, which is "" where the Service
// has none. "<port>" in its key stands for the port.
func annotation(key, clause string, holds func(value string) bool) Fact {
	return Fact{
		Clause: key + " " + clause, fields: []field{annotationField(key)},
		holds: func(s *corev1.Service, p corev1.ServicePort) bool { return holds(s.Annotations[forPort(key, p.Port)]) },
	}
}

// with returns facts and more of them.
func with(facts []Fact, more ...Fact) []Fact { return slices.Concat(facts, more) }

// is is the fact that an annotation has one of these values.
func is(key string, values ...string) Fact {
	return annotation(key, "is "+quoted(values, "or"), func(value string) bool { return slices.Contains(values, value) })
}

// isAnyCase is the fact that an annotation has one of these values, which are in lower case, in whatever case.
func isAnyCase(key string, values ...string) Fact {
	return annotation(key, "is "+quoted(values, "or"), func(value string) bool {
		return slices.Contains(values, strings.ToLower(value))
	})
}

// isTrue is the fact that strconv.ParseBool reads an annotation as true.
func isTrue(key string) Fact {
	return annotation(key, `is "true"`, func(value string) bool {
		on, err := strconv.ParseBool(value)
		return err == nil && on
	})
}

// has is the fact that a text is somewhere in an annotation.
func has(key, text string) Fact {
	return annotation(key, "contains "+strconv.Quote(text), func(value string) bool { return strings.Contains(value, text) })
}

// isSet is the fact that an annotation has a value.
func isSet(key string) Fact {
	return annotation(key, "is set", func(value string) bool { return value != "" })
}

// isUnset is the fact that an annotation is absent, or empty.
func isUnset(key string) Fact { return not(isSet(key), key+" is not set") }

// isNot is the fact that an annotation is absent or has none of these values.
func isNot(key string, values ...string) Fact {
	return not(is(key, values...), key+" "+isNone(values))
}

// isNone is the predicate that something is none of these values.
func isNone(values []string) string {
	if len(values) == 1 {
		return "is not " + quoted(values, "or")
	}
	return "is neither " + quoted(values, "nor")
}

// not is the opposite of a fact.
func not(f Fact, clause string) Fact {
	return Fact{Clause: clause, fields: f.fields, holds: func(s *corev1.Service, p corev1.ServicePort) bool { return !f.holds(s, p) }}
}

// hasClass is the fact that the Service has one of these classes, or, without any, a class at all.
func hasClass(classes ...string) Fact {
	clause := "spec.loadBalancerClass is set"
	if len(classes) > 0 {
		clause = "spec.loadBalancerClass is " + quoted(classes, "or")
	}
	return Fact{
		Clause: clause, fields: []field{specField("loadBalancerClass")},
		holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
			class := s.Spec.LoadBalancerClass
			return class != nil && (len(classes) == 0 || slices.Contains(classes, *class))
		},
	}
}

// namesPort is the fact that an annotation is absent, "*", or a list with the port's number or name.
func namesPort(key string) Fact {
	return Fact{
		Clause: key + " names the port or is not set", fields: []field{annotationField(key), specField("ports")},
		holds: func(s *corev1.Service, p corev1.ServicePort) bool {
			list := s.Annotations[key]
			for item := range strings.SplitSeq(list, ",") {
				if item = strings.TrimSpace(item); item == "*" || item == strconv.Itoa(int(p.Port)) || item != "" && item == p.Name {
					return true
				}
			}
			return list == ""
		},
	}
}

// hasHostname is the fact that a host name in the Service's status matches.
func hasHostname(clause string, expression *regexp.Regexp) Fact {
	return Fact{Clause: clause, holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
		return slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(i corev1.LoadBalancerIngress) bool {
			return expression.MatchString(i.Hostname)
		})
	}}
}

// isClusterPolicy is the fact that any node takes traffic of the load balancer.
func isClusterPolicy() Fact {
	return Fact{
		Clause: `spec.externalTrafficPolicy is "Cluster"`, fields: []field{specField("externalTrafficPolicy")},
		holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
			return s.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal
		},
	}
}

// hasOtherClass is the fact that the Service has a class, which is none of these.
func hasOtherClass(classes ...string) Fact {
	known := hasClass(classes...)
	f := hasClass()
	f.Clause += " and " + isNone(classes)
	f.holds = func(s *corev1.Service, p corev1.ServicePort) bool {
		return s.Spec.LoadBalancerClass != nil && !known.holds(s, p)
	}
	return f
}

// hasNoClass is the fact that the Service has no class, so the cluster's default controller is responsible for it.
func hasNoClass() Fact { return not(hasClass(), "spec.loadBalancerClass is not set") }

// hasNoNodePort is the fact that Kubernetes has allocated no nodePort to the port.
func hasNoNodePort() Fact {
	return Fact{
		Clause: "spec.allocateLoadBalancerNodePorts is \"false\" and the port has no nodePort",
		fields: []field{specField("allocateLoadBalancerNodePorts"), specField("ports")},
		holds: func(s *corev1.Service, p corev1.ServicePort) bool {
			allocate := s.Spec.AllocateLoadBalancerNodePorts
			return allocate != nil && !*allocate && p.NodePort == 0
		},
	}
}

// hasSessionAffinity is the fact that a client's connections go to the same pod.
func hasSessionAffinity() Fact {
	return Fact{
		Clause: `spec.sessionAffinity is "ClientIP"`, fields: []field{specField("sessionAffinity")},
		holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
			return s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP
		},
	}
}

// allocatesNoNodePorts is the fact that Kubernetes allocates no nodePorts to the Service.
var allocatesNoNodePorts = Fact{
	Clause: "spec.allocateLoadBalancerNodePorts is \"false\"", fields: []field{specField("allocateLoadBalancerNodePorts")},
	holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
		allocate := s.Spec.AllocateLoadBalancerNodePorts
		return allocate != nil && !*allocate
	},
}

// hasUDPPort is the fact that any port of the Service is one for UDP.
func hasUDPPort() Fact {
	return Fact{
		Clause: "the Service has a UDP port", fields: []field{specField("ports")},
		holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
			return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Protocol == corev1.ProtocolUDP })
		},
	}
}

// quoted joins values: "a", "b" or "c".
func quoted(values []string, conjunction string) string {
	all := make([]string, len(values))
	for i, v := range values {
		all[i] = strconv.Quote(v)
	}
	return joined(all, conjunction)
}

// joined joins words: a, b or c.
func joined(words []string, conjunction string) string {
	last := len(words) - 1
	if last <= 0 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " " + conjunction + " " + words[last]
}
