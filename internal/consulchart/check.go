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
	Deployment string // NAMESPACE/NAME
	// Template has the annotations of the Deployment's pod template.
	Template map[string]string
	Pods     []RunningPod // without those that are being deleted
	// Registered has the Proxy.Config of the gateway's instances in Consul by the names of their pods.
	Registered map[string]map[string]any
	// Connected has the names of the pods whose Envoys have a stream to Usher.
	Connected map[string]bool
}

// RunningPod is a pod of a gateway.
type RunningPod struct {
	Name        string
	Annotations map[string]string
	Waiting     string // why it is not ready; "" if it is
}

// Compare returns how what runs differs from what the override asks for, with what to do.
func (c GatewayConfig) Compare(r Running) []problem.Problem {
	d := differences{gateway: c}
	deployment := "Deployment " + r.Deployment
	if d.compare(deployment, "its pod template", r.Template, "run helm upgrade with the output of usher helm-values"); len(d.list) > 0 {
		return d.list // the pods follow it
	}
	if len(r.Pods) == 0 {
		d.add(deployment, "it has no pods; set its replicas to 1 or more, and look at its events: kubectl describe")
	}
	for _, pod := range r.Pods {
		d.pod(pod, r)
	}
	return d.list
}

// differences collects what differs for one gateway.
type differences struct {
	gateway GatewayConfig
	list    []problem.Problem
}

func (d *differences) add(object, format string, args ...any) {
	where := fmt.Sprintf("gateway %q: %s", d.gateway.Gateway, object)
	d.list = append(d.list, problem.Problem{Where: where, What: fmt.Sprintf(format, args...)})
}

// pod compares a pod. Its first difference is the reason of the others.
func (d *differences) pod(pod RunningPod, r Running) {
	name := "Pod " + pod.Name
	before := len(d.list)
	d.compare(name, "it", pod.Annotations, "the roll-out is not over: kubectl rollout status")
	config, registered := r.Registered[pod.Name]
	switch {
	case len(d.list) > before:
	case r.Registered != nil && !registered:
		d.add(name, "Consul has no instance of the gateway with this name; look at the log of the chart's connect-injector")
	case r.Registered != nil && !d.isIn(config):
		d.add(name, "its registration in Consul has no %s of usher helm-values; look at the log of the chart's connect-injector "+
			"for \"annotation unable to be applied\"", BootstrapKey)
	case pod.Waiting != "":
		d.add(name, "it is not ready: %s; look at the logs of the pod and of Usher", pod.Waiting)
	case r.Connected != nil && !r.Connected[pod.Name]:
		d.add(name, "its Envoy has no stream to the Ushers that were asked; ask all replicas, and look at the logs of the pod and of Usher")
	}
}

// isIn reports whether a registration has the bootstrap.
func (d *differences) isIn(config map[string]any) bool {
	wanted := map[string]any{}
	_ = decodeConfig(d.gateway.Config, &wanted) // Override made it
	return config[BootstrapKey] == wanted[BootstrapKey]
}

// compare compares the annotation of an object.
func (d *differences) compare(object, subject string, found map[string]string, remedy string) {
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
func (d *differences) otherKeys(object string, wanted, has map[string]any, remedy string) {
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
