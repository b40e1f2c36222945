package loadbalancer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// serviceIntent is what a Service asks of its load balancer.
type serviceIntent struct {
	ports             map[int]portIntent // by the port that a port of the Service leads to
	otherPorts        portIntent         // for the listeners that no port of the Service leads to
	preservesClientIP bool               // connections come from the clients' own addresses
	created           time.Time
	modified          time.Time // see changeTimes
	resourceVersion   string
	problems          []problem.Problem
}

// portIntent is what a Service asks of its load balancer for one listener. The exported fields are stored as JSON,
// see stateStore.
type portIntent struct {
	State   proxyState       `json:"told"`
	Version settings.Version `json:"sends,omitempty"` // where it is on; empty if it is not known
	// RemovalProblem is the problem that removing the annotation causes, because the cloud then leaves the load
	// balancer as it is. The zero value: removing it switches headers off.
	RemovalProblem problem.Problem `json:"kept,omitzero"`

	since time.Time // where it is on: since when
	unset bool      // no annotation says anything
}

// readIntent returns what a Service asks of its load balancer. It depends on the Service alone, so all replicas and
// restarts find the same.
func readIntent(s *corev1.Service) serviceIntent {
	r := intentReader{service: s, times: changeTimesOf(s)}
	intent := serviceIntent{
		ports: map[int]portIntent{}, otherPorts: portIntent{State: proxyOff}, preservesClientIP: preservesClientIP(s),
		created: r.times.created, modified: r.times.modified, resourceVersion: s.ResourceVersion,
	}
	for _, p := range s.Spec.Ports {
		if p.Protocol != corev1.ProtocolTCP && p.Protocol != "" {
			continue
		}
		ofPort := r.portIntent(p)
		if p.TargetPort.Type == intstr.String {
			intent.otherPorts = r.namedTarget(p, intent.otherPorts, ofPort)
			continue
		}
		listener := listenerPort(p)
		if other, found := intent.ports[listener]; found {
			ofPort = r.combine(listener, other, ofPort)
		}
		intent.ports[listener] = ofPort
	}
	r.checkHealthChecks(intent)
	intent.problems = r.problems
	return intent
}

// listenerPort returns the port of the listener that a port of the Service leads to, if that is a number.
func listenerPort(p corev1.ServicePort) int { return cmp.Or(p.TargetPort.IntValue(), int(p.Port)) }

// intentReader reads one Service.
type intentReader struct {
	service  *corev1.Service
	times    changeTimes
	problems []problem.Problem
}

// serviceName names a Service in problems.
func serviceName(namespace, name string) string {
	return fmt.Sprintf("Kubernetes Service %s/%s", namespace, name)
}

// where names an annotation in problems, or, with key "", the Service.
func (r *intentReader) where(key string) string {
	where := serviceName(r.service.Namespace, r.service.Name)
	if key != "" {
		where += ": " + key
	}
	return where
}

// addProblem records what is wrong with an annotation, or, with key "", with the Service as a whole.
func (r *intentReader) addProblem(key, what string) {
	if p := (problem.Problem{Where: r.where(key), What: what}); !slices.Contains(r.problems, p) {
		r.problems = append(r.problems, p)
	}
}

// providerIntent is what the annotations of one provider say about a port.
type providerIntent struct {
	parsedValue          // of the annotation that counts
	Format               // of this annotation
	key         string   // of this annotation
	keys        []string // of all annotations of the provider, for the time of the last change
}

