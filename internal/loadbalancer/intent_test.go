package loadbalancer

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/usherproxy/usher/internal/problem"
)

func TestPortsOfTheServiceLeadToListeners(t *testing.T) {
	s := balanced(map[string]string{awsPorts: "80"})
	s.Spec.Ports = []corev1.ServicePort{
		{Port: 80, TargetPort: intstr.FromInt32(8080)},
		{Port: 8443}, // no targetPort: its own
		{Port: 81, TargetPort: intstr.FromInt32(8081)},
		{Port: 82, TargetPort: intstr.FromInt32(8081)},
	}
	got := readIntent(s)
	for port, want := range map[int]proxyState{8080: proxyOn, 8443: proxyOff, 8081: proxyOff} {
		if got.listeners[port].state != want {
			t.Errorf("listener %d: signal %d, want %d", port, got.listeners[port].state, want)
		}
	}
	if len(got.listeners) != 3 || len(got.problems) != 0 {
		t.Errorf("listeners %v, problems %v", got.listeners, got.problems)
	}
}

func TestOneListenerBehindPortsThatDiffer(t *testing.T) {
	s := balanced(map[string]string{awsPorts: "80"})
	s.Spec.Ports[1].TargetPort = intstr.FromInt32(8080)
	wantProblem(t, readIntent(s), "of its ports that lead to 8080, the balancer sends PROXY headers on some and none on others")
	if got := readIntent(s).listeners[8080].state; got != proxyMixed {
		t.Errorf("signal %d, want mixed", got)
	}
}

func TestOneListenerBehindPortsThatAgree(t *testing.T) {
	s := balanced(map[string]string{awsAttributes + ".80": awsPPV2 + "=true", scaleway + "v1": "443"})
	s.Spec.Ports[1].TargetPort = intstr.FromInt32(8080)
	s.ManagedFields = []metav1.ManagedFieldsEntry{
		owns("a", 5, awsAttributes+".80"), owns("b", 9, scaleway+"v1"),
	}
	for range 2 { // whichever port comes first
		got := readIntent(s).listeners[8080]
		if got.state != proxyOn || got.version != "" || !got.since.Equal(at(9)) {
			t.Errorf("signal %d, version %q, since %s; want on, two versions and minute 9", got.state, got.version, got.since.Sub(start))
		}
		slices.Reverse(s.Spec.Ports)
	}
}

func TestOneListenerBehindAPortThatIsUnclear(t *testing.T) {
	s := balanced(map[string]string{linode + "port-80": `{"proxy-protocol": "v2"}`, linode + "port-443": "v2"})
	s.Spec.Ports[1].TargetPort = intstr.FromInt32(8080)
	for range 2 {
		got := readIntent(s)
		wantProblem(t, got, `"v2" is not a JSON object`)
		if got.listeners[8080].state != proxyUnknown {
			t.Errorf("signal %d, want unclear", got.listeners[8080].state)
		}
		slices.Reverse(s.Spec.Ports)
	}
}

func TestAPortThatIsNamedIsNoListenerThatAnybodyKnows(t *testing.T) {
	s := balanced(map[string]string{digital: "true"})
	s.Spec.Ports[0].TargetPort = intstr.FromString("http")
	got := readIntent(s)
	wantProblem(t, got, `port 80 leads to the pod's port "http", and only a number tells`)
	if got.others.state != proxyUnknown || got.listeners[8443].state != proxyOn {
		t.Errorf("others %v, 8443 %v; want unclear and on", got.others, got.listeners[8443])
	}
	delete(s.Annotations, digital)
	if got := readIntent(s); got.others.state != proxyOff || len(got.problems) > 0 {
		t.Errorf("without headers: others %v, problems %v", got.others, got.problems)
	}
}

func TestAServiceThatNoCloudLooksAt(t *testing.T) {
	s := balanced(map[string]string{digital: "true"})
	s.Spec.Type = ""
	got := readIntent(s)
	wantProblem(t, got, "clouds read it on Services of type LoadBalancer only, and this one is a ClusterIP")
	if got.listeners[8080].state != proxyOff {
		t.Errorf("signal %d, want off", got.listeners[8080].state)
	}
}

