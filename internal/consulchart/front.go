package consulchart

import (
	"fmt"
	"slices"
	"strings"
)

// GatewayContainer is the container of consul-dataplane in the pods of the Consul chart's gateways.
const GatewayContainer = "ingress-gateway"

// frontPort is the port of Usher's Service for consul-dataplanes.
const frontPort = "18002"

// Front is how the pods of a gateway come to Usher by flags of consul-dataplane: Usher's chart opens a port for
// consul-dataplanes, and a policy or webhook appends the flags when Kubernetes creates the pods.
type Front struct {
	Host  string // of Usher's Service
	Usher string // NAMESPACE/NAME of Usher's Deployment
	Port  FrontPort
	// Admissions are the policies and webhooks of Usher's charts in the cluster; nil if they cannot be read.
	Admissions []Admission
}

// FrontPort says whether Usher has a port for consul-dataplanes.
type FrontPort int

// What is known of the port.
const (
	PortUnknown FrontPort = iota // Usher's Deployment cannot be read
	NoUsher                      // there is no such Deployment
	PortClosed
	PortOpen
)

// Admission is a policy or webhook of Usher's chart.
type Admission struct {
	Object  string   // KIND NAME
	Selects bool     // it is for the pods of the gateway
	Args    []string // that it appends to those of GatewayContainer
	// Ineffective is why it changes no pods all the same, and what to do; "" if it does.
	Ineffective string
}

// admission returns what gives new pods of the gateway the flags; nil if nothing does.
func (f *Front) admission() *Admission {
	for i, a := range f.Admissions {
		if _, has := lastFlag(a.Args, "addresses"); has && a.Selects {
			return &f.Admissions[i]
		}
	}
	return nil
}

// closed returns why consul-dataplanes cannot connect to Usher, and what to do; "" if they can.
func (f *Front) closed() (why, remedy string) {
	switch f.Port {
	case NoUsher:
		return "there is no Usher (Deployment " + f.Usher + ")", "install Usher's chart with dataplane.enabled, or name its Service with --usher-service"
	case PortClosed:
		return fmt.Sprintf("Usher's chart is installed without dataplane.enabled (Deployment %s has no --dataplane-addr)", f.Usher),
			"set dataplane.enabled of Usher's chart"
	}
	return "", ""
}

// missing returns why new pods of the gateway do not get the flags, and what to do; "" if they get them, and if that
// cannot be read.
func (f *Front) missing() (why, remedy string) {
	if f.Admissions == nil || f.admission() != nil {
		return "", ""
	}
	if why, remedy := f.closed(); why != "" {
		return why, remedy
	}
	for _, a := range f.Admissions {
		if host, _ := lastFlag(a.Args, "addresses"); host == f.Host && !a.Selects {
			return "the " + a.Object + " is not for this gateway", "add the gateway to admission.gateways of Usher's chart"
		}
	}
	return "no MutatingAdmissionPolicy and no webhook of Usher's chart changes them", "set admission.type of Usher's chart to auto"
}

// wantedArgs are the flags that pods should have: those of the admission, or what every such pod has.
func (f *Front) wantedArgs() []string {
	if a := f.admission(); a != nil {
		return a.Args
	}
	return []string{"-addresses=" + f.Host, "-grpc-port=" + frontPort, "-server-watch-disabled=true"}
}

// flagsIn reports whether arguments make consul-dataplane connect to an Usher: to this one, or to another one's port.
func (f *Front) flagsIn(args []string) bool {
	host, set := lastFlag(args, "addresses")
	port, _ := lastFlag(args, "grpc-port")
	return set && (host == f.Host || port == frontPort)
}

// front compares what gives new pods their flags.
func (d *comparison) front() {
	f := &d.running.Front
	if why, remedy := f.closed(); why != "" {
		d.add(d.object(), "Usher's flags connect its pods to port %s of Usher, and nothing listens there: %s; %s", frontPort, why, remedy)
		return
	}
	if d.running.wayOf(d.running.Template).flags {
		return // who made the template added them
	}
	if why, remedy := f.missing(); why != "" {
		d.add(d.object(), "its pods have Usher's flags, and the next ones will not: %s; %s, or, if the gateway goes back to Consul's own xDS: %s",
			why, remedy, d.restart())
		return
	}
	if a := f.admission(); a != nil {
		d.admission(*a)
	}
}

// admission compares the policy or webhook of the gateway.
func (d *comparison) admission(a Admission) {
	f := &d.running.Front
	for _, other := range f.Admissions {
		if other.Selects && other.Object != a.Object {
			d.add(d.object(), "the %s and the %s both change its pods, and the flags that come last win; "+
				"leave the gateway out of admission.gateways of one of the two releases of Usher's chart", a.Object, other.Object)
		}
	}
	switch host, _ := lastFlag(a.Args, "addresses"); {
	case a.Ineffective != "":
		d.add(d.object(), "the %s does not give its pods Usher's flags: %s", a.Object, a.Ineffective)
	case host != f.Host:
		d.add(d.object(), "the %s connects its pods to %s, and --usher-service means %s; name the Service of that release of Usher's chart, "+
			"or leave the gateway out of its admission.gateways", a.Object, host, f.Host)
	}
}

// flags compares the flags of a pod.
func (d *comparison) flags(name string, pod RunningPod) {
	f := &d.running.Front
	if !f.flagsIn(pod.Args) {
		d.add(name, "it was created before %s gave pods of this gateway Usher's flags; %s", d.giver(), d.restart())
		return
	}
	if host, _ := lastFlag(pod.Args, "addresses"); host != f.Host {
		d.add(name, "its consul-dataplane connects to %s, and not to %s; %s", host, f.Host, d.restart())
		return
	}
	var differ []string
	for _, arg := range f.wantedArgs() {
		flag, wanted := splitFlag(arg)
		if has, set := lastFlag(pod.Args, flag); !set || has != wanted {
			differ = append(differ, "-"+flag)
		}
	}
	if len(differ) > 0 {
		d.add(name, "it has other values of %s than new pods get; %s", strings.Join(differ, ", "), d.restart())
	}
}

// giver returns what gives new pods of the gateway the flags.
func (d *comparison) giver() string {
	if a := d.running.Front.admission(); a != nil {
		return "the " + a.Object
	}
	if d.running.wayOf(d.running.Template).flags {
		return "the pod template"
	}
	return "admission"
}

// lastFlag returns the value of the last argument with a flag, which consul-dataplane uses. A flag without a value is true.
func lastFlag(args []string, flag string) (value string, set bool) {
	for _, arg := range slices.Backward(args) {
		if name, value := splitFlag(arg); name == flag {
			return value, true
		}
	}
	return "", false
}

// splitFlag splits an argument of the form in which the charts write them, -flag=value or -flag.
func splitFlag(arg string) (flag, value string) {
	flag, value, found := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
	if !found {
		value = "true"
	}
	return flag, value
}
