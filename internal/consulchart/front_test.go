package consulchart

import (
	"errors"
	"slices"
	"testing"
)

const (
	policy    = "MutatingAdmissionPolicy consul-usher-gateway-pods"
	restart   = "kubectl --namespace consul rollout restart deployment/consul-edge"
	noFront   = "Usher's chart is installed without dataplane.enabled (Deployment consul/usher has no --dataplane-addr)"
	setFront  = "set dataplane.enabled of Usher's chart"
	noChange  = "no MutatingAdmissionPolicy and no webhook of Usher's chart changes them"
	setChange = "set admission.type of Usher's chart to auto"
	noMore    = inDeployment + "its pods have Usher's flags, and the next ones will not: "
	goesBack  = ", or, if the gateway goes back to Consul's own xDS: " + restart
	noJSON    = inDeployment + "its pod template has no annotation " + Annotation
)

var (
	chartArgs = []string{"-addresses=consul-server.consul.svc", "-grpc-port=8502", "-tls-disabled"}
	usherArgs = []string{"-addresses=usher.consul.svc", "-grpc-port=18002", "-server-watch-disabled=true", "-tls-server-name=usher.consul.svc"}
)

// goodFront is a gateway with one pod that has Usher's flags, from a policy.
func goodFront() Running {
	return Running{
		Deployment: "consul/consul-edge", Template: PodParts{Args: chartArgs},
		Pods:       []RunningPod{{Name: "edge-1", PodParts: PodParts{Args: slices.Concat(chartArgs, usherArgs)}}},
		Registered: map[string]map[string]any{"edge-1": nil},
		Connected:  map[string]bool{"edge-1": true},
		Front: Front{
			Host: "usher.consul.svc", Usher: "consul/usher", Port: PortOpen,
			Admissions: []Admission{{Object: policy, Selects: true, Args: usherArgs}},
		},
	}
}

// addPod adds a pod to those of the gateway.
func addPod(r *Running, name string, args []string, annotations map[string]string) {
	r.Pods = append(r.Pods, RunningPod{Name: name, PodParts: PodParts{Args: args, Annotations: annotations}})
	r.Registered, r.Connected = nil, nil
}

