package consulchart

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// wanted is what an override gives the pods of the gateway edge.
var wanted = GatewayConfig{Gateway: "edge", Config: `{"envoy_bootstrap_json_tpl": "` + usherMark + `", "usher": {"a": [1]}}`}

func annotatedWith(value string) map[string]string { return map[string]string{Annotation: value} }

// good is a gateway with one pod that uses Usher.
func good() Running {
	same := PodParts{Annotations: annotatedWith("{\"usher\":{\"a\":[1.0]},\n\"envoy_bootstrap_json_tpl\":\"\\u007b" + usherMark[1:] + "\"}")}
	return Running{
		Deployment: "consul/consul-edge", Template: same,
		Pods:       []RunningPod{{Name: "edge-1", PodParts: same}},
		Registered: map[string]map[string]any{"edge-1": {BootstrapKey: usherMark}},
		Connected:  map[string]bool{"edge-1": true},
	}
}

const (
	inDeployment = `gateway "edge": Deployment consul/consul-edge: `
	inPod        = `gateway "edge": Pod edge-1: `
	ownXDS       = ", so Envoy uses Consul's own xDS, without PROXY protocol; "
	rollOut      = "the roll-out is not over: kubectl rollout status"
)

// comparisonCase is a change of a gateway that uses Usher, and the differences that it makes.
type comparisonCase struct {
	name   string
	change func(*Running)
	want   []string
}

// wantDifferences compares what runs.
func wantDifferences(t *testing.T, running Running, wantHow string, want []string) {
	t.Helper()
	how, differences := wanted.Compare(running)
	var got []string
	for _, p := range differences {
		got = append(got, p.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if how != wantHow {
		t.Errorf("the gateway is compared with pods that use %s, want %s", how, wantHow)
	}
}

// comparisons are changes of what good returns, and the differences that they are.
var comparisons = []comparisonCase{
	{"good", func(*Running) {}, nil},
	{"good, and only Kubernetes was asked", func(r *Running) { r.Registered, r.Connected = nil, nil }, nil},
	{
		"no annotation", func(r *Running) { r.Template.Annotations = nil },
		[]string{inDeployment + "its pod template has no annotation " + Annotation + "; " + upgrade},
	},
	{
		"no JSON", func(r *Running) { r.Template.Annotations = annotatedWith("x") },
		[]string{inDeployment + "the annotation " + Annotation + " is not a JSON object (invalid character 'x' looking for beginning of value), " +
			"so consul-k8s drops it and Envoy uses Consul's own xDS, without PROXY protocol; " + upgrade},
	},
	{
		"no bootstrap", func(r *Running) { r.Template.Annotations = annotatedWith("{}") },
		[]string{inDeployment + "the annotation " + Annotation + " has no " + BootstrapKey + ownXDS + upgrade},
	},
	{
		"another bootstrap", func(r *Running) { r.Template.Annotations = annotatedWith(foreign) },
		[]string{inDeployment + "the annotation " + Annotation + " has another bootstrap than usher helm-values prints with these flags; " + upgrade},
	},
	{
		"other settings", func(r *Running) {
			r.Template.Annotations = annotatedWith(`{"envoy_bootstrap_json_tpl": "` + usherMark + `", "usher": {}, "z": 1}`)
		},
		[]string{inDeployment + "the annotation " + Annotation + " has another value of usher, z than usher helm-values prints; " + upgrade},
	},
	{
		"no pods can be created", func(r *Running) { r.Failure = "exceeded quota" },
		[]string{inDeployment + "Kubernetes cannot create its pods: exceeded quota; correct that, and Kubernetes tries again"},
	},
	{
		"no pods", func(r *Running) { r.Pods = nil },
		[]string{inDeployment + "it has no pods; set its replicas to 1 or more, and look at its events: kubectl describe"},
	},
	{
		"a pod from before", func(r *Running) { r.Pods[0].Annotations = nil },
		[]string{inPod + "it has no annotation " + Annotation + "; " + rollOut},
	},
	{
		"headers for a pod of Consul's own", func(r *Running) {
			r.SendsHeaders = true
			r.Pods = append(r.Pods, RunningPod{Name: "edge-0"})
		},
		[]string{
			`gateway "edge": Service consul/consul-edge: its annotations make the load balancer send PROXY headers, and 1 of 2 pods do not use Usher, ` +
				"so they answer 400 to every request; do what the next lines say, or switch the headers off until then",
			inDeployment + "its pods are not all on one way to Usher (1 with the annotation, 1 with neither); wait until the roll-out is over: kubectl rollout status",
			`gateway "edge": Pod edge-0: it has no annotation ` + Annotation + "; " + rollOut,
		},
	},
	{"headers for pods that use Usher", func(r *Running) { r.SendsHeaders = true }, nil},
	{
		"not registered", func(r *Running) { r.Registered = map[string]map[string]any{} },
		[]string{inPod + "Consul has no instance of the gateway with this name; look at the log of the chart's connect-injector"},
	},
	{
		"registered without", func(r *Running) { r.Registered["edge-1"] = nil },
		[]string{inPod + "its registration in Consul has no " + BootstrapKey + " of usher helm-values; look at the log of the chart's connect-injector " +
			"for \"annotation unable to be applied\""},
	},
	{
		"not ready", func(r *Running) { r.Pods[0].Waiting = "CrashLoopBackOff" },
		[]string{inPod + "it is not ready: CrashLoopBackOff; look at the logs of the pod and of Usher"},
	},
	{
		"not connected", func(r *Running) { r.Connected = map[string]bool{} },
		[]string{inPod + "its Envoy has no stream to the Ushers that were asked; ask all replicas, and look at the logs of the pod and of Usher"},
	},
}

func TestWhatRunsIsComparedWithTheOverride(t *testing.T) {
	for _, tc := range comparisons {
		t.Run(tc.name, func(t *testing.T) {
			running := good()
			tc.change(&running)
			wantDifferences(t, running, "the annotation", tc.want)
		})
	}
}
