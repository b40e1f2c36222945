package loadbalancer

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/usherproxy/usher/internal/problem"
)

func TestServicePortsLeadToListeners(t *testing.T) {
	s := honouring(map[string]string{awsPorts: "80"})
	s.Spec.Ports = []corev1.ServicePort{
		{Port: 80, TargetPort: intstr.FromInt32(8080)},
		{Port: 8443}, // no targetPort: its own
		{Port: 81, TargetPort: intstr.FromInt32(8081)},
		{Port: 82, TargetPort: intstr.FromInt32(8081)},
		{Port: 80, TargetPort: intstr.FromInt32(9443), Protocol: corev1.ProtocolUDP},
	}
	got := readIntent(s)
	for port, want := range map[int]proxyState{8080: proxyOn, 8443: proxyOff, 8081: proxyOff} {
		if got.ports[port].State != want {
			t.Errorf("listener %d: state %q, want %q", port, got.ports[port].State, want)
		}
	}
	if len(got.ports) != 3 || len(got.problems) != 0 {
		t.Errorf("listeners %v, problems %v", got.ports, got.problems)
	}
}

func TestListenerBehindPortsThatDisagree(t *testing.T) {
	s := honouring(map[string]string{awsPorts: "80"})
	s.Spec.Ports[1].TargetPort = intstr.FromInt32(8080)
	wantProblem(t, readIntent(s), "the load balancer sends PROXY headers on some ports that lead to listener 8080 and not on others")
	if got := readIntent(s).ports[8080].State; got != proxyMixed {
		t.Errorf("state %q, want mixed", got)
	}
}

func TestListenerBehindPortsThatAgree(t *testing.T) {
	s := honouring(map[string]string{awsAttributes + ".80": awsPPV2 + "=true", scalewayV1: "443"})
	s.Spec.Ports[1].TargetPort = intstr.FromInt32(8080)
	s.ManagedFields = []metav1.ManagedFieldsEntry{
		owns("a", 5, awsAttributes+".80"), owns("b", 9, scalewayV1),
	}
	for range 2 { // whichever port comes first
		got := readIntent(s).ports[8080]
		if got.State != proxyOn || got.Version != "" || !got.since.Equal(at(9)) {
			t.Errorf("state %q, version %q, since %s; want on, no version and minute 9", got.State, got.Version, got.since.Sub(start))
		}
		slices.Reverse(s.Spec.Ports)
	}
}

func TestListenerBehindAPortWithAnInvalidValue(t *testing.T) {
	s := balanced(map[string]string{linode + "port-80": `{"proxy-protocol": "v2"}`, linode + "port-443": "v2"})
	s.Spec.Ports[1].TargetPort = intstr.FromInt32(8080)
	for range 2 {
		got := readIntent(s)
		wantProblem(t, got, `"v2" is not a JSON object`)
		if got.ports[8080].State != proxyUnknown {
			t.Errorf("state %q, want unknown", got.ports[8080].State)
		}
		slices.Reverse(s.Spec.Ports)
	}
}

func TestNamedTargetPortLeadsToAnUnknownListener(t *testing.T) {
	s := honouring(map[string]string{digital: "true"})
	s.Spec.Ports[0].TargetPort = intstr.FromString("http")
	got := readIntent(s)
	wantProblem(t, got, `port 80 has a named targetPort ("http"), and Usher needs the number of the listener; use the number`)
	if got.otherPorts.State != proxyUnknown || got.ports[8443].State != proxyOn {
		t.Errorf("others %v, 8443 %v; want unknown and on", got.otherPorts, got.ports[8443])
	}
	delete(s.Annotations, digital)
	if got := readIntent(s); got.otherPorts.State != proxyOff || len(got.problems) > 0 {
		t.Errorf("without headers: others %v, problems %v", got.otherPorts, got.problems)
	}
}

func TestServiceThatIsNoLoadBalancer(t *testing.T) {
	s := honouring(map[string]string{digital: "true"})
	s.Spec.Type = ""
	got := readIntent(s)
	wantProblem(t, got, "clouds read it only on Services of type LoadBalancer, and this Service has the type ClusterIP")
	if got.ports[8080].State != proxyOff {
		t.Errorf("state %q, want off", got.ports[8080].State)
	}
}

