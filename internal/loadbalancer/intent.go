package loadbalancer

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// told is what a Service has told its balancer.
type serviceIntent struct {
	listeners map[int]portIntent // by the port that a port of the Service leads to
	others    portIntent         // of the listeners that none of them leads to
	// peerIsClient says that connections come from the clients' own addresses.
	preservesClientIP bool
	created           time.Time
	modified          time.Time // see times
	resourceVersion   string    // the Service's resourceVersion
	problems          []problem.Problem
}

// tell is what the balancer was told of one listener.
type portIntent struct {
	state   proxyState
	version settings.Version // where it is on; "" if that is not known
	since   time.Time        // where it is on: when it was told so
	// kept is the problem that removing the annotation will be: the cloud does not
	// follow that. The zero value: removing it switches headers off.
	removalProblem problem.Problem
	// untold says that no annotation says anything.
	unset bool
}

// read gives what a Service has told its balancer. It is a function of the
// Service alone, so that every Usher and every restarted one finds the same.
func readIntent(s *corev1.Service) serviceIntent {
	r := intentReader{service: s, times: changeTimesOf(s)}
	t := serviceIntent{listeners: map[int]portIntent{}, others: portIntent{state: proxyOff}, created: r.times.created, modified: r.times.modified, resourceVersion: s.ResourceVersion}
	for _, p := range s.Spec.Ports {
		if p.Protocol != corev1.ProtocolTCP && p.Protocol != "" {
			continue
		}
		of := r.portIntent(p)
		if p.TargetPort.Type == intstr.String {
			t.others = r.namedTarget(p, t.others, of)
			continue
		}
		listener := listenerOf(p)
		if before, twice := t.listeners[listener]; twice {
			of = r.combine(listener, before, of)
		}
		t.listeners[listener] = of
	}
	t.preservesClientIP = preservesClientIP(s)
	r.checkHealthChecks(t)
	t.problems = r.problems
	return t
}

// listenerOf gives the port of the listener that a port of the Service leads to,
// if that is told by a number.
func listenerOf(p corev1.ServicePort) int { return cmp.Or(p.TargetPort.IntValue(), int(p.Port)) }

// reader reads one Service.
type intentReader struct {
	service  *corev1.Service
	times    changeTimes
	problems []problem.Problem
}

// where names the Service in problems.
func serviceName(namespace, name string) string {
	return fmt.Sprintf("Kubernetes Service %s/%s", namespace, name)
}

// at names an annotation in problems, or, with key "", the Service.
func (r *intentReader) at(key string) string {
	at := serviceName(r.service.Namespace, r.service.Name)
	if key != "" {
		at += ": " + key
	}
	return at
}

// problem notes what is wrong with an annotation, or, with key "", with the
// Service as a whole.
func (r *intentReader) addProblem(key, what string) {
	if p := (problem.Problem{Where: r.at(key), What: what}); !slices.Contains(r.problems, p) {
		r.problems = append(r.problems, p)
	}
}

// decided is what the annotations of one provider say of a port.
type providerIntent struct {
	parsedValue
	key  string   // of the one that counts
	keys []string // all that there are, for the time
}

// port gives what the balancer was told of a port of the Service.
func (r *intentReader) portIntent(p corev1.ServicePort) portIntent {
	var deciding []providerIntent
	for _, provider := range annotationsByProvider {
		if d := r.providerIntent(provider, p); d.state != proxyUnset {
			deciding = append(deciding, d)
		}
	}
	if len(deciding) == 0 {
		return portIntent{state: proxyOff, unset: true}
	}
	first := deciding[0]
	for _, d := range deciding[1:] {
		if d.state != first.state && d.state != proxyUnknown && first.state != proxyUnknown {
			r.addProblem(d.key, fmt.Sprintf("it contradicts %s, and nobody can tell which cloud reads them; remove the one that is not your cloud's", first.key))
			return portIntent{state: proxyUnknown}
		}
		if d.state == proxyUnknown {
			first.state = proxyUnknown
		}
		if d.version != first.version {
			first.version = ""
		}
		first.sticky = first.sticky && d.sticky
		first.keys = append(first.keys, d.keys...)
	}
	if first.state == proxyOn && r.service.Spec.Type != corev1.ServiceTypeLoadBalancer {
		r.addProblem(first.key, fmt.Sprintf("clouds read it on Services of type LoadBalancer only, and this one is a %s; change the type, or, with a balancer of your own, set usher's proxy_protocol.mode instead",
			cmp.Or(r.service.Spec.Type, corev1.ServiceTypeClusterIP)))
		return portIntent{state: proxyOff}
	}
	if first.state != proxyOn {
		return portIntent{state: first.state}
	}
	t := portIntent{state: proxyOn, version: first.version, since: r.times.of(first.keys)}
	if first.sticky {
		t.removalProblem = r.removalProblem(first)
	}
	return t
}

