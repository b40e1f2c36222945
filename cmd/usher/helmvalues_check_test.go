package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/usherproxy/usher/internal/consulchart"
)

// checked is what usher helm-values --check asks: an API server, a Consul and an Usher.
type checked struct {
	answers   map[string]string // by path; others get 404
	forbidden map[string]bool   // by path
	url       string
}

func newChecked(t *testing.T) *checked {
	t.Helper()
	rest.SetDefaultWarningHandler(warnings{t})
	t.Cleanup(func() { rest.SetDefaultWarningHandler(rest.WarningLogger{}) })
	c := &checked{answers: map[string]string{}, forbidden: map[string]bool{}}
	c.answer(t, webhooksPath, map[string]any{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Warning", `299 - "this version is deprecated"`)
		refuse := func(code int, reason metav1.StatusReason) {
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": %q, "code": %d}`, reason, code)
		}
		switch answer, ok := c.answers[r.URL.Path]; {
		case c.forbidden[r.URL.Path]:
			refuse(http.StatusForbidden, metav1.StatusReasonForbidden)
		case !ok:
			refuse(http.StatusNotFound, metav1.StatusReasonNotFound)
		default:
			fmt.Fprint(w, answer)
		}
	}))
	t.Cleanup(server.Close)
	c.url = server.URL
	return c
}

// warnings fails the test when client-go would log a warning of the API server, which is of no use to who reads the check.
type warnings struct{ t *testing.T }

func (w warnings) HandleWarningHeader(_ int, _, text string) { w.t.Errorf("it logs %q", text) }

