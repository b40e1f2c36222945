//go:build kubernetes

package kubernetes

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// front is how consul-dataplanes reach Usher in a story.
type front struct {
	chart, envoy   string // Consul's chart
	admission, tls string // values of Usher's chart
}

// TestUnmodifiedDataplaneMovesToUsherAndBack moves the gateway to Usher with the
// Consul chart as it is: admission gives its new pods flags of consul-dataplane.
// With PROXY protocol, the log and the service have the client's address. Pods of
// services stay at Consul. Without admission, the next pod is Consul's own again.
func TestUnmodifiedDataplaneMovesToUsherAndBack(t *testing.T) {
	t.Parallel()
	for _, f := range []front{
		{chartNext, lab.EnvoyNew, "webhook", "chart"},
		{chartOld, lab.EnvoyOld, "auto", "chart"},
	} {
		t.Run(f.chart+", Envoy "+f.envoy+", "+f.admission, func(t *testing.T) {
			t.Parallel()
			r := installConsul(t, f.chart, cluster.Options{Consul: lab.ConsulNew, Envoy: f.envoy})
			own := r.gateway(t)
			r.wantCheck(t, nil, "its pod template has no annotation consul.hashicorp.com/proxy-config-map; run helm upgrade")
			values := "dataplane.enabled=true,admission.type=" + f.admission + ",xds.tls.mode=" + f.tls
			ushers := r.helmUsher(t, "install", values)
			if now := r.gateway(t); now != own {
				t.Errorf("Usher's chart replaced the gateway's pod %s by %s", own.Name(), now.Name())
			}
			r.wantCheck(t, ushers, "Pod "+own.Name()+": it was created before the Mutating")
			r.waitAdmission(t, true)
			gateway := r.restart(t, namespace, gatewayObjects)[0]
			r.waitConnected(t, gateway, ushers)
			r.wantCheck(t, ushers, usesFlags)
			r.upgrade(t, ppv2Values)
			r.balancer.WaitHeader(t, lab.SendV2)
			r.wantClientAddress(t)
			r.waitAuto(t, gateway, "strict")
			r.waitReported(t, ushers, "header")

			r.wantSidecarAtConsul(t, ushers)
			r.wantStrangerRefused(t, gateway)

			ushers = r.helmUsher(t, "upgrade", "dataplane.enabled=true,admission.type=none,xds.tls.mode="+f.tls)
			r.waitAdmission(t, false)
			r.wantCheck(t, ushers, "its pods have Usher's flags, and the next ones will not: no MutatingAdmissionPolicy and no webhook")
			r.restart(t, namespace, gatewayObjects)
			r.wantCheck(t, ushers,
				"its annotations make the load balancer send PROXY headers, and 1 of 1 pods do not use Usher, so they answer 400 to every request",
				"its pods get no flags for consul-dataplane: no MutatingAdmissionPolicy and no webhook")
			lab.WaitStatus(t, r.request("/"), http.StatusBadRequest) // Consul's own does not know headers
			r.upgrade(t)
			r.balancer.WaitHeader(t, lab.SendNone)
			r.wantBalancerAddress(t)
		})
	}
}

// TestSecondWayOfThePage follows the section of the page with the chart of today, there and back.
func TestSecondWayOfThePage(t *testing.T) {
	t.Parallel()
	r := installConsul(t, chartNow, cluster.Options{Consul: lab.ConsulNew, Envoy: lab.EnvoyOld})
	const flags = "--set image.repository=registry.example.com/usherproxy/usher --set consul.aclSetup.enabled=true --set xds.tls.mode=consul-ca --set dataplane.enabled=true"
	reader := r.newReader(t, nil, "<the flags from above>", flags)
	own := r.gateway(t)
	reader.Type(t, saveValues)
	reader.Follow(t, pages.Find(t, "docs/kubernetes.md", "helm upgrade --install usher usher-0.1.0.tgz"))
	ushers := r.WaitRolledOut(t, namespace, "usher")
	if now := r.gateway(t); now != own {
		t.Errorf("Usher's chart replaced the gateway's pod %s by %s", own.Name(), now.Name())
	}
	r.waitAdmission(t, true)
	reader.Follow(t, pages.Find(t, "docs/kubernetes.md", "kubectl --namespace consul rollout restart deployment/consul-consul-ingress-gateway\nkubectl --namespace consul get pods"))
	gateway := r.gateway(t)
	r.waitConnected(t, gateway, ushers)
	reader.Follow(t, pages.Find(t, "docs/kubernetes.md", "usher helm-values -f consul-values.yaml --chart-version 1.9.11 --check"))
	r.upgrade(t, ppv2Values)
	r.balancer.WaitHeader(t, lab.SendV2)
	r.wantClientAddress(t)
	r.waitAuto(t, gateway, "strict")

	r.upgrade(t)
	r.balancer.WaitHeader(t, lab.SendNone)
	r.waitAuto(t, gateway, "off")
	reader.Follow(t, pages.Find(t, "docs/kubernetes.md", "helm upgrade usher usher-0.1.0.tgz"))
	r.waitAdmission(t, false)
	reader.Follow(t, pages.Find(t, "docs/kubernetes.md", "kubectl --namespace consul rollout restart deployment/consul-consul-ingress-gateway\nkubectl --namespace consul rollout status"))
	r.wantCheck(t, nil, "its pods get no flags for consul-dataplane: no MutatingAdmissionPolicy and no webhook")
	r.wantBalancerAddress(t)
}