// portIntent returns what the Service asks for one of its ports.
func (r *intentReader) portIntent(p corev1.ServicePort) portIntent {
	var found []providerIntent
	for _, provider := range Providers {
		if intent := r.providerIntent(provider, p); intent.state != proxyUnset {
			found = append(found, intent)
		}
	}
	if len(found) == 0 {
		return portIntent{State: proxyOff, unset: true}
	}
	first := found[0]
	for _, other := range found[1:] {
		if other.state != first.state && other.state != proxyUnknown && first.state != proxyUnknown {
			r.addProblem(other.key, fmt.Sprintf("it contradicts %s, and Usher cannot know which of them your cloud reads; "+
				"remove the one of the other cloud", first.key))
			return portIntent{State: proxyUnknown}
		}
		if other.state == proxyUnknown {
			first.state = proxyUnknown
		}
		if other.version != first.version {
			first.version = ""
		}
		first.Sticky = first.Sticky && other.Sticky
		first.keys = append(first.keys, other.keys...)
	}
	if first.state != proxyOn {
		return portIntent{State: first.state}
	}
	if r.service.Spec.Type != corev1.ServiceTypeLoadBalancer {
		r.addProblem(first.key, fmt.Sprintf(
			"clouds read it only on Services of type LoadBalancer, and this Service has the type %s; change the type, "+
				"or, with a load balancer of your own, set Usher's proxy_protocol.mode instead",
			cmp.Or(r.service.Spec.Type, corev1.ServiceTypeClusterIP)))
		return portIntent{State: proxyOff}
	}
	intent := portIntent{State: proxyOn, Version: first.version, since: r.times.lastChange(first.keys)}
	if first.Sticky {
		intent.RemovalProblem = r.removalProblem(first)
	}
	return intent
}

// removalProblem returns the problem that removing an annotation causes.
func (r *intentReader) removalProblem(intent providerIntent) problem.Problem {
	fix := "recreate the Service, or set Usher's proxy_protocol.mode"
	if len(intent.Off) > 0 {
		fix = fmt.Sprintf("set it to %q", intent.Off[0])
	}
	return problem.Problem{
		Where: r.where(intent.key),
		What:  "the annotation was removed, which does not stop this cloud's load balancer from sending PROXY headers; " + fix,
	}
}

// providerIntent returns what the first annotation of a provider says that says anything about the port.
func (r *intentReader) providerIntent(provider Provider, p corev1.ServicePort) providerIntent {
	var intent providerIntent
	for _, a := range provider.Annotations {
		key := a.keyFor(p.Port)
		value, found := r.service.Annotations[key]
		if !found {
			continue
		}
		intent.keys = append(intent.keys, key)
		if a.PortsKey != "" {
			intent.keys = append(intent.keys, a.PortsKey)
		}
		if intent.state == proxyUnset {
			intent.parsedValue, intent.Format, intent.key = r.parse(a, key, value, p), a.Format, key
		}
	}
	return intent
}

func (r *intentReader) parse(a Annotation, key, value string, p corev1.ServicePort) parsedValue {
	v := a.parse(value, p)
	if v.state == proxyOn && a.check != nil {
		if err := a.check(r.service); err != nil {
			v = parsedValue{state: proxyUnknown, problem: err.Error()}
		}
	}
	if v.state == proxyOn && a.PortsKey != "" {
		v = r.filterPorts(a.PortsKey, v, p)
	}
	if v.problem != "" {
		r.addProblem(key, v.problem)
	}
	return v
}

// filterPorts applies the second annotation, where the Service has it.
func (r *intentReader) filterPorts(key string, v parsedValue, p corev1.ServicePort) parsedValue {
	list, found := r.service.Annotations[key]
	ports, ok := parsePortNumbers(list)
	switch {
	case !found || ok && slices.Contains(ports, p.Port):
		return v
	case ok:
		return parsedValue{state: proxyOff}
	}
	r.addProblem(key, fmt.Sprintf(`%.64q is not a list of ports; use ports of the Service, such as "80,443"`, list))
	return parsedValue{state: proxyUnknown}
}

// namedTarget takes a port into account that leads to a port of the pod by its name: the Service does not have its
// number.
func (r *intentReader) namedTarget(p corev1.ServicePort, others, ofPort portIntent) portIntent {
	if ofPort.State == proxyOff {
		return others
	}
	r.addProblem("", fmt.Sprintf("port %d has the targetPort %q, and Usher cannot know which listener that is; "+
		"use the number as targetPort", p.Port, p.TargetPort.StrVal))
	return portIntent{State: proxyUnknown}
}

