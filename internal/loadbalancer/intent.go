package loadbalancer

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// serviceIntent is what a Service asks of its load balancer.
type serviceIntent struct {
	ports             map[int]portIntent // by the targetPort of a port of the Service: the port of a listener
	otherPorts        portIntent         // for the listeners that no port of the Service leads to
	preservesClientIP bool               // connections come from the clients' own addresses
	created           time.Time
	modified          time.Time // when anything but the status was changed; a field that is only removed leaves no time
	resourceVersion   string
	problems          []problem.Problem
}

// portIntent is what a Service asks of its load balancer for one listener. The exported fields are in the record.
type portIntent struct {
	State   proxyState       `json:"state"`
	Version settings.Version `json:"version,omitempty"` // where it is on; empty if it is not known
	// RemovalProblem is the problem that removing the annotation causes, because the cloud then leaves the load
	// balancer as it is. The zero value: removing it switches headers off.
	RemovalProblem problem.Problem `json:"removalProblem,omitzero"`

	since time.Time // where it is on: since when
	unset bool      // no annotation says anything
	key   string    // where it is on: the annotation that says so
}

// intentReader reads one Service.
type intentReader struct {
	serviceIntent // what was read
	service       *corev1.Service
	managers      []managedFields
}

// readIntent returns what a Service asks of its load balancer. It depends on the Service alone, so all replicas and
// restarts find the same.
func readIntent(s *corev1.Service) serviceIntent {
	created := utc(s.CreationTimestamp.Time)
	r := intentReader{service: s, serviceIntent: serviceIntent{
		ports: map[int]portIntent{}, otherPorts: portIntent{State: proxyOff}, preservesClientIP: preservesClientIP(s),
		created: created, modified: created, resourceVersion: s.ResourceVersion,
	}}
	r.readManagedFields()
	for _, p := range s.Spec.Ports {
		if p.Protocol == corev1.ProtocolTCP || p.Protocol == "" {
			r.addPort(p, r.readPort(p))
		}
	}
	r.checkHealthChecks()
	return r.serviceIntent
}

// addPort adds what the Service asks for one of its ports to the listener that the port leads to.
func (r *intentReader) addPort(p corev1.ServicePort, intent portIntent) {
	listener := targetPort(p)
	other, found := r.ports[listener]
	switch {
	case p.TargetPort.Type == intstr.String && intent.State == proxyOff:
	case p.TargetPort.Type == intstr.String: // only the pod has its number
		r.addProblem("", fmt.Sprintf("port %d has a named targetPort (%q), and Usher needs the number of the listener; "+
			"use the number, such as targetPort: 8080", p.Port, p.TargetPort.StrVal))
		r.otherPorts = portIntent{State: proxyUnknown}
	case found:
		r.ports[listener] = r.combinePorts(listener, other, intent)
	default:
		r.ports[listener] = intent
	}
}

// targetPort returns the targetPort of a port, if that is a number.
func targetPort(p corev1.ServicePort) int { return cmp.Or(p.TargetPort.IntValue(), int(p.Port)) }

// addProblem records what is wrong with an annotation, or, with key "", with the Service as a whole.
func (r *intentReader) addProblem(key, what string) {
	if p := (problem.Problem{Where: r.where(key), What: what}); !slices.Contains(r.problems, p) {
		r.problems = append(r.problems, p)
	}
}

// where names an annotation in problems, or, with key "", the Service.
func (r *intentReader) where(key string) string {
	return strings.TrimSuffix(gateway.KubernetesService{Namespace: r.service.Namespace, Name: r.service.Name}.String()+": "+key, ": ")
}

// providerIntent is what the annotations of one provider say about a port.
type providerIntent struct {
	parsedValue           // of the annotation that counts
	Format                // of this annotation
	key         string    // of this annotation
	notHonoured Condition // why the cloud does not honour that it switches headers on; the zero value: it does
	fields      []field   // all that the provider reads for the port, for the time of the last change
}

// readPort returns what the Service asks for one of its ports.
func (r *intentReader) readPort(p corev1.ServicePort) portIntent {
	var found providerIntent // of all providers, as far as they agree
	for _, provider := range Providers {
		switch next := r.readProvider(provider, p); {
		case next.state == proxyUnset:
		case found.state == proxyUnset || found.notHonoured.Elsewhere && !next.notHonoured.Elsewhere:
			next.fields = append(found.fields, next.fields...)
			found = next
		case next.notHonoured.Elsewhere:
			found.fields = append(found.fields, next.fields...)
		case next.state != found.state && next.state != proxyUnknown && found.state != proxyUnknown:
			r.addProblem(next.key, fmt.Sprintf("it contradicts %s, and Usher cannot know which of them your cloud reads; "+
				"remove the annotation that your cloud does not read", found.key))
			found.state = proxyUnknown
		default:
			found.combine(next)
		}
	}
	switch {
	case found.state == proxyUnset:
		return portIntent{State: proxyOff, unset: true}
	case found.notHonoured.Elsewhere:
		r.addProblem(found.key, found.problem)
		return portIntent{State: found.state}
	case found.state == proxyUnknown && found.notHonoured.PersistsWhenRemoved:
		return portIntent{State: proxyUnknown, RemovalProblem: r.removalProblem(found)}
	case found.state != proxyOn:
		return portIntent{State: found.state}
	case r.service.Spec.Type != corev1.ServiceTypeLoadBalancer:
		r.addProblem(found.key, fmt.Sprintf(
			"clouds read it only on Services of type LoadBalancer, and this Service has the type %s; change the type, "+
				"or, with a load balancer of your own, set Usher's proxy_protocol.mode instead",
			cmp.Or(r.service.Spec.Type, corev1.ServiceTypeClusterIP)))
		return portIntent{State: proxyOff}
	}
	intent := portIntent{State: proxyOn, Version: found.version, since: r.lastChange(found.fields)}
	intent.key = found.key
	if found.PersistsWhenRemoved {
		intent.RemovalProblem = r.removalProblem(found)
	}
	return intent
}