// usesFlags is what the check of helm-values prints if the gateway's pod is well.
const usesFlags = `all 1 pods of gateway "ingress-gateway" use Usher, by flags for consul-dataplane`

// wantCheck wants that "usher helm-values --check" prints lines with these texts. It asks these pods of Usher for the
// Envoys that are connected to them.
func (r *consulRelease) wantCheck(t *testing.T, ushers []*cluster.Pod, want ...string) {
	t.Helper()
	args := append(r.helmValues(t), "--check", "--kubeconfig", r.Kubeconfig(t))
	for _, usher := range ushers {
		args = append(args, "--usher-admin-addr", usher.Host.Addr(18001))
	}
	got := testprocess.Run(t, testprocess.Command{Name: "usher helm-values", Path: testprocess.Usher(t), Args: args, Host: r.Control}, "")
	lines := slices.Collect(strings.Lines(got.Stdout))
	if !slices.EqualFunc(lines, want, strings.Contains) || (got.Code == 0) != slices.Equal(want, []string{usesFlags}) {
		t.Errorf("usher %q: exit %d, and it prints\n%s%swant lines with %q", args, got.Code, got.Stdout, got.Stderr, want)
	}
}

// waitAdmission waits until the API server gives new pods of the gateway the flags,
// or does not any more: it follows a policy a moment later.
func (r *consulRelease) waitAdmission(t *testing.T, want bool) {
	t.Helper()
	d, err := r.API.AppsV1().Deployments(namespace).Get(t.Context(), gatewayObjects, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	template := d.Spec.Template
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "would-be", Labels: template.Labels, Annotations: template.Annotations}, Spec: template.Spec}
	testprocess.Eventually(t, fmt.Sprint("new pods get Usher's flags: ", want), testprocess.StartDeadline, func() error {
		made, err := r.API.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			return err
		}
		args := made.Spec.Containers[0].Args
		if slices.Contains(args, "-addresses=usher."+namespace+".svc") != want {
			return fmt.Errorf("the arguments are %q", args)
		}
		return nil
	})
}

// wantSidecarAtConsul replaces the service's pod, and checks that the new one has
// its configuration from Consul.
func (r *consulRelease) wantSidecarAtConsul(t *testing.T, ushers []*cluster.Pod) {
	t.Helper()
	r.service = r.restart(t, "default", "static-server")[0]
	pod, err := r.API.CoreV1().Pods("default").Get(t.Context(), r.service.Name(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == "consul-dataplane" })
	if i < 0 {
		t.Fatalf("the pod %s has no sidecar", pod.Name)
	}
	if args := strings.Join(pod.Spec.Containers[i].Args, " "); strings.Contains(args, "usher") {
		t.Errorf("the sidecar of %s has Usher's flags: %s", pod.Name, args)
	}
	r.wantClientAddress(t)
	for _, usher := range ushers {
		if strings.Contains(usher.Log(t, "usher"), pod.Name) {
			t.Errorf("%s knows the sidecar of %s", usher.Name(), pod.Name)
		}
	}
}

// wantStrangerRefused starts a consul-dataplane that asks for the gateway through
// Usher with the flags of its pod, but as another service. Consul's ACLs decide, so
// it gets nothing.
func (r *consulRelease) wantStrangerRefused(t *testing.T, gateway *cluster.Pod) {
	t.Helper()
	const name = "stranger"
	core := r.API.CoreV1()
	of, err := core.Pods(namespace).Get(t.Context(), gateway.Name(), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := core.ServiceAccounts(namespace).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	dataplane := of.Spec.Containers[0]
	dataplane.Name, dataplane.LivenessProbe, dataplane.ReadinessProbe = name, nil, nil
	dataplane.Args = append(dataplane.Args,
		"-proxy-service-id-path=", "-proxy-service-id="+gateway.Name(), "-login-auth-method="+prefix+"-k8s-auth-method")
	stranger := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: corev1.PodSpec{
		ServiceAccountName: name, NodeName: of.Spec.NodeName, Containers: []corev1.Container{dataplane}, Volumes: of.Spec.Volumes,
	}}
	if _, err := core.Pods(namespace).Create(t.Context(), stranger, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	testprocess.Eventually(t, "the stranger is refused", testprocess.StartDeadline, func() error {
		now, err := core.Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || now.Status.Phase != corev1.PodRunning {
			return errors.Join(fmt.Errorf("it is %s: %s", now.Status.Phase, now.Status.Message), err)
		}
		log := r.Pods(t, namespace, "app="+name)[0].Log(t, name)
		if strings.Contains(log, "lds: add/update listener") {
			return testprocess.Permanent(errors.New("it gets listeners"))
		}
		if !strings.Contains(log, `needs service:write on the gateway "ingress-gateway"`) {
			return errors.New("its log does not say why")
		}
		return nil
	})
}
