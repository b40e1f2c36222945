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
type told struct {
	listeners map[int]tell // by the port that a port of the Service leads to
	others    tell         // of the listeners that none of them leads to
	// peerIsClient says that connections come from the clients' own addresses.
	peerIsClient bool
	created      time.Time
	newest       time.Time // see times
	version      string    // the Service's resourceVersion
	problems     []problem.Problem
}

// tell is what the balancer was told of one listener.
type tell struct {
	signal signal
	sends  settings.Version // where it is on; "" if that is not known
	since  time.Time        // where it is on: when it was told so
	// kept is the problem that removing the annotation will be: the cloud does not
	// follow that. The zero value: removing it switches headers off.
	kept problem.Problem
	// untold says that no annotation says anything.
	untold bool
}

// read gives what a Service has told its balancer. It is a function of the
// Service alone, so that every Usher and every restarted one finds the same.
func read(s *corev1.Service) told {
	r := reader{service: s, times: timesOf(s)}
	t := told{listeners: map[int]tell{}, others: tell{signal: off}, created: r.times.created, newest: r.times.newest, version: s.ResourceVersion}
	for _, p := range s.Spec.Ports {
		if p.Protocol != corev1.ProtocolTCP && p.Protocol != "" {
			continue
		}
		of := r.port(p)
		if p.TargetPort.Type == intstr.String {
			t.others = r.named(p, t.others, of)
			continue
		}
		listener := listenerOf(p)
		if before, twice := t.listeners[listener]; twice {
			of = r.both(listener, before, of)
		}
		t.listeners[listener] = of
	}
	t.peerIsClient = peerIsClient(s)
	r.health(t)
	t.problems = r.problems
	return t
}

// listenerOf gives the port of the listener that a port of the Service leads to,
// if that is told by a number.
func listenerOf(p corev1.ServicePort) int { return cmp.Or(p.TargetPort.IntValue(), int(p.Port)) }

// reader reads one Service.
type reader struct {
	service  *corev1.Service
	times    times
	problems []problem.Problem
}

// where names the Service in problems.
func where(namespace, name string) string {
	return fmt.Sprintf("Kubernetes Service %s/%s", namespace, name)
}

// at names an annotation in problems, or, with key "", the Service.
func (r *reader) at(key string) string {
	at := where(r.service.Namespace, r.service.Name)
	if key != "" {
		at += ": " + key
	}
	return at
}

// problem notes what is wrong with an annotation, or, with key "", with the
// Service as a whole.
func (r *reader) problem(key, what string) {
	if p := (problem.Problem{Where: r.at(key), What: what}); !slices.Contains(r.problems, p) {
		r.problems = append(r.problems, p)
	}
}

// decided is what the annotations of one provider say of a port.
type decided struct {
	verdict
	key  string   // of the one that counts
	keys []string // all that there are, for the time
}

// port gives what the balancer was told of a port of the Service.
func (r *reader) port(p corev1.ServicePort) tell {
	var deciding []decided
	for _, provider := range providers {
		if d := r.ask(provider, p); d.signal != silent {
			deciding = append(deciding, d)
		}
	}
	if len(deciding) == 0 {
		return tell{signal: off, untold: true}
	}
	first := deciding[0]
	for _, d := range deciding[1:] {
		if d.signal != first.signal && d.signal != unclear && first.signal != unclear {
			r.problem(d.key, fmt.Sprintf("it contradicts %s, and nobody can tell which cloud reads them; remove the one that is not your cloud's", first.key))
			return tell{signal: unclear}
		}
		if d.signal == unclear {
			first.signal = unclear
		}
		if d.sends != first.sends {
			first.sends = ""
		}
		first.kept = first.kept && d.kept
		first.keys = append(first.keys, d.keys...)
	}
	if first.signal == on && r.service.Spec.Type != corev1.ServiceTypeLoadBalancer {
		r.problem(first.key, fmt.Sprintf("clouds read it on Services of type LoadBalancer only, and this one is a %s; change the type, or, with a balancer of your own, set usher's proxy_protocol.mode instead",
			cmp.Or(r.service.Spec.Type, corev1.ServiceTypeClusterIP)))
		return tell{signal: off}
	}
	if first.signal != on {
		return tell{signal: first.signal}
	}
	t := tell{signal: on, sends: first.sends, since: r.times.of(first.keys)}
	if first.kept {
		t.kept = r.leftBehind(first)
	}
	return t
}

// leftBehind is the problem that the removal of an annotation will be.
func (r *reader) leftBehind(d decided) problem.Problem {
	cure := "a balancer of this cloud does not stop: make the Service anew, or set usher's proxy_protocol.mode"
	if d.off != "" {
		cure = fmt.Sprintf("set it to %q to switch them off", d.off)
	}
	return problem.Problem{
		Where: r.at(d.key),
		What:  "it is gone, but this cloud leaves the balancer as it was then, which sends PROXY headers; " + cure,
	}
}

// ask gives what the first annotation of a provider says that says anything of
// the port.
func (r *reader) ask(provider []Annotation, p corev1.ServicePort) decided {
	var d decided
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
		if d.signal == silent {
			d.verdict, d.key = r.verdict(a, said{value: value, port: p}), key
		}
	}
	return d
}

func (r *reader) verdict(a Annotation, s said) verdict {
	v := a.form.read(s)
	if v.signal == on && a.unless != nil {
		if why := a.unless(r.service); why != "" {
			v = verdict{signal: unclear, problem: why}
		}
	}
	if v.signal == on {
		v = r.limit(a, v, s.port)
	}
	if v.problem != "" {
		r.problem(a.keyFor(s.port.Port), v.problem)
	}
	return v
}

// limit applies the second annotation, where there is one.
func (r *reader) limit(a Annotation, v verdict, p corev1.ServicePort) verdict {
	list, there := r.service.Annotations[a.ports]
	if a.ports == "" || !there {
		return v
	}
	ports, ok := portsIn(list)
	switch {
	case !ok:
		r.problem(a.ports, fmt.Sprintf("%q is no list of ports; use ports of the Service, such as \"80,443\"", clip(list)))
		return verdict{signal: unclear}
	case slices.Contains(ports, p.Port):
		return v
	}
	return verdict{signal: off}
}

// named takes into account a port that leads to a port of the pod by its name:
// nothing in a Service tells the number.
func (r *reader) named(p corev1.ServicePort, others, of tell) tell {
	if of.signal == off {
		return others
	}
	r.problem("", fmt.Sprintf("port %d leads to the pod's port %q, and only a number tells which listener that is; use the number as its targetPort", p.Port, p.TargetPort.StrVal))
	return tell{signal: unclear}
}

// both joins what two ports of the Service say of one listener.
func (r *reader) both(listener int, a, b tell) tell {
	if a.sends != b.sends {
		a.sends = ""
	}
	switch {
	case a.signal == unclear || b.signal == unclear:
		return tell{signal: unclear}
	case a.signal == b.signal:
		if b.since.After(a.since) {
			a.since = b.since
		}
		return a
	}
	r.problem("", fmt.Sprintf("of its ports that lead to %d, the balancer sends PROXY headers on some and none on others, so that this listener has to take connections without; treat all of them alike", listener))
	return tell{signal: mixed}
}

// providers are the rows of the table by provider, in its order.
var providers = func() [][]Annotation {
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
func peerIsClient(s *corev1.Service) bool {
	switch value, _ := attributeIn(s.Annotations[awsAttributes], awsPreserve); strings.ToLower(value) {
	case "true":
		return true
	case "false":
		return false
	}
	return s.Annotations[awsTargetType] == "instance" && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}
