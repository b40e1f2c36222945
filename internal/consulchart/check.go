package consulchart

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/usherproxy/usher/internal/problem"
)

// Running is what runs of one gateway. Parts that were not asked for are nil.
type Running struct {
	Deployment string       // NAMESPACE/NAME
	Template   PodParts     // of the Deployment's pod template
	Failure    string       // why Kubernetes cannot create its pods; "" if it can
	Pods       []RunningPod // without those that are being deleted
	// Registered has the Proxy.Config of the gateway's instances in Consul by the names of their pods.
	Registered map[string]map[string]any
	// Connected has the names of the pods whose Envoys have a stream to Usher.
	Connected map[string]bool
	Front     Front
	// SendsHeaders means that the Service of the gateway, which has the Deployment's name, makes the load balancer send PROXY
	// headers.
	SendsHeaders bool
	// NoAnnotation is why there is no annotation for the gateway, so that only flags can move it to Usher; nil if there is
	// one.
	NoAnnotation error
}

// PodParts are the parts of a pod that decide where its Envoy gets its configuration.
type PodParts struct {
	Annotations map[string]string
	Args        []string // of GatewayContainer
}

// RunningPod is a pod of a gateway.
type RunningPod struct {
	Name string
	PodParts
	Waiting string // why it is not ready; "" if it is
}

// way is how a pod comes to Usher.
type way struct{ annotation, flags bool }

// String returns what the pod has, for messages.
func (w way) String() string {
	switch w {
	case way{annotation: true}:
		return "the annotation"
	case way{flags: true}:
		return "flags for consul-dataplane"
	case way{}:
		return "neither"
	}
	return "both"
}

// wayOf returns how a pod comes to Usher.
func (r *Running) wayOf(p PodParts) way {
	members := map[string]any{}
	_ = decodeConfig(p.Annotations[Annotation], &members) // consul-k8s ignores one that is wrong, too
	template, _ := members[BootstrapKey].(string)
	return way{annotation: strings.HasPrefix(template, usherMark), flags: r.Front.flagsIn(p.Args)}
}

// Compare returns how what runs differs from pods that all use Usher, with what to do: by the annotation of the override,
// or by the flags that admission gives them. how is what the pods use, for a message.
func (c GatewayConfig) Compare(r Running) (how string, differences []problem.Problem) {
	d := comparison{gateway: c, running: &r}
	wanted := d.wantedWay()
	how = wanted.String()
	d.headers()
	before := len(d.list)
	if d.deployment(wanted); len(d.list) > before {
		return how, d.list // the pods follow it
	}
	switch {
	case r.Failure != "":
		d.add(d.object(), "Kubernetes cannot create its pods: %s; correct that, and Kubernetes tries again", r.Failure)
	case len(r.Pods) == 0:
		d.add(d.object(), "it has no pods; set its replicas to 1 or more, and look at its events: kubectl describe")
	}
	d.mixture()
	for _, pod := range r.Pods {
		d.pod(pod, wanted)
	}
	return how, d.list
}

// comparison collects what differs for one gateway.
type comparison struct {
	gateway GatewayConfig
	running *Running
	list    []problem.Problem
}

func (d *comparison) add(object, format string, args ...any) {
	where := fmt.Sprintf("gateway %q: %s", d.gateway.Gateway, object)
	d.list = append(d.list, problem.Problem{Where: where, What: fmt.Sprintf(format, args...)})
}

// object is the Deployment, for messages.
func (d *comparison) object() string { return "Deployment " + d.running.Deployment }

// restart is the command that replaces the pods.
func (d *comparison) restart() string {
	namespace, name, _ := strings.Cut(d.running.Deployment, "/")
	return "kubectl --namespace " + namespace + " rollout restart deployment/" + name
}

// wantedWay returns how new pods of the gateway come to Usher. If they do not, it is the way of those that run; and
// without any, the annotation.
func (d *comparison) wantedWay() way {
	r := d.running
	wanted := r.wayOf(r.Template)
	wanted.flags = wanted.flags || r.Front.admission() != nil
	for _, pod := range r.Pods {
		if wanted == (way{}) && r.wayOf(pod.PodParts).flags {
			wanted.flags = true
		}
	}
	wanted.annotation = wanted.annotation || !wanted.flags
	return wanted
}

// headers says what PROXY headers do to pods that do not use Usher. What moves these pods follows in the list.
func (d *comparison) headers() {
	own := 0
	for _, pod := range d.running.Pods {
		if d.running.wayOf(pod.PodParts) == (way{}) {
			own++
		}
	}
	if d.running.SendsHeaders && own > 0 {
		d.add("Service "+d.running.Deployment, "its annotations make the load balancer send PROXY headers, and %d of %d pods do not use Usher, "+
			"so they answer 400 to every request; do what the next lines say, or switch the headers off until then", own, len(d.running.Pods))
	}
}

// deployment compares what decides about new pods.
func (d *comparison) deployment(wanted way) {
	switch {
	case wanted.annotation && wanted.flags:
		d.add(d.object(), "its pods get the annotation %s and Usher's flags for consul-dataplane, and one way back would leave the other; "+
			"run helm upgrade of Consul without the output of usher helm-values, or leave the gateway out of admission.gateways of Usher's chart",
			Annotation)
	case wanted.flags:
		d.front()
	case d.running.NoAnnotation != nil:
		d.add(d.object(), "usher helm-values has no annotation for it: %v", d.running.NoAnnotation)
		if why, remedy := d.running.Front.missing(); why != "" {
			d.add(d.object(), "its pods get no flags for consul-dataplane: %s; %s", why, remedy)
		}
	default:
		d.template()
	}
}