func TestPreservesClientIP(t *testing.T) {
	for name, c := range map[string]struct {
		annotations map[string]string
		policy      corev1.ServiceExternalTrafficPolicy
		want        bool
	}{
		"no annotation":              {nil, "Local", false},
		"IP targets":                 {map[string]string{awsTargetType: "ip"}, "Local", false},
		"instances, local":           {map[string]string{awsTargetType: "instance"}, "Local", true},
		"instances, anywhere":        {map[string]string{awsTargetType: "instance"}, "Cluster", false},
		"attribute":                  {map[string]string{awsTargetType: "ip", awsAttributes: "a=b,preserve_client_ip.enabled=true"}, "", true},
		"attribute, upper case":      {map[string]string{awsAttributes: "preserve_client_ip.enabled=TRUE"}, "", true},
		"instances, attribute false": {map[string]string{awsTargetType: "instance", awsAttributes: "preserve_client_ip.enabled=false"}, "Local", false},
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
	oscCheck = prefix + "osc-load-balancer-healthcheck-"
	thCheck  = thalassaPrefix + "health-check-"
	csCheck  = "k8s.cloudscale.ch/loadbalancer-health-monitor-type"
)

func TestHealthChecksThatFailBecauseOfHeaders(t *testing.T) {
	type annotations = map[string]string
	for name, c := range map[string]struct {
		annotations
		policy  corev1.ServiceExternalTrafficPolicy
		problem string
	}{
		"AWS, the ready port":           {annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "HTTP", awsPrefix + "healthcheck-port": "21000"}, "", `port 21000 answers HTTP checks with 400; use "tcp"`},
		"AWS, the ready port over TCP":  {annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "tcp", awsPrefix + "healthcheck-port": "21000"}, "", ""},
		"AWS, a listener":               {annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "http", awsPrefix + "healthcheck-port": "8080"}, "", ""},
		"AWS, each listener":            {annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "http", awsPrefix + "healthcheck-port": "traffic-port"}, "", ""},
		"AWS, without headers":          {annotations{awsPrefix + "healthcheck-protocol": "http", awsPrefix + "healthcheck-port": "21000"}, "", ""},
		"AWS, instances and Local":      {annotations{awsAll: "*", awsTargetType: "instance"}, "Local", `health checks go to kube-proxy`},
		"AWS, instances":                {annotations{awsAll: "*", awsTargetType: "instance"}, "Cluster", ""},
		"AWS, instances, Local and TCP": {annotations{awsAll: "*", awsTargetType: "instance", awsPrefix + "healthcheck-protocol": "tcp"}, "Local", ""},
		"AWS, IP targets and Local":     {annotations{awsAll: "*", awsTargetType: "ip"}, "Local", ""},
		// Its checks of a port of the Service carry the header, and others do not go to the gateway.
		"DigitalOcean":             {annotations{digital: "true", prefix + "do-loadbalancer-healthcheck-protocol": "http"}, "", ""},
		"AWS, a node's port":       {annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "http", awsPrefix + "healthcheck-port": "30080"}, "", ""},
		"Scaleway":                 {annotations{scalewayV2: "*", scwCheck + "type": "http"}, "", `HTTP health checks carry no PROXY header, and the listener rejects them; use "tcp", or set service.beta.kubernetes.io/scw-loadbalancer-health-check-send-proxy to "true"`},
		"Scaleway, with headers":   {annotations{scalewayV2: "*", scwCheck + "type": "http", scwCheck + "send-proxy": "true"}, "", ""},
		"Scaleway, a port":         {annotations{scalewayV2: "80", scwCheck + "type": "80:http;443:tcp"}, "", `carry no PROXY header`},
		"Scaleway, another port":   {annotations{scalewayV2: "80", scwCheck + "type": "80:tcp;443:http"}, "", ""},
		"Vultr":                    {annotations{vultr: "true", prefix + "vultr-loadbalancer-healthcheck-protocol": "http"}, "", `the cloud does not document whether`},
		"Vultr, a path":            {annotations{vultr: "true", prefix + "vultr-loadbalancer-healthcheck-path": "/"}, "", `healthcheck-path: the listener rejects health checks without a PROXY header, and the cloud does not document whether its HTTP checks carry one; remove it, or set service.beta.kubernetes.io/vultr-loadbalancer-healthcheck-protocol to "tcp"`},
		"Vultr, a path over TCP":   {annotations{vultr: "true", prefix + "vultr-loadbalancer-healthcheck-path": "/", prefix + "vultr-loadbalancer-healthcheck-protocol": "tcp"}, "", ""},
		"Alibaba":                  {annotations{alibaba: "on", aliCheck + "type": "http"}, "", `use "tcp"`},
		"Alibaba, another port":    {annotations{alibaba: "on", aliCheck + "type": "http", aliCheck + "connect-port": "21000"}, "", ""},
		"IBM":                      {annotations{ibm: "proxy-protocol", ibmCheck + "protocol": "https", ibmCheck + "port": "30443"}, "", `use "tcp"`},
		"IBM, kube-proxy":          {annotations{ibm: "proxy-protocol", ibmCheck + "protocol": "http", ibmCheck + "port": "10256"}, "", ""},
		"Brightbox":                {annotations{bright: "v2", prefix + "brightbox-load-balancer-healthcheck-protocol": "http"}, "", `use "tcp"`},
		"Brightbox by default":     {annotations{bright: "v2", brightboxPrefix + "listener-protocol": ""}, "", `set it to "tcp", because it is "http" where nothing is said`},
		"Brightbox, TCP listeners": {annotations{bright: "v2", brightboxPrefix + "listener-protocol": "tcp"}, "", ""},
		"Brightbox over TCP":       {annotations{bright: "v2", brightboxPrefix + "healthcheck-protocol": "tcp"}, "", ""},
		"Brightbox, kube-proxy":    {annotations{bright: "v2"}, "Local", ""},
		"cloudscale.ch":            {annotations{cloudsc: "proxyv2", "k8s.cloudscale.ch/loadbalancer-health-monitor-type": "http"}, "", `use "tcp"`},
		"Hetzner":                  {annotations{hetzner: "true", "load-balancer.hetzner.cloud/health-check-protocol": "HTTP"}, "", `use "tcp"`},
		"Linode":                   {annotations{linode + "default-proxy-protocol": "v2", linode + "check-type": "http_body"}, "", `use "connection"`},
		"AWS, on another listener": {annotations{awsPorts: "80", awsPrefix + "healthcheck-protocol": "HTTP", awsPrefix + "healthcheck-port": "8443"}, "", `port 8443 answers HTTP checks with 400`},
		"Scaleway, upper case":     {annotations{scalewayV2: "true", prefix + "scw-loadbalancer-health-check-type": "HTTPS"}, "", `use "tcp"`},
		"AWS, Local and HTTP":      {annotations{awsAll: "*", awsTargetType: "instance", awsPrefix + "healthcheck-protocol": "http"}, "Local", `health checks go to kube-proxy`},
		"AWS, Local and its port":  {annotations{awsAll: "*", awsTargetType: "instance", awsPrefix + "healthcheck-port": "31000"}, "Local", `health checks go to kube-proxy`},
		"AWS, Local, a listener":   {annotations{awsAll: "*", awsTargetType: "instance", awsPrefix + "healthcheck-port": "traffic-port"}, "Local", ""},
		"classic AWS":              {annotations{awsAll: "*", awsPrefix + "healthcheck-protocol": "http", awsPrefix + "healthcheck-port": "21000"}, "", ""},
		"classic AWS, kube-proxy":  {annotations{awsAll: "*", awsTargetType: "instance"}, "Local", ""},
		"Scaleway, a database":     {annotations{scalewayV2: "*", scwCheck + "type": "80:mysql"}, "", `"mysql" health checks carry no PROXY header`},
		"Scaleway, with 1":         {annotations{scalewayV2: "*", scwCheck + "type": "http", scwCheck + "send-proxy": "1"}, "", ""},
		"Scaleway, kube-proxy":     {annotations{scalewayV2: "*", scwCheck + "type": "http", scwCheck + "from-service": "true"}, "Local", ""},
		"Scaleway, no kube-proxy":  {annotations{scalewayV2: "*", scwCheck + "type": "http", scwCheck + "from-service": "true"}, "Cluster", `carry no PROXY header`},
		"Outscale":                 {annotations{outscale: "*", oscCheck + "port": "30080", oscCheck + "protocol": "HTTP"}, "", `osc-load-balancer-healthcheck-protocol: the listener rejects health checks without a PROXY header, and the cloud does not document whether its HTTP checks carry one; use "tcp"`},
		"Outscale over TLS":        {annotations{outscale: "*", oscCheck + "port": "30443", oscCheck + "protocol": "ssl"}, "", `its SSL checks`},
		"Outscale, a path":         {annotations{outscale: "*", oscCheck + "port": "30080", oscCheck + "path": "/"}, "", `osc-load-balancer-healthcheck-path`},
		"Outscale, a node's port":  {annotations{outscale: "*", oscCheck + "port": "10256", oscCheck + "protocol": "http"}, "", ""},
		"Outscale without a port":  {annotations{outscale: "*", oscCheck + "protocol": "http", oscCheck + "path": "/"}, "", ""},
		"Outscale, a port":         {annotations{outscale: "*", oscCheck + "port": "30080"}, "", ""},
		"UpCloud":                  {annotations{upcloud: upcloudHTTP(`"health_check_type": "http"`)}, "", `set the backend's health_check_type to "tcp"`},
		"UpCloud, another port":    {annotations{upcloud: upcloudHTTP(`"health_check_type": "http", "health_check_url": "http://:10256/healthz"`)}, "", ""},
		"UpCloud, Local":           {annotations{upcloud: upcloudHTTP(`"health_check_url": ""`)}, "Local", ""},
		"cloudscale.ch over TLS":   {annotations{cloudsc: "proxyv2", csCheck: "tls-hello"}, "", `whether its "tls-hello" checks carry one`},
		"cloudscale.ch, ping":      {annotations{cloudsc: "proxyv2", csCheck: "ping"}, "", ""},
		"cloudscale.ch, Local":     {annotations{cloudsc: "proxyv2", csCheck: "http"}, "Local", ""},
		"IBM, Local":               {annotations{ibm: "proxy-protocol"}, "Local", ""},
		"Thalassa":                 {annotations{thalassa: "true", thCheck + "enabled": "true", thCheck + "port": "30080"}, "", `set loadbalancer.k8s.thalassa.cloud/health-check-protocol to "tcp"`},
		"Thalassa, HTTP":           {annotations{thalassa: "true", thCheck + "enabled": "true", thCheck + "port": "30080", thCheck + "protocol": "HTTP"}, "", `use "tcp"`},
		"Thalassa over TCP":        {annotations{thalassa: "true", thCheck + "enabled": "true", thCheck + "port": "30080", thCheck + "protocol": "tcp"}, "", ""},
		"Thalassa, not enabled":    {annotations{thalassa: "true", thCheck + "port": "30080", thCheck + "protocol": "http"}, "", ""},
		"Thalassa, no port":        {annotations{thalassa: "true", thCheck + "enabled": "true"}, "", ""},
		"Thalassa, Local":          {annotations{thalassa: "true"}, "Local", ""},
		"Thalassa, Local, a port":  {annotations{thalassa: "true", thCheck + "port": "30443", thCheck + "protocol": "tcp"}, "Local", "remove it"},
		"Thalassa, a node's port":  {annotations{thalassa: "true", thCheck + "enabled": "true", thCheck + "port": "10256"}, "", ""},
		"Alibaba, the older name":  {annotations{alicloud: "on", prefix + "alicloud-loadbalancer-health-check-type": "http"}, "", `use "tcp"`},
		"Hetzner, no annotation":   {annotations{hetzner: "true", "load-balancer.hetzner.cloud/protocol": "http"}, "", ""},
		"Hetzner, an HTTP port":    {annotations{hetzner: "true", "load-balancer.hetzner.cloud/protocol": "http", "load-balancer.hetzner.cloud/health-check-interval": "5s"}, "", `set it to "tcp", because it is "http" where nothing is said`},
		"Hetzner over TCP":         {annotations{hetzner: "true", "load-balancer.hetzner.cloud/health-check-protocol": "tcp"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := honouring(c.annotations)
			if strings.HasPrefix(name, "AWS") {
				s.Spec.LoadBalancerClass = new(awsClass)
			}
			s.Spec.ExternalTrafficPolicy = c.policy
			if c.policy == corev1.ServiceExternalTrafficPolicyLocal {
				s.Spec.HealthCheckNodePort = 31000
			}
			s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 30080, 30443
			wantProblem(t, readIntent(s), c.problem)
		})
	}
}