// combine adds what another provider says, if it does not contradict.
func (i *providerIntent) combine(other providerIntent) {
	if other.state == proxyUnknown {
		i.state = proxyUnknown
	}
	if other.version != i.version {
		i.version = ""
	}
	i.PersistsWhenRemoved = i.PersistsWhenRemoved && other.PersistsWhenRemoved
	i.fields = append(i.fields, other.fields...)
}

// removalProblem returns the problem that removing an annotation causes.
func (r *intentReader) removalProblem(intent providerIntent) problem.Problem {
	fix := `put it back, or set Usher's proxy_protocol.mode to "strict" (with "off", Envoy would answer 400); ` +
		"only another load balancer sends none"
	if len(intent.Off) > 0 {
		fix = fmt.Sprintf("set it to %q", intent.Off[0])
	}
	const what = "the annotation was removed, which does not stop this cloud's load balancer from sending PROXY headers; "
	return problem.Problem{Where: r.where(intent.key), What: what + fix}
}

// readProvider returns what a provider reads of the port: the first of its annotations that concerns the port counts,
// and one that the cloud ignores only if no other does.
func (r *intentReader) readProvider(provider Provider, p corev1.ServicePort) providerIntent {
	var intent providerIntent
	decided := false
	for _, a := range provider.Annotations {
		key := a.keyFor(p.Port)
		value, found := r.service.Annotations[key]
		if !found {
			continue
		}
		intent.fields = append(append(intent.fields, annotationField(key)), provider.fields(a, p.Port)...)
		if a.PortsKey != "" {
			intent.fields = append(intent.fields, annotationField(a.PortsKey))
		}
		if decided {
			continue
		}
		v, notHonoured := r.readAnnotation(provider, a, value, p)
		ignored := notHonoured.State == Ignored
		if v.state == proxyUnset || ignored && intent.state != proxyUnset {
			continue
		}
		intent.parsedValue, intent.Format, intent.key, intent.notHonoured = v, a.Format, key, notHonoured
		decided = !ignored
	}
	return intent
}

// readAnnotation returns what an annotation says about the port, and why the cloud does not honour that, if it does not.
func (r *intentReader) readAnnotation(provider Provider, a Annotation, value string, p corev1.ServicePort) (parsedValue, Condition) {
	var notHonoured Condition
	v := a.parse(value, p)
	if v.state == proxyOn {
		if c, found := provider.notHonoured(a, r.service, p); found {
			v, notHonoured = parsedValue{state: c.State, problem: c.problem(p.Port)}, c
		}
	}
	if v.state == proxyOn && a.PortsKey != "" {
		v = r.filterPorts(a.PortsKey, v, p)
	}
	if v.problem != "" && !notHonoured.Elsewhere {
		r.addProblem(a.keyFor(p.Port), v.problem)
	}
	return v, notHonoured
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

// combinePorts joins what two ports of the Service ask for one listener.
func (r *intentReader) combinePorts(listener int, a, b portIntent) portIntent {
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
	r.addProblem("", fmt.Sprintf("the load balancer sends PROXY headers on some ports that lead to listener %d "+
		"and not on others, so the listener stays permissive; turn the headers on or off for all of these ports", listener))
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

// managedFields are the fields that one manager owns, and when it last changed any of them
// (https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management). So a field's time is the latest
// possible: a grace period may start again, and never starts too early. The times are of the API server's clock, so all
// readers of the Service agree.
type managedFields struct {
	at     time.Time
	fields map[string]any
}

func (r *intentReader) readManagedFields() {
	for _, m := range r.service.ManagedFields {
		if m.Subresource != "" || m.Time == nil || m.FieldsV1 == nil {
			continue
		}
		manager := managedFields{at: utc(m.Time.Time)}
		if json.Unmarshal(m.FieldsV1.GetRawBytes(), &manager.fields) != nil {
			continue
		}
		r.managers = append(r.managers, manager)
		if manager.at.After(r.modified) {
			r.modified = manager.at
		}
	}
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

// lastChange returns when fields, or the type of the Service, became what they are.
func (r *intentReader) lastChange(fields []field) time.Time {
	latest := r.ownedSince(specField("type"))
	for _, f := range fields {
		if at := r.ownedSince(f); at.After(latest) {
			latest = at
		}
	}
	return latest
}

// ownedSince returns when a field became what it is, at the latest. All managers that own it agree on its value, so
// the value is as old as the oldest of them. Without an owner it is as old as the Service.
func (r *intentReader) ownedSince(f field) time.Time {
	var oldest time.Time
	for _, m := range r.managers {
		_, owned, _ := unstructured.NestedFieldNoCopy(m.fields, f...) // the error: a parent is no object
		if owned && (oldest.IsZero() || m.at.Before(oldest)) {
			oldest = m.at
		}
	}
	if oldest.IsZero() {
		return r.created
	}
	return oldest
}