// leftBehind is the problem that the removal of an annotation will be.
func (r *intentReader) removalProblem(d providerIntent) problem.Problem {
	cure := "a balancer of this cloud does not stop: make the Service anew, or set usher's proxy_protocol.mode"
	if d.offValue != "" {
		cure = fmt.Sprintf("set it to %q to switch them off", d.offValue)
	}
	return problem.Problem{
		Where: r.at(d.key),
		What:  "it is gone, but this cloud leaves the balancer as it was then, which sends PROXY headers; " + cure,
	}
}

// ask gives what the first annotation of a provider says that says anything of
// the port.
func (r *intentReader) providerIntent(provider []Annotation, p corev1.ServicePort) providerIntent {
	var d providerIntent
	for _, a := range provider {
		key := a.keyFor(p.Port)
		value, there := r.service.Annotations[key]
		if !there {
			continue
		}
		d.keys = append(d.keys, key)
		if a.ports != "" {
			d.keys = append(d.keys, a.ports)
		}
		if d.state == proxyUnset {
			d.parsedValue, d.key = r.parse(a, said{value: value, port: p}), key
		}
	}
	return d
}

func (r *intentReader) parse(a Annotation, s said) parsedValue {
	v := a.form.read(s)
	if v.state == proxyOn && a.unless != nil {
		if why := a.unless(r.service); why != "" {
			v = parsedValue{state: proxyUnknown, problem: why}
		}
	}
	if v.state == proxyOn {
		v = r.filterPorts(a, v, s.port)
	}
	if v.problem != "" {
		r.addProblem(a.keyFor(s.port.Port), v.problem)
	}
	return v
}

// limit applies the second annotation, where there is one.
func (r *intentReader) filterPorts(a Annotation, v parsedValue, p corev1.ServicePort) parsedValue {
	list, there := r.service.Annotations[a.ports]
	if a.ports == "" || !there {
		return v
	}
	ports, ok := portsIn(list)
	switch {
	case !ok:
		r.addProblem(a.ports, fmt.Sprintf("%q is no list of ports; use ports of the Service, such as \"80,443\"", clip(list)))
		return parsedValue{state: proxyUnknown}
	case slices.Contains(ports, p.Port):
		return v
	}
	return parsedValue{state: proxyOff}
}

// named takes into account a port that leads to a port of the pod by its name:
// nothing in a Service tells the number.
func (r *intentReader) namedTarget(p corev1.ServicePort, others, of portIntent) portIntent {
	if of.state == proxyOff {
		return others
	}
	r.addProblem("", fmt.Sprintf("port %d leads to the pod's port %q, and only a number tells which listener that is; use the number as its targetPort", p.Port, p.TargetPort.StrVal))
	return portIntent{state: proxyUnknown}
}

// both joins what two ports of the Service say of one listener.
func (r *intentReader) combine(listener int, a, b portIntent) portIntent {
	if a.version != b.version {
		a.version = ""
	}
	switch {
	case a.state == proxyUnknown || b.state == proxyUnknown:
		return portIntent{state: proxyUnknown}
	case a.state == b.state:
		if b.since.After(a.since) {
			a.since = b.since
		}
		return a
	}
	r.addProblem("", fmt.Sprintf("of its ports that lead to %d, the balancer sends PROXY headers on some and none on others, so that this listener has to take connections without; treat all of them alike", listener))
	return portIntent{state: proxyMixed}
}

// providers are the rows of the table by provider, in its order.
var annotationsByProvider = func() [][]Annotation {
	var out [][]Annotation
	for i, a := range Annotations {
		if i == 0 || a.Provider != Annotations[i-1].Provider {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], a)
	}
	return out
}()

// peerIsClient says whether AWS keeps the clients' addresses on connections
// (https://docs.aws.amazon.com/elasticloadbalancing/latest/network/edit-target-group-attributes.html#client-ip-preservation):
// it does by default for instances, of which only externalTrafficPolicy Local
// keeps it up to the pod.
func preservesClientIP(s *corev1.Service) bool {
	switch value, _ := attributeIn(s.Annotations[awsAttributes], awsPreserveClientIP); strings.ToLower(value) {
	case "true":
		return true
	case "false":
		return false
	}
	return s.Annotations[awsTargetType] == "instance" && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}