// frontComparisons are changes of what goodFront returns, and the differences that they are.
var frontComparisons = []comparisonCase{
	{"good", func(*Running) {}, nil},
	{"good, and the policies cannot be read", func(r *Running) { r.Front.Admissions, r.Front.Port = nil, PortUnknown }, nil},
	{"good, by hand", func(r *Running) { r.Front.Admissions, r.Template.Args = []Admission{}, r.Pods[0].Args }, nil},
	{"good, with settings in the annotation", func(r *Running) {
		r.Template.Annotations = annotatedWith(`{"usher": {}}`)
		r.Pods[0].Annotations = r.Template.Annotations
	}, nil},
	{"good, and the chart is too old for the annotation", func(r *Running) { r.NoAnnotation = errors.New("too old") }, nil},
	{
		"a pod from before", func(r *Running) { r.Pods[0].Args = chartArgs },
		[]string{inPod + "it was created before the " + policy + " gave pods of this gateway Usher's flags; " + restart},
	},
	{
		"a pod from before, by hand", func(r *Running) {
			r.Template.Args, r.Pods[0].Args, r.Front.Admissions = r.Pods[0].Args, chartArgs, []Admission{}
		},
		[]string{inPod + "it was created before the pod template gave pods of this gateway Usher's flags; " + restart},
	},
	{
		"a pod from before, and the policies cannot be read", func(r *Running) {
			r.Front.Admissions = nil
			addPod(r, "edge-2", r.Pods[0].Args, nil)
			r.Pods[0].Args = chartArgs
		},
		[]string{
			inDeployment + "its pods are not all on one way to Usher (1 with flags for consul-dataplane, 1 with neither); " +
				"wait until the roll-out is over: kubectl rollout status",
			inPod + "it was created before admission gave pods of this gateway Usher's flags; " + restart,
		},
	},
	{
		"in the middle of a roll-out", func(r *Running) {
			addPod(r, "edge-2", chartArgs, nil)
			addPod(r, "edge-3", chartArgs, good().Template.Annotations)
			addPod(r, "edge-4", r.Pods[0].Args, good().Template.Annotations)
		},
		[]string{
			inDeployment + "its pods are not all on one way to Usher (1 with the annotation, 1 with flags for consul-dataplane, " +
				"1 with both, 1 with neither); wait until the roll-out is over: kubectl rollout status",
			`gateway "edge": Pod edge-2: it was created before the ` + policy + ` gave pods of this gateway Usher's flags; ` + restart,
			`gateway "edge": Pod edge-3: it was created before the ` + policy + ` gave pods of this gateway Usher's flags; ` + restart,
			`gateway "edge": Pod edge-4: it has the annotation ` + Annotation + " and Usher's flags, and new pods have only one of them; " + restart,
		},
	},
	{
		"a pod of another release", func(r *Running) { r.Pods[0].Args = append(r.Pods[0].Args, "-addresses=old.consul.svc") },
		[]string{inPod + "its consul-dataplane connects to old.consul.svc, and not to usher.consul.svc; " + restart},
	},
	{
		"a pod of another value", func(r *Running) { r.Pods[0].Args = r.Pods[0].Args[:len(r.Pods[0].Args)-2] },
		[]string{inPod + "it has other values of -server-watch-disabled, -tls-server-name than new pods get; " + restart},
	},
	{
		"not registered", func(r *Running) { r.Registered = map[string]map[string]any{} },
		[]string{inPod + "Consul has no instance of the gateway with this name; look at the log of the chart's connect-injector"},
	},
	{
		"not connected", func(r *Running) { r.Connected = map[string]bool{} },
		[]string{inPod + "its Envoy has no stream to the Ushers that were asked; ask all replicas, and look at the logs of the pod and of Usher"},
	},
	{
		"the policy of another release", func(r *Running) { r.Front.Host = "other.consul.svc" },
		[]string{inDeployment + "the " + policy + " connects its pods to usher.consul.svc, and --usher-service means other.consul.svc; " +
			"name the Service of that release of Usher's chart, or leave the gateway out of its admission.gateways"},
	},
	{
		"two releases", func(r *Running) {
			r.Front.Admissions = append(r.Front.Admissions, Admission{Object: "MutatingWebhookConfiguration w", Selects: true, Args: usherArgs})
		},
		[]string{inDeployment + "the " + policy + " and the MutatingWebhookConfiguration w both change its pods, and the flags that come last win; " +
			"leave the gateway out of admission.gateways of one of the two releases of Usher's chart"},
	},
	{
		"a policy without a binding", func(r *Running) { r.Front.Admissions[0].Ineffective = "it has no binding; add one" },
		[]string{inDeployment + "the " + policy + " does not give its pods Usher's flags: it has no binding; add one"},
	},
	{
		"both ways", func(r *Running) { r.Template.Annotations = good().Template.Annotations },
		[]string{inDeployment + "its pods get the annotation " + Annotation + " and Usher's flags for consul-dataplane, and one way back would leave the other; " +
			"run helm upgrade of Consul without the output of usher helm-values, or leave the gateway out of admission.gateways of Usher's chart"},
	},
	{
		"no port", func(r *Running) { r.Front.Port = PortClosed },
		[]string{inDeployment + "Usher's flags connect its pods to port 18002 of Usher, and nothing listens there: " + noFront + "; " + setFront},
	},
	{
		"no Usher", func(r *Running) { r.Front.Port = NoUsher },
		[]string{inDeployment + "Usher's flags connect its pods to port 18002 of Usher, and nothing listens there: " +
			"there is no Usher (Deployment consul/usher); install Usher's chart with dataplane.enabled, or name its Service with --usher-service"},
	},
	{
		"no policy any more", func(r *Running) { r.Front.Admissions = []Admission{} },
		[]string{noMore + noChange + "; " + setChange + goesBack},
	},
	{
		"not one of the gateways of the policy any more", func(r *Running) { r.Front.Admissions[0].Selects = false },
		[]string{noMore + "the " + policy + " is not for this gateway; add the gateway to admission.gateways of Usher's chart" + goesBack},
	},
}

