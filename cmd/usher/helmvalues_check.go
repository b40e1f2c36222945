package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/adminport"
	"github.com/usherproxy/usher/internal/consulchart"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/loadbalancer"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// checkOptions say what usher helm-values --check asks.
type checkOptions struct {
	kubeconfig, kubeContext string
	consulHTTPAddr          string
	adminAddrs              []string
}

func (o *checkOptions) register(f *pflag.FlagSet) {
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "Kubeconfig of the cluster that --check asks. "+
		"Default: KUBECONFIG, else ~/.kube/config, else the cluster that Usher runs in.")
	f.StringVar(&o.kubeContext, "kube-context", "", "Context in the kubeconfig. Default: the current one.")
	f.StringVar(&o.consulHTTPAddr, "consul-http-addr", "", "Address of Consul's HTTP API, where --check then looks for the registrations. "+
		"Default: CONSUL_HTTP_ADDR, else --check does not ask Consul.")
	f.StringArrayVar(&o.adminAddrs, "usher-admin-addr", nil, "Address host:port of Usher's admin port, where --check then looks for the "+
		"Envoys. Give it once for each replica. Default: --check does not ask Usher.")
}

// checkTime limits a whole check.
const checkTime = time.Minute

// target is where the objects of the charts are.
type target struct {
	namespace, prefix string // of the Consul chart
	usher             usherRelease
	noAnnotation      error // why helm-values prints no annotation
}

// deployment returns the name of a gateway's Deployment.
func (t target) deployment(gatewayName string) string { return t.prefix + "-" + gatewayName }

// run prints how what runs differs from gateways that use Usher. The error says that something does.
func (o *checkOptions) run(cmd *cobra.Command, t target, gateways []consulchart.GatewayConfig) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), checkTime)
	defer cancel()
	c, err := o.newChecker(t)
	if err != nil {
		return err
	}
	if c.connected, err = o.envoys(ctx); err != nil {
		return err
	}
	if c.front, err = c.readFront(ctx); err != nil {
		return err
	}
	differ := false
	for _, g := range gateways {
		differences, err := c.compare(ctx, cmd.OutOrStdout(), g)
		if err != nil {
			return err
		}
		for _, d := range differences {
			fmt.Fprintln(cmd.OutOrStdout(), d)
		}
		differ = differ || len(differences) > 0
	}
	for _, unasked := range o.unasked(c) {
		fmt.Fprintln(cmd.ErrOrStderr(), "notice:", unasked)
	}
	if differ {
		return errors.New("--check: not all of the gateways' pods use Usher as they should; see the lines above")
	}
	return nil
}

// compare returns how a gateway differs from one that uses Usher. It prints a line for one that does not.
func (c *checker) compare(ctx context.Context, out io.Writer, g consulchart.GatewayConfig) ([]problem.Problem, error) {
	running, found, err := c.running(ctx, g)
	if err != nil || found != (problem.Problem{}) {
		return []problem.Problem{found}, err
	}
	how, differences := g.Compare(running)
	if len(differences) == 0 {
		fmt.Fprintf(out, "all %d pods of gateway %q use Usher, by %s\n", len(running.Pods), g.Gateway, how)
	}
	return differences, nil
}

// unasked says what the check did not look at.
func (o *checkOptions) unasked(c *checker) []string {
	notices := c.front.unread
	if c.consul == nil {
		notices = append(notices, "the registrations in Consul were not checked; set --consul-http-addr or CONSUL_HTTP_ADDR")
	}
	if len(o.adminAddrs) == 0 {
		notices = append(notices, "whether the Envoys are connected to Usher was not checked; set --usher-admin-addr")
	}
	return notices
}

// checker reads what runs.
type checker struct {
	target     target
	kubernetes rest.Interface
	consul     *consul.Client // nil: do not ask it
	connected  map[string]bool
	front      *front
}

func (o *checkOptions) newChecker(t target) (*checker, error) {
	c := &checker{target: t}
	var err error
	if c.kubernetes, err = o.connectKubernetes(); err != nil {
		return nil, err
	}
	if o.consulHTTPAddr == "" && os.Getenv(api.HTTPAddrEnvName) == "" {
		return c, nil
	}
	c.consul, err = consul.NewClient(consul.Config{HTTPAddr: o.consulHTTPAddr})
	return c, err
}

// connectKubernetes returns a client of the cluster that kubectl would use.
func (o *checkOptions) connectKubernetes() (rest.Interface, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: o.kubeContext}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("--kubeconfig: there is no kubeconfig, and Usher does not run in Kubernetes; " +
			"set it to the file that kubectl uses")
	}
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	scheme := runtime.NewScheme()
	utilruntime.Must(corev1.AddToScheme(scheme)) // it registers constants
	config.APIPath = "/api"
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	config.ContentType = runtime.ContentTypeJSON
	config.UserAgent = "usher"
	config.WarningHandler = rest.NoWarnings{} // the check asks for old versions, too, for old clusters
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	return client, nil
}