const upgrade = "run helm upgrade with the output of usher helm-values"

// template compares the annotation of the pod template. A gateway without one, or with settings only, can also use flags if
// Usher has a port for them.
func (d *comparison) template() {
	annotations := d.running.Template.Annotations
	lacks := lackOf(annotations)
	why, remedy := d.running.Front.missing()
	if port := d.running.Front.Port; lacks == "" || why == "" || port == NoUsher || port == PortClosed {
		d.annotation(d.object(), "its pod template", annotations, upgrade)
		return
	}
	d.add(d.object(), "its pod template has no %s, and its pods get no flags for consul-dataplane: %s; %s, or %s", lacks, why, upgrade, remedy)
}

// lackOf returns what annotations lack of a bootstrap; "" if they have one, or an annotation that is wrong.
func lackOf(annotations map[string]string) string {
	text, exists := annotations[Annotation]
	var members map[string]any
	switch err := decodeConfig(text, &members); {
	case !exists:
		return "annotation " + Annotation
	case err == nil && members[BootstrapKey] == nil:
		return BootstrapKey + " in the annotation " + Annotation
	}
	return ""
}

// mixture says how many pods use which way, if they differ.
func (d *comparison) mixture() {
	count := map[way]int{}
	for _, pod := range d.running.Pods {
		count[d.running.wayOf(pod.PodParts)]++
	}
	if len(count) < 2 {
		return
	}
	var parts []string
	for _, w := range []way{{annotation: true}, {flags: true}, {annotation: true, flags: true}, {}} {
		if n := count[w]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d with %v", n, w))
		}
	}
	d.add(d.object(), "its pods are not all on one way to Usher (%s); wait until the roll-out is over: kubectl rollout status",
		strings.Join(parts, ", "))
}

// pod compares a pod. Its first difference is the reason of the others.
func (d *comparison) pod(pod RunningPod, wanted way) {
	r, name := d.running, "Pod "+pod.Name
	before := len(d.list)
	switch both := (way{annotation: true, flags: true}); {
	case r.wayOf(pod.PodParts) == both:
		d.add(name, "it has the annotation %s and Usher's flags, and new pods have only one of them; %s", Annotation, d.restart())
	case wanted.flags:
		d.flags(name, pod)
	default:
		d.annotation(name, "it", pod.Annotations, "the roll-out is not over: kubectl rollout status")
	}
	config, registered := r.Registered[pod.Name]
	switch {
	case len(d.list) > before:
	case r.Registered != nil && !registered:
		d.add(name, "Consul has no instance of the gateway with this name; look at the log of the chart's connect-injector")
	case r.Registered != nil && wanted.annotation && !d.isIn(config):
		d.add(name, "its registration in Consul has no %s of usher helm-values; look at the log of the chart's connect-injector "+
			"for \"annotation unable to be applied\"", BootstrapKey)
	case pod.Waiting != "":
		d.add(name, "it is not ready: %s; look at the logs of the pod and of Usher", pod.Waiting)
	case r.Connected != nil && !r.Connected[pod.Name]:
		d.add(name, "its Envoy has no stream to the Ushers that were asked; ask all replicas, and look at the logs of the pod and of Usher")
	}
}

// isIn reports whether a registration has the bootstrap.
func (d *comparison) isIn(config map[string]any) bool {
	wanted := map[string]any{}
	_ = decodeConfig(d.gateway.Config, &wanted) // Override made it
	return config[BootstrapKey] == wanted[BootstrapKey]
}

// annotation compares the annotation of an object.
func (d *comparison) annotation(object, subject string, found map[string]string, remedy string) {
	text, exists := found[Annotation]
	wanted, has := map[string]any{}, map[string]any{}
	_ = decodeConfig(d.gateway.Config, &wanted) // Override made it
	switch err := decodeConfig(text, &has); {
	case !exists:
		d.add(object, "%s has no annotation %s; %s", subject, Annotation, remedy)
	case err != nil:
		d.add(object, "the annotation %s is not a JSON object (%v), so consul-k8s drops it and Envoy uses Consul's own xDS, without PROXY protocol; %s",
			Annotation, err, remedy)
	case has[BootstrapKey] == nil:
		d.add(object, "the annotation %s has no %s, so Envoy uses Consul's own xDS, without PROXY protocol; %s", Annotation, BootstrapKey, remedy)
	case !reflect.DeepEqual(has[BootstrapKey], wanted[BootstrapKey]):
		d.add(object, "the annotation %s has another bootstrap than usher helm-values prints with these flags; %s", Annotation, remedy)
	default:
		d.otherKeys(object, wanted, has, remedy)
	}
}

// otherKeys compares what the annotation has beside the bootstrap.
func (d *comparison) otherKeys(object string, wanted, has map[string]any, remedy string) {
	var differ []string
	for _, m := range []map[string]any{wanted, has} {
		for key := range m {
			if !reflect.DeepEqual(wanted[key], has[key]) && !slices.Contains(differ, key) {
				differ = append(differ, key)
			}
		}
	}
	if slices.Sort(differ); len(differ) > 0 {
		d.add(object, "the annotation %s has another value of %s than usher helm-values prints; %s", Annotation, strings.Join(differ, ", "), remedy)
	}
}