// flags are the flags of a check of the lab's values.
func (c *checked) flags(t *testing.T) []string {
	t.Helper()
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: %q}}]}`, c.url)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{
		"--check", "-f", chartValues + "lab.yaml", "--kubeconfig", kubeconfig, "--consul-http-addr", c.url,
		"--usher-admin-addr", strings.TrimPrefix(c.url, "http://"),
	}
}

func (c *checked) answer(t *testing.T, path string, object any) {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	c.answers[path] = string(text)
}

// The paths that a check of the lab's values asks.
const (
	deploymentPath = "/apis/apps/v1/namespaces/consul/deployments/consul-consul-ingress-gateway"
	servicesPath   = "/api/v1/namespaces/consul/services"
	podsPath       = "/api/v1/namespaces/consul/pods"
	webhooksPath   = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
	catalogPath    = "/v1/catalog/service/ingress-gateway"
)

// labAnnotation returns the annotation in what helm-values prints for the lab's values.
func labAnnotation(t *testing.T) string {
	t.Helper()
	printed, _, err := helmValues(t, "", "-f", chartValues+"lab.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values struct {
		IngressGateways struct{ Defaults struct{ Annotations string } }
	}
	annotations := map[string]string{}
	if err := yaml.Unmarshal([]byte(printed), &values); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal([]byte(values.IngressGateways.Defaults.Annotations), &annotations); err != nil {
		t.Fatal(err)
	}
	return annotations[consulchart.Annotation]
}

// labDeployment returns the gateway's Deployment, with the annotation if it is not empty, and labPod a pod of it.
func labDeployment(annotation string) *appsv1.Deployment {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "consul-consul-ingress-gateway", Namespace: "consul"}}
	labels := map[string]string{"component": "ingress-gateway", "ingress-gateway-name": d.Name}
	d.Spec.Selector = &metav1.LabelSelector{MatchLabels: labels}
	d.Spec.Template = corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: new(bool),
			Containers: []corev1.Container{{
				Name: "ingress-gateway", Image: "consul-dataplane", Args: chartArgs,
				VolumeMounts: []corev1.VolumeMount{{Name: "tmp", MountPath: "/tmp"}},
			}},
			Volumes: []corev1.Volume{{Name: "tmp"}},
		},
	}
	if annotation != "" {
		d.Spec.Template.Annotations = map[string]string{consulchart.Annotation: annotation}
	}
	return d
}

// chartArgs are the arguments of consul-dataplane in the Consul chart.
var chartArgs = []string{"-addresses=consul-consul-server.consul.svc", "-grpc-port=8502", "-ca-certs=/consul/tls/ca/tls.crt"}

// labService returns the gateway's Service, which makes an NLB send PROXY headers.
func labService() *corev1.Service {
	return &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Name: "consul-consul-ingress-gateway", Namespace: "consul", Annotations: map[string]string{
			"service.beta.kubernetes.io/aws-load-balancer-type":            "external",
			"service.beta.kubernetes.io/aws-load-balancer-nlb-target-type": "ip",
			"service.beta.kubernetes.io/aws-load-balancer-proxy-protocol":  "*",
		}},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 8080}}},
	}
}

func labPod(d *appsv1.Deployment, name string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: d.Spec.Template.ObjectMeta, Spec: d.Spec.Template.Spec}
	p.Name, p.Namespace = name, d.Namespace
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	return p
}

// labRegistration returns the catalog with one instance.
func labRegistration(t *testing.T, id, annotation string) []any {
	t.Helper()
	var config map[string]any
	if err := json.Unmarshal([]byte(annotation), &config); err != nil {
		t.Fatal(err)
	}
	return []any{map[string]any{"ServiceID": id, "ServiceProxy": map[string]any{"Config": config}}}
}

// useUsher lets everything answer that one pod uses Usher.
func (c *checked) useUsher(t *testing.T) {
	t.Helper()
	annotation := labAnnotation(t)
	d := labDeployment(annotation)
	old, gone := labPod(d, "old"), labPod(d, "gone")
	now := metav1.Now()
	old.DeletionTimestamp = &now
	old.Annotations, gone.Annotations = nil, nil
	gone.Status.Phase = corev1.PodFailed
	c.answer(t, deploymentPath, d)
	c.answer(t, podsPath, corev1.PodList{Items: []corev1.Pod{*labPod(d, "edge-1"), *old, *gone}})
	c.answer(t, catalogPath, labRegistration(t, "edge-1", annotation))
	c.answer(t, envoysPath, []connectedEnvoy{{Gateway: "ingress-gateway", ServiceID: "edge-1"}})
}

const differs = "--check: not all of the gateways' pods use Usher as they should; see the lines above"

func TestCheckComparesWhatRuns(t *testing.T) {
	const pod = `gateway "ingress-gateway": Pod edge-1: `
	for _, tc := range []struct {
		name   string
		change func(*checked)
		want   string // "" if everything is as it should be
	}{
		{"all use Usher", func(*checked) {}, ""},
		{
			"no Deployment", func(c *checked) { delete(c.answers, deploymentPath) },
			`gateway "ingress-gateway": Deployment consul/consul-consul-ingress-gateway: it does not exist; ` +
				"check --namespace and --release, and whether the chart is installed with these values",
		},
		{
			"an empty annotation", func(c *checked) {
				d := labDeployment("")
				d.Spec.Template.Annotations = map[string]string{consulchart.Annotation: ""}
				c.answer(t, deploymentPath, d)
			},
			`gateway "ingress-gateway": Deployment consul/consul-consul-ingress-gateway: the annotation consul.hashicorp.com/proxy-config-map ` +
				"is not a JSON object (unexpected end of JSON input), so consul-k8s drops it and Envoy uses Consul's own xDS, without PROXY protocol; " +
				"run helm upgrade with the output of usher helm-values",
		},
		{
			"headers before the move", func(c *checked) {
				d := labDeployment("{}")
				c.answer(t, deploymentPath, d)
				c.answer(t, podsPath, corev1.PodList{Items: []corev1.Pod{*labPod(d, "edge-1")}})
				c.answer(t, servicesPath, corev1.ServiceList{
					TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"},
					Items: []corev1.Service{*labService()},
				})
			},
			`gateway "ingress-gateway": Service consul/consul-consul-ingress-gateway: its annotations make the load balancer send PROXY headers, ` +
				"and 1 of 1 pods do not use Usher, so they answer 400 to every request; do what the next lines say, or switch the headers off until then\n" +
				`gateway "ingress-gateway": Deployment consul/consul-consul-ingress-gateway: the annotation consul.hashicorp.com/proxy-config-map ` +
				"has no envoy_bootstrap_json_tpl, so Envoy uses Consul's own xDS, without PROXY protocol; run helm upgrade with the output of usher helm-values",
		},
		{
			"a registration without", func(c *checked) { c.answer(t, catalogPath, labRegistration(t, "edge-1", "{}")) },
			pod + "its registration in Consul has no envoy_bootstrap_json_tpl of usher helm-values; " +
				`look at the log of the chart's connect-injector for "annotation unable to be applied"`,
		},
		{
			"not connected", func(c *checked) { c.answers[envoysPath] = "[]" },
			pod + "its Envoy has no stream to the Ushers that were asked; ask all replicas, and look at the logs of the pod and of Usher",
		},
		{
			"not ready", func(c *checked) {
				p := labPod(labDeployment(labAnnotation(t)), "edge-1")
				p.Status = corev1.PodStatus{
					Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, Message: "containers are not ready"}},
					ContainerStatuses: []corev1.ContainerStatus{{Name: "ingress-gateway", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off 10s"}}}},
				}
				c.answer(t, podsPath, corev1.PodList{Items: []corev1.Pod{*p}})
			},
			pod + "it is not ready: container ingress-gateway: CrashLoopBackOff: back-off 10s; look at the logs of the pod and of Usher",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChecked(t)
			c.useUsher(t)
			tc.change(c)
			stdout, stderr, err := helmValues(t, "", c.flags(t)...)
			want := "all 1 pods of gateway \"ingress-gateway\" use Usher, by the annotation\n"
			if tc.want != "" {
				want = tc.want + "\n"
			}
			if stdout != want || stderr != "" {
				t.Errorf("stdout is\n%swant\n%sstderr is %q", stdout, want, stderr)
			}
			if failed := err != nil; failed != (tc.want != "") || failed && err.Error() != differs {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// TestCheckSaysWhatItDidNotAsk runs it with a kubeconfig alone.
func TestCheckSaysWhatItDidNotAsk(t *testing.T) {
	t.Setenv("CONSUL_HTTP_ADDR", "")
	c := newChecked(t)
	c.useUsher(t)
	_, stderr, err := helmValues(t, "", c.flags(t)[:5]...)
	want := "notice: the registrations in Consul were not checked; set --consul-http-addr or CONSUL_HTTP_ADDR\n" +
		"notice: whether the Envoys are connected to Usher was not checked; set --usher-admin-addr\n"
	if err != nil || stderr != want {
		t.Errorf("error %v, and stderr is\n%swant\n%s", err, stderr, want)
	}
}