// running returns what runs of a gateway. Without a Deployment it returns that as a difference.
func (c *checker) running(ctx context.Context, g consulchart.GatewayConfig) (consulchart.Running, problem.Problem, error) {
	name := c.target.deployment(g.Gateway)
	r := consulchart.Running{Deployment: c.target.namespace + "/" + name}
	var deployment appsv1.Deployment
	err := c.get(ctx, "/apis/apps/v1/namespaces/"+c.target.namespace+"/deployments/"+name, "", &deployment)
	if apierrors.IsNotFound(err) {
		return r, problem.Problem{
			Where: fmt.Sprintf("gateway %q: Deployment %s", g.Gateway, r.Deployment),
			What:  "it does not exist; check --namespace and --release, and whether the chart is installed with these values",
		}, nil
	}
	if err != nil {
		return r, problem.Problem{}, fmt.Errorf("deployment %s: %w", r.Deployment, err)
	}
	template := deployment.Spec.Template
	r.Template = podParts(template.Annotations, template.Spec)
	r.Failure = failureOf(&deployment)
	r.Connected, r.NoAnnotation = c.connected, c.target.noAnnotation
	r.Front = c.front.of(c.target.namespace, template.Labels)
	id := gateway.ID{Name: g.Gateway, Namespace: gateway.OmitDefault(g.Namespace), Partition: gateway.OmitDefault(g.Partition)}
	r.SendsHeaders = c.sendsHeaders(ctx, id, gateway.KubernetesService{Namespace: c.target.namespace, Name: name})
	if r.Pods, err = c.pods(ctx, deployment.Spec.Selector); err != nil {
		return r, problem.Problem{}, fmt.Errorf("pods of deployment %s: %w", r.Deployment, err)
	}
	if c.consul != nil {
		if r.Registered, err = c.consul.ProxyConfigs(ctx, id); err != nil {
			return r, problem.Problem{}, fmt.Errorf("gateway %q in Consul at %s: %w", g.Gateway, c.consul.Address(), err)
		}
	}
	return r, problem.Problem{}, nil
}

// serviceTime is how long the check waits for an answer about a Service, without which it says nothing about headers.
const serviceTime = 5 * time.Second

// sendsHeaders reports whether the Service of a gateway makes the load balancer send PROXY headers; false if that cannot be
// known.
func (c *checker) sendsHeaders(ctx context.Context, of gateway.ID, service gateway.KubernetesService) (sends bool) {
	ctx, cancel := context.WithTimeout(ctx, serviceTime)
	defer cancel()
	watcher := loadbalancer.NewWatcher(loadbalancer.Options{
		Client: c.kubernetes, Logger: slog.New(slog.DiscardHandler), Metrics: loadbalancer.NewMetrics(prometheus.NewRegistry()),
	})
	watcher.Watch(ctx, of, service, func(b *gateway.Balancer) {
		for _, port := range b.Ports {
			sends = sends || port.Mode == settings.Strict // without a grace period, it is what the Service asks for
		}
		cancel() // the first answer is enough
	})
	return sends
}

// pods returns the pods that a selector selects, without those that are over or being deleted.
func (c *checker) pods(ctx context.Context, selector *metav1.LabelSelector) ([]consulchart.RunningPod, error) {
	var list corev1.PodList
	err := c.get(ctx, "/api/v1/namespaces/"+c.target.namespace+"/pods", metav1.FormatLabelSelector(selector), &list)
	var pods []consulchart.RunningPod
	for _, pod := range list.Items {
		over := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
		if pod.DeletionTimestamp == nil && !over {
			pods = append(pods, consulchart.RunningPod{Name: pod.Name, PodParts: podParts(pod.Annotations, pod.Spec), Waiting: waitingFor(&pod)})
		}
	}
	slices.SortFunc(pods, func(a, b consulchart.RunningPod) int { return cmp.Compare(a.Name, b.Name) })
	return pods, err
}

// podParts returns what decides where the Envoy of a pod gets its configuration.
func podParts(annotations map[string]string, spec corev1.PodSpec) consulchart.PodParts {
	p := consulchart.PodParts{Annotations: annotations}
	for _, c := range spec.Containers {
		if c.Name == consulchart.GatewayContainer {
			p.Args = c.Args
		}
	}
	return p
}

// failureOf returns why Kubernetes cannot create pods of a Deployment; "" if it can.
func failureOf(d *appsv1.Deployment) string {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			return c.Message
		}
	}
	return ""
}

// get reads an object. The selector is for lists.
func (c *checker) get(ctx context.Context, path, selector string, into any) error {
	request := c.kubernetes.Get().AbsPath(path)
	if selector != "" {
		request.Param("labelSelector", selector)
	}
	text, err := request.Do(ctx).Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// waitingFor returns why a pod is not ready; "" if it is.
func waitingFor(pod *corev1.Pod) string {
	why := ""
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return ""
		}
		if c.Status != corev1.ConditionTrue && why == "" {
			why = cmp.Or(c.Message, c.Reason)
		}
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if waiting := s.State.Waiting; waiting != nil && waiting.Reason != "PodInitializing" {
			return strings.TrimSuffix(fmt.Sprintf("container %s: %s: %s", s.Name, waiting.Reason, waiting.Message), ": ")
		}
	}
	return cmp.Or(why, "the kubelet has not reported it yet")
}

// envoys returns the service IDs of the Envoys that have a stream to one of the Ushers; nil without addresses.
func (o *checkOptions) envoys(ctx context.Context) (map[string]bool, error) {
	if len(o.adminAddrs) == 0 {
		return nil, nil
	}
	connected := map[string]bool{}
	for _, addr := range o.adminAddrs {
		var envoys []connectedEnvoy
		if err := adminport.New(addr, adminport.Usher).GetJSON(ctx, envoysPath, &envoys); err != nil {
			return nil, fmt.Errorf("--usher-admin-addr: %w", err)
		}
		for _, e := range envoys {
			connected[e.ServiceID] = true
		}
	}
	return connected, nil
}