// neitherComparisons are changes of what goodFront returns for a gateway whose pods do not use Usher.
var neitherComparisons = []comparisonCase{
	{
		"not one of the gateways of the policy", func(r *Running) { r.Front.Admissions[0].Selects = false },
		[]string{noJSON + ", and its pods get no flags for consul-dataplane: the " + policy + " is not for this gateway; " + upgrade +
			", or add the gateway to admission.gateways of Usher's chart"},
	},
	{
		"no policy", func(r *Running) { r.Front.Admissions = []Admission{} },
		[]string{noJSON + ", and its pods get no flags for consul-dataplane: " + noChange + "; " + upgrade + ", or " + setChange},
	},
	{
		"no policy, and settings in the annotation", func(r *Running) {
			r.Front.Admissions, r.Template.Annotations = []Admission{}, annotatedWith(`{"usher": {}}`)
		},
		[]string{inDeployment + "its pod template has no " + BootstrapKey + " in the annotation " + Annotation +
			", and its pods get no flags for consul-dataplane: " + noChange + "; " + upgrade + ", or " + setChange},
	},
	{
		"no policy, and an annotation that is wrong", func(r *Running) {
			r.Front.Admissions, r.Template.Annotations = []Admission{}, annotatedWith(`{`)
		},
		[]string{inDeployment + "the annotation " + Annotation + " is not a JSON object (unexpected end of JSON input), " +
			"so consul-k8s drops it and Envoy uses Consul's own xDS, without PROXY protocol; " + upgrade},
	},
	{
		"only a policy that gives pods time to end", func(r *Running) {
			r.Front.Admissions[0].Args = []string{"-shutdown-grace-period-seconds=60"}
		},
		[]string{noJSON + ", and its pods get no flags for consul-dataplane: " + noChange + "; " + upgrade + ", or " + setChange},
	},
	{
		"no port", func(r *Running) { r.Front.Admissions, r.Front.Port = []Admission{}, PortClosed },
		[]string{noJSON + "; " + upgrade},
	},
	{
		"no Usher", func(r *Running) { r.Front.Admissions, r.Front.Port = []Admission{}, NoUsher },
		[]string{noJSON + "; " + upgrade},
	},
	{
		"the chart is too old for the annotation", func(r *Running) {
			r.Front.Admissions, r.Front.Port, r.NoAnnotation = []Admission{}, PortClosed, errors.New("too old; upgrade")
		},
		[]string{
			inDeployment + "usher helm-values has no annotation for it: too old; upgrade",
			inDeployment + "its pods get no flags for consul-dataplane: " + noFront + "; " + setFront,
		},
	},
}

func TestWhatRunsIsComparedWithTheFlags(t *testing.T) {
	for _, tc := range frontComparisons {
		t.Run(tc.name, func(t *testing.T) {
			running := goodFront()
			tc.change(&running)
			how := "flags for consul-dataplane"
			if lackOf(running.Template.Annotations) == "" {
				how = "both"
			}
			wantDifferences(t, running, how, tc.want)
		})
	}
	for _, tc := range neitherComparisons {
		t.Run("without Usher: "+tc.name, func(t *testing.T) {
			running := goodFront()
			running.Pods[0].Args = chartArgs
			tc.change(&running)
			wantDifferences(t, running, "the annotation", tc.want)
		})
	}
}

// TestFlagsAreReadAsConsulDataplaneReadsThem has the forms of a flag in Go: the last one wins.
func TestFlagsAreReadAsConsulDataplaneReadsThem(t *testing.T) {
	args := []string{"-addresses=a", "--addresses=b=c", "-tls-disabled"}
	for flag, want := range map[string]string{"addresses": "b=c", "tls-disabled": "true"} {
		if got, set := lastFlag(args, flag); got != want || !set {
			t.Errorf("-%s is %q, %v, want %q", flag, got, set, want)
		}
	}
	if got, set := lastFlag(args, "grpc-port"); set {
		t.Errorf("-grpc-port is %q, want none", got)
	}
}