// upcloudHTTP is UpCloud's JSON for two TCP ports with a health check.
func upcloudHTTP(check string) string {
	const backend = `{"name": %q, "properties": {"outbound_proxy_protocol": "v2", %s}}`
	return upcloudTCP + `"backends": [` + fmt.Sprintf(backend+", "+backend, "http", check, "https", check) + "]}"
}

// A listener that only some ports send headers to needs checks that work with
// both.
func TestHealthChecksOfAListenerBehindPortsThatDisagree(t *testing.T) {
	s := balanced(map[string]string{scalewayV2: "80", prefix + "scw-loadbalancer-health-check-type": "http"})
	for i := range s.Spec.Ports {
		s.Spec.Ports[i].TargetPort = intstr.FromInt32(8080)
	}
	got := readIntent(s)
	if !slices.ContainsFunc(got.problems, func(p problem.Problem) bool { return strings.Contains(p.What, "HTTP health checks") }) {
		t.Errorf("problems %v, want one about the health checks", got.problems)
	}
}

// The AWS Load Balancer Controller uses instances as targets by default.
func TestNodeHealthChecksByClass(t *testing.T) {
	for name, c := range map[string]struct {
		target, class, problem string
	}{
		"its class":             {"", awsClass, "health checks go to kube-proxy"},
		"its class, IP targets": {"ip", awsClass, ""},
		"another class":         {"", "example.com/lb", "Usher does not know whether it reads this annotation"},
	} {
		s := balanced(map[string]string{awsAll: "*"})
		if c.target != "" {
			s.Annotations[awsTargetType] = c.target
		}
		s.Spec.LoadBalancerClass, s.Spec.ExternalTrafficPolicy = &c.class, corev1.ServiceExternalTrafficPolicyLocal
		t.Run(name, func(t *testing.T) { wantProblem(t, readIntent(s), c.problem) })
	}
}