func TestWhoKeepsTheClientsAddresses(t *testing.T) {
	for name, c := range map[string]struct {
		annotations map[string]string
		policy      corev1.ServiceExternalTrafficPolicy
		want        bool
	}{
		"nothing said":           {nil, "Local", false},
		"addresses":              {map[string]string{awsTargetType: "ip"}, "Local", false},
		"instances, local":       {map[string]string{awsTargetType: "instance"}, "Local", true},
		"instances, anywhere":    {map[string]string{awsTargetType: "instance"}, "Cluster", false},
		"said":                   {map[string]string{awsTargetType: "ip", awsAttributes: "a=b,preserve_client_ip.enabled=true"}, "", true},
		"said in capitals":       {map[string]string{awsAttributes: "preserve_client_ip.enabled=TRUE"}, "", true},
		"said not, of instances": {map[string]string{awsTargetType: "instance", awsAttributes: "preserve_client_ip.enabled=false"}, "Local", false},
	} {
		s := balanced(c.annotations)
		s.Spec.ExternalTrafficPolicy = c.policy
		if got := readIntent(s).preservesClientIP; got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

const (
	scwCheck = prefix + "scw-loadbalancer-health-check-"
	aliCheck = prefix + "alibaba-cloud-loadbalancer-health-check-"
	ibmCheck = "service.kubernetes.io/ibm-load-balancer-cloud-provider-vpc-health-check-"
)

func TestHealthChecksThatFailWithHeaders(t *testing.T) {
	type annotations = map[string]string
	for name, c := range map[string]struct {
		annotations
		policy  corev1.ServiceExternalTrafficPolicy
		problem string
	}{
		"AWS, the ready port": {
			annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "HTTP", awsPrefix + "healthcheck-port": "21000"},
			"",
			`aws-load-balancer-healthcheck-protocol: the balancer's health checks carry a PROXY header as well, and port 21000 answers those over HTTP with 400; use "tcp"`,
		},
		"AWS, the ready port over TCP":  {annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "tcp", awsPrefix + "healthcheck-port": "21000"}, "", ""},
		"AWS, a listener":               {annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "http", awsPrefix + "healthcheck-port": "8080"}, "", ""},
		"AWS, each listener":            {annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "http", awsPrefix + "healthcheck-port": "traffic-port"}, "", ""},
		"AWS, without headers":          {annotations{awsPrefix + "healthcheck-protocol": "http", awsPrefix + "healthcheck-port": "21000"}, "", ""},
		"AWS, instances and Local":      {annotations{awsAll: "*", awsTargetType: "instance"}, "Local", `the balancer's health checks go to kube-proxy`},
		"AWS, instances":                {annotations{awsAll: "*", awsTargetType: "instance"}, "Cluster", ""},
		"AWS, instances, Local and TCP": {annotations{awsAll: "*", awsTargetType: "instance", awsPrefix + "healthcheck-protocol": "tcp"}, "Local", ""},
		"AWS, addresses and Local":      {annotations{awsAll: "*", awsTargetType: "ip"}, "Local", ""},
		// Its checks of a port of the Service carry the header, and others are not asked of the gateway.
		"DigitalOcean":                     {annotations{digital: "true", prefix + "do-loadbalancer-healthcheck-protocol": "http"}, "", ""},
		"AWS, a node's port":               {annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "http", awsPrefix + "healthcheck-port": "30080"}, "", ""},
		"Scaleway":                         {annotations{scaleway + "v2": "*", scwCheck + "type": "http"}, "", `health checks over HTTP carry no PROXY header, and the listener will refuse them; use "tcp", or service.beta.kubernetes.io/scw-loadbalancer-health-check-send-proxy: "true"`},
		"Scaleway, with headers":           {annotations{scaleway + "v2": "*", scwCheck + "type": "http", scwCheck + "send-proxy": "true"}, "", ""},
		"Scaleway, a port":                 {annotations{scaleway + "v2": "80", scwCheck + "type": "80:http;443:tcp"}, "", `carry no PROXY header`},
		"Scaleway, another port":           {annotations{scaleway + "v2": "80", scwCheck + "type": "80:tcp;443:http"}, "", ""},
		"Vultr":                            {annotations{vultr: "true", prefix + "vultr-loadbalancer-healthcheck-protocol": "http"}, "", `nobody has written down whether`},
		"Vultr, a path":                    {annotations{vultr: "true", prefix + "vultr-loadbalancer-healthcheck-path": "/"}, "", `healthcheck-path: nobody has written down whether the balancer's health checks over HTTP carry a PROXY header, and the listener refuses those that carry none; remove it, or use service.beta.kubernetes.io/vultr-loadbalancer-healthcheck-protocol: "tcp"`},
		"Vultr, a path over TCP":           {annotations{vultr: "true", prefix + "vultr-loadbalancer-healthcheck-path": "/", prefix + "vultr-loadbalancer-healthcheck-protocol": "tcp"}, "", ""},
		"Alibaba":                          {annotations{alibaba: "on", aliCheck + "type": "http"}, "", `use "tcp"`},
		"Alibaba, another port":            {annotations{alibaba: "on", aliCheck + "type": "http", aliCheck + "connect-port": "21000"}, "", ""},
		"IBM":                              {annotations{ibm: "proxy-protocol", ibmCheck + "protocol": "https", ibmCheck + "port": "30443"}, "", `use "tcp"`},
		"IBM, kube-proxy":                  {annotations{ibm: "proxy-protocol", ibmCheck + "protocol": "http", ibmCheck + "port": "10256"}, "", ""},
		"Brightbox":                        {annotations{bright: "v2", prefix + "brightbox-load-balancer-healthcheck-protocol": "http"}, "", `use "tcp"`},
		"cloudscale.ch":                    {annotations{cloudsc: "proxyv2", "k8s.cloudscale.ch/loadbalancer-health-monitor-type": "http"}, "", `use "tcp"`},
		"Hetzner":                          {annotations{hetzner: "true", "load-balancer.hetzner.cloud/health-check-protocol": "HTTP"}, "", `use "tcp"`},
		"Linode":                           {annotations{linode + "default-proxy-protocol": "v2", linode + "check-type": "http_body"}, "", `use "connection"`},
		"AWS, on another listener":         {annotations{awsPorts: "80", awsPrefix + "healthcheck-protocol": "HTTP", awsPrefix + "healthcheck-port": "8443"}, "", `port 8443 answers those over HTTP with 400`},
		"Scaleway, in capitals":            {annotations{scaleway + "v2": "true", prefix + "scw-loadbalancer-health-check-type": "HTTPS"}, "", `use "tcp"`},
		"Hetzner, of a cloud that is none": {annotations{hetzner: "true", "load-balancer.hetzner.cloud/health-check-protocol": "tcp"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := balanced(c.annotations)
			s.Spec.ExternalTrafficPolicy = c.policy
			s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 30080, 30443
			wantProblem(t, readIntent(s), c.problem)
		})
	}
}

