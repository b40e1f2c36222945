package consulchart

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// wanted is what an override gives the pods of the gateway edge.
var wanted = GatewayConfig{Gateway: "edge", Config: `{"envoy_bootstrap_json_tpl": "T", "usher": {"a": [1]}}`}

func annotatedWith(value string) map[string]string { return map[string]string{Annotation: value} }

// good is a gateway with one pod that uses Usher.
func good() Running {
	same := annotatedWith("{\"usher\":{\"a\":[1.0]},\n\"envoy_bootstrap_json_tpl\":\"\\u0054\"}")
	return Running{
		Deployment: "consul/consul-edge", Template: same,
		Pods:       []RunningPod{{Name: "edge-1", Annotations: same}},
		Registered: map[string]map[string]any{"edge-1": {BootstrapKey: "T"}},
		Connected:  map[string]bool{"edge-1": true},
	}
}

const (
	inDeployment = `gateway "edge": Deployment consul/consul-edge: `
	inPod        = `gateway "edge": Pod edge-1: `
	ownXDS       = ", so Envoy uses Consul's own xDS, without PROXY protocol; "
	upgrade      = "run helm upgrade with the output of usher helm-values"
	rollOut      = "the roll-out is not over: kubectl rollout status"
)

// comparisons are changes of what good returns, and the differences that they are.
var comparisons = []struct {
	name   string
	change func(*Running)
	want   []string
}{
	{"good", func(*Running) {}, nil},
	{"good, and only Kubernetes was asked", func(r *Running) { r.Registered, r.Connected = nil, nil }, nil},
	{
		"no annotation", func(r *Running) { r.Template = nil },
		[]string{inDeployment + "its pod template has no annotation " + Annotation + "; " + upgrade},
	},
	{
		"no JSON", func(r *Running) { r.Template = annotatedWith("x") },
		[]string{inDeployment + "the annotation " + Annotation + " is not a JSON object (invalid character 'x' looking for beginning of value), " +
			"so consul-k8s drops it and Envoy uses Consul's own xDS, without PROXY protocol; " + upgrade},
	},
	{
		"no bootstrap", func(r *Running) { r.Template = annotatedWith("{}") },
		[]string{inDeployment + "the annotation " + Annotation + " has no " + BootstrapKey + ownXDS + upgrade},
	},
	{
		"another bootstrap", func(r *Running) { r.Template = annotatedWith(foreign) },
		[]string{inDeployment + "the annotation " + Annotation + " has another bootstrap than usher helm-values prints with these flags; " + upgrade},
	},
	{
		"other settings", func(r *Running) { r.Template = annotatedWith(`{"envoy_bootstrap_json_tpl": "T", "usher": {}, "z": 1}`) },
		[]string{inDeployment + "the annotation " + Annotation + " has another value of usher, z than usher helm-values prints; " + upgrade},
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
			var got []string
			for _, p := range wanted.Compare(running) {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}