// wantProblem checks that there is one problem with this text, or, with "", none.
func wantProblem(t *testing.T, got serviceIntent, text string) {
	t.Helper()
	if text == "" && len(got.problems) == 0 {
		return
	}
	if text == "" || len(got.problems) != 1 || !strings.Contains(got.problems[0].String(), text) {
		t.Errorf("problems %q, want %q", got.problems, text)
	}
}

// owns is the entry of a manager that set one annotation.
func owns(manager string, minute float64, key string) metav1.ManagedFieldsEntry {
	return managed(manager, minute, fmt.Sprintf(`{"f:metadata": {"f:annotations": {"f:%s": {}}}}`, key))
}

// An intent is as old as the newest of the annotations that it follows from.
func TestIntentIsAsOldAsItsNewestAnnotation(t *testing.T) {
	type entries = []metav1.ManagedFieldsEntry
	filter := stackit + "-ports-filter"
	for name, c := range map[string]struct {
		annotations map[string]string
		entries
		want float64
	}{
		"the second cloud's came later": {map[string]string{digital: "true", openstack: "true"}, entries{owns("a", 5, digital), owns("b", 9, openstack)}, 9},
		"the first cloud's came later":  {map[string]string{digital: "true", openstack: "true"}, entries{owns("a", 9, digital), owns("b", 5, openstack)}, 9},
		"the list of ports came later":  {map[string]string{stackit: "true", filter: "80"}, entries{owns("a", 5, stackit), owns("b", 9, filter)}, 9},
		"the cloud's type came later":   {map[string]string{digital: "true", doPrefix + "type": "REGIONAL"}, entries{owns("a", 5, digital), owns("b", 9, doPrefix+"type")}, 9},
		"the status is not the Service": {map[string]string{digital: "true"}, entries{inStatus(owns("cloud", 9, digital))}, 0},
	} {
		s := service("", 0)
		s.Annotations, s.ManagedFields = honouring(c.annotations).Annotations, c.entries
		if got := readIntent(s).ports[8080].since; !got.Equal(at(c.want)) {
			t.Errorf("%s: since minute %v, want %v", name, got.Sub(start).Minutes(), c.want)
		}
	}
}

func TestServiceModifiedTime(t *testing.T) {
	type entries = []metav1.ManagedFieldsEntry
	for name, c := range map[string]struct {
		entries
		want float64
	}{
		"creation":            {nil, 0},
		"last manager":        {entries{owns("a", 5, digital), owns("b", 9, ovh)}, 9},
		"any order":           {entries{owns("b", 9, ovh), owns("a", 5, digital)}, 9},
		"not the status":      {entries{owns("a", 5, digital), inStatus(owns("cloud", 9, ovh))}, 5},
		"not before creation": {entries{owns("a", -5, digital)}, 0},
	} {
		s := service("", 0)
		s.ManagedFields = c.entries
		if got := readIntent(s).modified; !got.Equal(at(c.want)) {
			t.Errorf("%s: minute %v, want %v", name, got.Sub(start).Minutes(), c.want)
		}
	}
}

// inStatus makes it an entry of the status, which clouds write.
func inStatus(e metav1.ManagedFieldsEntry) metav1.ManagedFieldsEntry {
	e.Subresource = "status"
	return e
}