// A listener that only some ports send headers to needs checks that work with
// both.
func TestHealthChecksOfAListenerBehindPortsThatDiffer(t *testing.T) {
	s := balanced(map[string]string{scaleway + "v2": "80", prefix + "scw-loadbalancer-health-check-type": "http"})
	for i := range s.Spec.Ports {
		s.Spec.Ports[i].TargetPort = intstr.FromInt32(8080)
	}
	got := readIntent(s)
	if !slices.ContainsFunc(got.problems, func(p problem.Problem) bool { return strings.Contains(p.What, "health checks over HTTP") }) {
		t.Errorf("problems %v, want one about the health checks", got.problems)
	}
}

// The AWS Load Balancer Controller has instances as targets where nothing is
// said.
func TestNodeChecksOfAClass(t *testing.T) {
	for name, c := range map[string]struct {
		target, class, problem string
	}{
		"its class":             {"", awsClass, "the balancer's health checks go to kube-proxy"},
		"its class, addresses":  {"ip", awsClass, ""},
		"the class of somebody": {"", "example.com/lb", ""},
	} {
		s := balanced(map[string]string{awsAll: "*"})
		if c.target != "" {
			s.Annotations[awsTargetType] = c.target
		}
		s.Spec.LoadBalancerClass, s.Spec.ExternalTrafficPolicy = &c.class, corev1.ServiceExternalTrafficPolicyLocal
		t.Run(name, func(t *testing.T) { wantProblem(t, readIntent(s), c.problem) })
	}
}

// wantProblem wants one problem that says this, or, with "", none.
func wantProblem(t *testing.T, got serviceIntent, says string) {
	t.Helper()
	if says == "" && len(got.problems) == 0 {
		return
	}
	if says == "" || len(got.problems) != 1 || !strings.Contains(got.problems[0].String(), says) {
		t.Errorf("problems %q, want %q", got.problems, says)
	}
}