// combine joins what two ports of the Service ask for one listener.
func (r *intentReader) combine(listener int, a, b portIntent) portIntent {
	if a.Version != b.Version {
		a.Version = ""
	}
	switch {
	case a.State == proxyUnknown || b.State == proxyUnknown:
		return portIntent{State: proxyUnknown}
	case a.State == b.State:
		if b.since.After(a.since) {
			a.since = b.since
		}
		return a
	}
	r.addProblem("", fmt.Sprintf("ports with the targetPort %d disagree: PROXY protocol is on for some and off for others, "+
		"so the listener stays permissive; use the same for all of them", listener))
	return portIntent{State: proxyMixed}
}

// preservesClientIP reports whether AWS keeps the clients' addresses on connections
// (https://docs.aws.amazon.com/elasticloadbalancing/latest/network/edit-target-group-attributes.html#client-ip-preservation):
// by default it does for instances, and of those only externalTrafficPolicy Local keeps the address up to the pod.
func preservesClientIP(s *corev1.Service) bool {
	switch value, _ := attributeIn(s.Annotations[awsAttributes], awsPreserveClientIP); strings.ToLower(value) {
	case "true":
		return true
	case "false":
		return false
	}
	local := s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	return s.Annotations[awsTargetType] == "instance" && local
}

// changeTimes are when the parts of a Service were last changed, according to its managedFields
// (https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management). A manager's time moves
// whenever that manager changes anything, so each time is the latest possible: a grace period may start again, and
// never starts too early. The times are of the API server's clock, so all readers of the Service agree.
type changeTimes struct {
	created time.Time
	// modified is when anything but the status was changed; a field that is only removed leaves no time.
	modified time.Time
	managers []managedFields
}

// managedFields are the fields that one manager owns.
type managedFields struct {
	at     time.Time
	fields map[string]any
}

func changeTimesOf(s *corev1.Service) changeTimes {
	t := changeTimes{created: utc(s.CreationTimestamp.Time), modified: utc(s.CreationTimestamp.Time)}
	for _, m := range s.ManagedFields {
		if m.Subresource != "" || m.Time == nil || m.FieldsV1 == nil {
			continue
		}
		manager := managedFields{at: utc(m.Time.Time)}
		if json.Unmarshal(m.FieldsV1.GetRawBytes(), &manager.fields) != nil {
			continue
		}
		t.managers = append(t.managers, manager)
		if manager.at.After(t.modified) {
			t.modified = manager.at
		}
	}
	return t
}

// utc returns t in UTC. JSON allows only the years 0 to 9999, and the conversion from another zone can leave them by
// some hours.
func utc(t time.Time) time.Time {
	t = t.UTC()
	switch {
	case t.Year() > 9999:
		return time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
	case t.Year() < 0:
		return time.Time{}
	}
	return t
}

// lastChange returns when annotations, or the type of the Service, became what they are.
func (t changeTimes) lastChange(annotations []string) time.Time {
	latest := t.ownedSince("f:spec", "f:type")
	for _, key := range annotations {
		if at := t.ownedSince("f:metadata", "f:annotations", "f:"+key); at.After(latest) {
			latest = at
		}
	}
	return latest
}

// ownedSince returns when a field became what it is, at the latest. All managers that own it agree on its value, so
// the value is as old as the oldest of them. Without an owner it is as old as the Service.
func (t changeTimes) ownedSince(path ...string) time.Time {
	var oldest time.Time
	for _, m := range t.managers {
		if hasField(m.fields, path) && (oldest.IsZero() || m.at.Before(oldest)) {
			oldest = m.at
		}
	}
	if oldest.IsZero() {
		return t.created
	}
	return oldest
}

func hasField(fields map[string]any, path []string) bool {
	next, found := fields[path[0]]
	if !found || len(path) == 1 {
		return found
	}
	below, _ := next.(map[string]any)
	return hasField(below, path[1:])
}
