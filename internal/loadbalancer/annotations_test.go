package loadbalancer

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/services"
)

// balanced is a Service of type LoadBalancer with these annotations.
func balanced(annotations map[string]string) *corev1.Service { return services.Balanced(annotations) }

// honouredWith are the annotations that others need to be honoured.
var honouredWith = map[string]map[string]string{
	digital: {doPrefix + "type": "REGIONAL"},
	ovh:     {ovhClass: "iolb"},
	ociNLB:  {ociType: "nlb"},
	azure:   {azureCreate: "true", azureInternal: "true"},
	bright:  {brightboxPrefix + "listener-protocol": "tcp"},
}

// withValue is a Service with this annotation, and with what the annotation needs to be honoured.
func withValue(key, value string) *corev1.Service {
	return honouring(map[string]string{key: value})
}

// honouring is a Service with these annotations, and with what they need to be honoured.
func honouring(annotations map[string]string) *corev1.Service {
	s := balanced(map[string]string{})
	for key := range annotations {
		maps.Copy(s.Annotations, honouredWith[key])
		if key == awsPorts || strings.HasPrefix(key, awsAttributes) {
			s.Annotations[awsType], s.Annotations[awsTargetType] = "external", "ip"
		}
		if key == loxilb {
			s.Spec.LoadBalancerClass = new(loxilbClass)
		}
	}
	maps.Copy(s.Annotations, annotations)
	return s
}

// valueCase is what a value of an annotation means for the ports 80 and 443.
type valueCase struct {
	key, value  string
	http, https proxyState
	version     settings.Version
	problem     string // part of the only one; empty if there is none
}

func both(key, value string, state proxyState, version settings.Version) valueCase {
	return valueCase{key: key, value: value, http: state, https: state, version: version}
}

func invalid(key, value string, state proxyState, problem string) valueCase {
	return valueCase{key: key, value: value, http: state, https: state, problem: problem}
}

// only80 is on for port 80 and off for the other.
func only80(key, value string, version settings.Version) valueCase {
	return valueCase{key: key, value: value, http: proxyOn, https: proxyOff, version: version}
}

const (
	openstack = "loadbalancer.openstack.org/proxy-protocol"
	ovh       = prefix + "ovh-loadbalancer-proxy-protocol"
	ociLB     = prefix + "oci-load-balancer-connection-proxy-protocol-version"
	ociNLB    = "oci-network-load-balancer.oraclecloud.com/is-ppv2-enabled"
	vultr     = prefix + "vultr-loadbalancer-proxy-protocol"
	civo      = "kubernetes.civo.com/loadbalancer-enable-proxy-protocol"
	outscale  = prefix + "osc-load-balancer-proxy-protocol"
	ibm       = "service.kubernetes.io/ibm-load-balancer-cloud-provider-enable-features"
	alibaba   = prefix + "alibaba-cloud-loadbalancer-proxy-protocol"
	volc      = prefix + "volcengine-loadbalancer-proxy-protocol"
	stackit   = "lb.stackit.cloud/tcp-proxy-protocol"
	yawol     = "yawol.stackit.cloud/tcpProxyProtocol"
	cloudsc   = "k8s.cloudscale.ch/loadbalancer-pool-protocol"
	cloudst   = prefix + "cloudstack-load-balancer-proxy-protocol"
	bright    = prefix + "brightbox-load-balancer-listener-proxy-protocol"
	digital   = prefix + "do-loadbalancer-enable-proxy-protocol"
	scaleOld  = prefix + "scw-loadbalancer-send-proxy-v2"
	alicloud  = prefix + "alicloud-loadbalancer-proxy-protocol"
	hetzner   = "load-balancer.hetzner.cloud/uses-proxyprotocol"
	upcloud   = prefix + "upcloud-load-balancer-config"
	naver     = prefix + "ncloud-load-balancer-proxy-protocol"
	thalassa  = "loadbalancer.k8s.thalassa.cloud/enable-proxy-protocol"
	bizfly    = "kubernetes.bizflycloud.vn/enable-proxy-protocol"
	loxilb    = "loxilb.io/useproxyprotov2"
	azure     = prefix + "azure-pls-proxy-protocol"
	awsAll    = awsPrefix + "proxy-protocol"
	awsPorts  = awsPrefix + "proxy-protocol-per-target-group"
)

// upcloudTCP is the beginning of UpCloud's JSON for two TCP ports.
const upcloudTCP = `{"frontends": [{"name": "http", "mode": "tcp"}, {"name": "https", "mode": "tcp"}], `

// valueCases are values of every annotation of the table, one at a time.
var valueCases = []valueCase{
	both(awsAll, "*", proxyOn, ""),
	invalid(awsAll, "true", proxyUnknown, `the cloud refuses "true" and does not change the load balancer; use "*", or remove the annotation`),
	invalid(awsAll, "", proxyUnknown, `the cloud refuses ""`),
	both(awsPorts, "80,443", proxyOn, v2),
	only80(awsPorts, " 80 ", v2),
	only80(awsPorts, "80,", v2),
	invalid(awsPorts, "0,80", proxyUnknown, `the cloud refuses "0,80"`),
	both(awsPorts, " , ", proxyOff, ""),
	both(awsPorts, "8443", proxyOff, ""),
	both(awsPorts, "", proxyOff, ""),
	invalid(awsPorts, "*", proxyUnknown, `the cloud refuses "*"`),
	invalid(awsPorts, "http", proxyUnknown, `use ports of the Service, such as "80,443"`),
	only80(awsAttributes+".80", "proxy_protocol_v2.enabled=true", v2),
	both(awsAttributes+".80", "proxy_protocol_v2.enabled=false", proxyOff, ""),
	both(awsAttributes, "deregistration_delay.timeout_seconds=120, proxy_protocol_v2.enabled=true", proxyOn, v2),
	both(awsAttributes, "proxy_protocol_v2.enabled=false", proxyOff, ""),
	both(awsAttributes, "proxy_protocol_v2.enabled=", proxyOff, ""),
	both(awsAttributes, "proxy_protocol_v2.enabled = true , a=b", proxyOn, v2),
	both(awsAttributes, "preserve_client_ip.enabled=true", proxyOff, ""),
	invalid(awsAttributes, "proxy_protocol_v2.enabled=*", proxyUnknown, `the cloud refuses "proxy_protocol_v2.enabled=*"`),
	both(digital, "true", proxyOn, v1),
	both(digital, "false", proxyOff, ""),
	invalid(digital, "v2", proxyUnknown, `the cloud refuses "v2" and does not change the load balancer; use "true", "1", "false" or "0"`),
	both(scalewayV2, "*", proxyOn, v2),
	both(scalewayV2, "true", proxyOn, v2),
	only80(scalewayV2, "80", v2),
	both(scalewayV2, "false", proxyOff, ""),
	invalid(scalewayV2, "yes", proxyUnknown, `the cloud refuses "yes" and does not change the load balancer; use "true", "*", "false", "" or ports of the Service`),
	both(scalewayV2, "", proxyOff, ""),
	both(scalewayV1, "80,443", proxyOn, v1),
	both(scalewayV1, "false", proxyOff, ""),
	both(scaleOld, "1", proxyOn, v2), // not the port 1
	only80(scaleOld, "80", v2),
	both(scaleOld, "false", proxyOff, ""),
	invalid(scaleOld, "*", proxyUnknown, `the cloud refuses "*"`),
	both(hetzner, "true", proxyOn, ""),
	both(hetzner, "false", proxyOff, ""),
	invalid(hetzner, "yes", proxyUnknown, `the cloud refuses "yes"`),
	only80(linode+"port-80", `{"protocol": "tcp", "proxy-protocol": "V2"}`, v2),
	both(linode+"port-80", `{"proxy-protocol": "none"}`, proxyOff, ""),
	both(linode+"port-80", `{"protocol": "tcp"}`, proxyOff, ""),
	both(linode+"port-80", `{"proxy-protocol": ""}`, proxyOff, ""),
	{key: linode + "port-80", value: `v2`, http: proxyUnknown, https: proxyOff, problem: `"v2" is not a JSON object`},
	{key: linode + "port-80", value: `{"proxy-protocol": 2}`, http: proxyUnknown, https: proxyOff, problem: `the cloud refuses "2"`},
	both(linode+"default-proxy-protocol", "v1", proxyOn, v1),
	both(linode+"default-proxy-protocol", "None", proxyOff, ""),
	invalid(linode+"default-proxy-protocol", "true", proxyUnknown, `use "v1", "v2" or "none"`),
	both(linode+"proxy-protocol", "v2", proxyOn, v2),
	both(linode+"proxy-protocol", "none", proxyOff, ""),
	both(openstack, "true", proxyOn, v1),
	both(openstack, "v2", proxyOn, v2),
	both(openstack, "false", proxyOff, ""),
	invalid(openstack, "TRUE", proxyOff, `the cloud treats "TRUE" as off; use "true", "v1", "v2" or "false"`),
	both(ovh, "v1", proxyOn, v1),
	both(ovh, "v2-ssl-cn", proxyOn, v2),
	invalid(ovh, "true", proxyUnknown, `the cloud does not document "true"`),
	both(ociLB, "1", proxyOn, v1),
	both(ociLB, "2", proxyOn, v2),
	invalid(ociLB, "v2", proxyUnknown, `the cloud refuses "v2" and does not change the load balancer; use "1" or "2"`),
	invalid(ociLB, "", proxyUnknown, `the cloud refuses ""`),
	both(ociNLB, "true", proxyOn, v2),
	both(ociNLB, "True", proxyOn, v2),
	both(ociNLB, "false", proxyOff, ""),
	invalid(ociNLB, "1", proxyUnknown, `the cloud refuses "1" and does not change the load balancer; use "true" or "false"`),
	invalid(ociNLB, "", proxyUnknown, `the cloud refuses ""`),
	both(vultr, "true", proxyOn, ""),
	both(vultr, "false", proxyOff, ""),
	invalid(vultr, "v2", proxyOff, `the cloud treats "v2" as off; use "true", "1", "false" or "0"`),
	both(civo, "send-proxy", proxyOn, v1),
	both(civo, "send-proxy-v2", proxyOn, v2),
	invalid(civo, "", proxyUnknown, `the cloud does not document ""; use "send-proxy" or "send-proxy-v2"`),
	invalid(civo, "true", proxyUnknown, `the cloud does not document "true"`),
	both(upcloud, upcloudTCP+`"backends": [{"name": "http", "properties": {"outbound_proxy_protocol": "v2"}}, {"name": "https", "properties": {"outbound_proxy_protocol": "v2"}}]}`, proxyOn, v2),
	only80(upcloud, upcloudTCP+`"backends": [{"name": "http", "properties": {"outbound_proxy_protocol": "v1"}}, {"name": "https"}]}`, v1),
	both(upcloud, `{"backends": [{"name": "http", "properties": {"outbound_proxy_protocol": ""}}]}`, proxyOff, ""),
	both(upcloud, `{"frontends": [{"name": "http", "mode": "tcp"}]}`, proxyOff, ""),
	invalid(upcloud, `{`, proxyUnknown, "not the JSON of an UpCloud load balancer"),
	both(outscale, "*", proxyOn, ""),
	{key: outscale, value: "30080", http: proxyUnknown, https: proxyOff, problem: "follows the list only when"},
	both(outscale, "80", proxyOff, ""),
	invalid(outscale, "http", proxyUnknown, `use "*" or nodePorts of the Service, such as "30080,30443"`),
	both(ibm, "Proxy-Protocol, other", proxyOn, v1),
	invalid(ibm, "nlb, proxy-protocol", proxyUnknown, `the cloud refuses "nlb, proxy-protocol" and does not change the load balancer; use "proxy-protocol" without "nlb"`),
	both(ibm, "nlb", proxyOff, ""),
	both(alibaba, "on", proxyOn, v2),
	both(alibaba, "off", proxyOff, ""),
	invalid(alibaba, "true", proxyOff, `the cloud treats "true" as off; use "on" or "off"`),
	invalid(alibaba, "ON", proxyUnknown, `releases of the cloud's controller differ in what "ON" means`),
	both(alicloud, "on", proxyOn, v2),
	both(alicloud, "off", proxyOff, ""),
	both(volc, "standard", proxyOn, ""),
	both(volc, "off", proxyOff, ""),
	invalid(volc, "on", proxyUnknown, `the cloud does not document "on"; use "standard" or "off"`),
	both(stackit, "true", proxyOn, v2),
	both(stackit, "false", proxyOff, ""),
	invalid(stackit, "v2", proxyUnknown, `the cloud refuses "v2"`),
	both(yawol, "true", proxyOn, v2),
	both(yawol, "false", proxyOff, ""),
	invalid(yawol, "v2", proxyOff, `the cloud treats "v2" as off`),
	both(cloudsc, "proxy", proxyOn, v1),
	both(cloudsc, "proxyv2", proxyOn, v2),
	both(cloudsc, "tcp", proxyOff, ""),
	invalid(cloudsc, "v2", proxyUnknown, `use "proxy", "proxyv2" or "tcp"`),
	both(cloudst, "true", proxyOn, v1),
	invalid(cloudst, "false", proxyUnknown, `releases of the cloud's controller differ in what "false" means; use "true", or remove the annotation`),
	both(bright, "v1", proxyOn, v1),
	both(bright, "v2-ssl", proxyOn, v2),
	both(bright, "v2", proxyOn, v2),
	invalid(bright, "V2", proxyUnknown, `the cloud refuses "V2"`),
	invalid(bright, "true", proxyUnknown, `the cloud refuses "true"`),
	both(naver, "true", proxyOn, ""),
	both(naver, "false", proxyOff, ""),
	invalid(naver, "v2", proxyUnknown, `the cloud does not document "v2"; use "true" or "false"`),
	both(thalassa, "1", proxyOn, v1),
	both(thalassa, "false", proxyOff, ""),
	invalid(thalassa, "v1", proxyOff, `the cloud treats "v1" as off`),
	both(bizfly, "true", proxyOn, v1),
	both(bizfly, "false", proxyOff, ""),
	invalid(bizfly, "True", proxyOff, `the cloud treats "True" as off; use "true" or "false"`),
	both(loxilb, "yes", proxyOn, v2),
	both(loxilb, "no", proxyOff, ""),
	invalid(loxilb, "true", proxyOff, `the cloud treats "true" as off; use "yes" or "no"`),
	both(azure, "true", proxyOn, v2),
	both(azure, "false", proxyOff, ""),
	invalid(azure, "v2", proxyOff, `the cloud treats "v2" as off`),
}

func TestValuesOfAnnotations(t *testing.T) {
	for _, c := range valueCases {
		t.Run(c.key+"="+c.value, func(t *testing.T) {
			checkIntent(t, c, readIntent(withValue(c.key, c.value)))
		})
	}
}

func checkIntent(t *testing.T, c valueCase, got serviceIntent) {
	t.Helper()
	if len(got.ports) != 2 || got.otherPorts.State != proxyOff {
		t.Errorf("listeners %v, others %v; want 8080 and 8443, and no headers anywhere else", got.ports, got.otherPorts)
	}
	for port, want := range map[int]proxyState{8080: c.http, 8443: c.https} {
		intent := got.ports[port]
		if intent.State != want {
			t.Errorf("listener %d: state %q, want %q", port, intent.State, want)
		}
		if want == proxyOn && intent.Version != c.version {
			t.Errorf("listener %d: the load balancer sends %q, want %q", port, intent.Version, c.version)
		}
	}
	wantProblem(t, got, c.problem)
	for _, p := range got.problems {
		if !strings.HasPrefix(p.Where, "Kubernetes Service consul/edge") {
			t.Errorf("the problem is at %q, which names no Service", p.Where)
		}
	}
}

// notVerified are the annotations whose values could not be read in a page or source
// code of the provider.
var notVerified []string

// An annotation without a case would be untested.
func TestEveryAnnotationIsTestedOnAndOff(t *testing.T) {
	for _, p := range Providers {
		if p.URL == "" || p.Name == "" || len(p.Annotations) == 0 {
			t.Errorf("%+v: a provider needs a name, a URL and annotations", p)
		}
		for _, a := range p.Annotations {
			on, notOn := false, false
			for _, c := range valueCases {
				if c.key == a.keyFor(80) {
					on = on || c.http == proxyOn
					notOn = notOn || c.http != proxyOn
				}
			}
			if !on || !notOn {
				t.Errorf("%s: on %v, not on %v", a.Key, on, notOn)
			}
			if p.Evidence == "" && !slices.Contains(notVerified, a.Key) {
				t.Errorf("%s: the table does not say where its values were read", a.Key)
			}
		}
	}
}

func TestAnnotationsThatDependOnOthers(t *testing.T) {
	type annotations = map[string]string
	for name, c := range map[string]struct {
		annotations
		valueCase
	}{
		"nothing":                      {annotations{}, both("", "", proxyOff, "")},
		"an unknown annotation":        {annotations{"service.beta.kubernetes.io/my-proxy-protocol": "true"}, both("", "", proxyOff, "")},
		"AWS, all before some":         {annotations{awsAll: "*", awsPorts: "80", awsAttributes: awsPPV2 + "=false"}, both("", "", proxyOn, "")},
		"AWS, some before attribute":   {annotations{awsPorts: "80", awsAttributes: awsPPV2 + "=true"}, only80("", "", v2)},
		"AWS, port before attribute":   {annotations{awsAttributes + ".443": awsPPV2 + "=false", awsAttributes: awsPPV2 + "=true"}, only80("", "", v2)},
		"Scaleway, one of each":        {annotations{scalewayV2: "80", scalewayV1: "443"}, valueCase{http: proxyOn, https: proxyOn, version: ""}},
		"AWS, a port without a value":  {annotations{awsAttributes + ".443": awsPPV2 + "=", awsAttributes: awsPPV2 + "=true"}, both("", "", proxyOn, v2)},
		"Scaleway, none of version 2":  {annotations{scalewayV2: "false", scalewayV1: "true"}, both("", "", proxyOn, v1)},
		"Scaleway, new before old":     {annotations{scalewayV1: "*", scaleOld: "true"}, both("", "", proxyOn, v1)},
		"Linode, a port without value": {annotations{linode + "port-443": `{"proxy-protocol": ""}`, linode + "default-proxy-protocol": "v2"}, both("", "", proxyOn, v2)},
		"Alibaba, new before old":      {annotations{alibaba: "off", alicloud: "on"}, both("", "", proxyOff, "")},
		"STACKIT, an empty list":       {annotations{stackit: "true", stackit + "-ports-filter": ""}, both("", "", proxyOff, "")},
		"Linode, port before all":      {annotations{linode + "port-443": `{"proxy-protocol": "none"}`, linode + "default-proxy-protocol": "v2"}, only80("", "", v2)},
		"Linode, new before old":       {annotations{linode + "default-proxy-protocol": "none", linode + "proxy-protocol": "v2"}, both("", "", proxyOff, "")},
		"STACKIT, some ports":          {annotations{stackit: "true", stackit + "-ports-filter": "80"}, only80("", "", v2)},
		"STACKIT, no ports":            {annotations{stackit: "true", stackit + "-ports-filter": "http"}, invalid("", "", proxyUnknown, `"http" is not a list of ports`)},
		"two clouds agree":             {annotations{hetzner: "true", openstack: "v2"}, both("", "", proxyOn, "")},
		"two clouds, two versions":     {annotations{digital: "true", openstack: "v2"}, both("", "", proxyOn, "")},
		"two clouds, first invalid":    {annotations{digital: "v2", openstack: "true"}, invalid("", "", proxyUnknown, `the cloud refuses "v2"`)},
		"two clouds, second invalid":   {annotations{openstack: "true", civo: "true"}, invalid("", "", proxyUnknown, `the cloud does not document "true"`)},
		"two clouds disagree":          {annotations{hetzner: "true", openstack: "false"}, invalid("", "", proxyUnknown, "it contradicts load-balancer.hetzner.cloud/uses-proxyprotocol")},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "Scaleway, one of each" {
				got := readIntent(balanced(c.annotations)).ports
				if got[8080].Version != v2 || got[8443].Version != v1 {
					t.Errorf("got %v, want v2 on 8080 and v1 on 8443", got)
				}
				return
			}
			checkIntent(t, c.valueCase, readIntent(honouring(c.annotations)))
		})
	}
}

// FuzzValue checks that any value of any annotation has one of a few meanings.
func FuzzValue(f *testing.F) {
	var annotations []Annotation
	for _, p := range Providers {
		annotations = append(annotations, p.Annotations...)
	}
	for i := range annotations {
		f.Add(i, "true")
	}
	for _, c := range valueCases {
		f.Add(0, c.value)
	}
	f.Fuzz(func(t *testing.T, i int, value string) {
		if i < 0 || i >= len(annotations) {
			return
		}
		intent := readIntent(balanced(map[string]string{annotations[i].keyFor(80): value}))
		for _, ofPort := range intent.ports {
			if ofPort.State != proxyOn && ofPort.State != proxyOff && ofPort.State != proxyUnknown {
				t.Errorf("state %q", ofPort.State)
			}
		}
	})
}

// FuzzService checks that no Service makes Usher panic, and that the result can be
// recorded.
func FuzzService(f *testing.F) {
	seeds := []*corev1.Service{service("true", 0), service("", 0), preservesClients(), {}}
	for _, c := range serviceCases(f) {
		seeds = append(seeds, c.Service(f))
	}
	for _, s := range seeds {
		text, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	for _, text := range []string{
		`{"metadata": {"managedFields": [{"time": "9999-12-31T23:59:59-01:00", "fieldsV1": {"f:spec": null}}, {"fieldsV1": []}, {}]}, "spec": {"ports": [{"port": -1}, {"port": 80, "targetPort": "http"}]}}`,
		`{"metadata": {"creationTimestamp": "0000-01-01T00:00:00+23:59", "annotations": {"service.beta.kubernetes.io/aws-load-balancer-proxy-protocol": "*"}}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 70000}]}}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var s corev1.Service
		if json.Unmarshal([]byte(text), &s) != nil {
			return
		}
		r := newTestReconciler(t)
		r.observeRecorded(60, serviceIs(&s), "")
		if recorded := r.observeRecorded(90, versioned(service("true", 0), 1), encodeState(r.state)); recorded == "" {
			t.Error("nothing can be recorded")
		}
		for _, p := range r.last.Problems {
			if strings.ContainsAny(p.What, "\n") {
				t.Errorf("problem %q", p)
			}
		}
	})
}

// The two Services that the chart creates from the values files of the lab.
func TestValuesFilesOfTheLab(t *testing.T) {
	for file, want := range map[string]proxyState{"consul-values.yaml": proxyOff, "consul-values-ppv2.yaml": proxyOn} {
		var values struct {
			IngressGateways struct {
				Defaults struct {
					Service struct{ Type, Annotations string }
				}
			} `yaml:"ingressGateways"`
		}
		text, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, &values); err != nil {
			t.Fatal(err)
		}
		service := values.IngressGateways.Defaults.Service
		annotations := map[string]string{}
		if err := yaml.Unmarshal([]byte(service.Annotations), &annotations); err != nil || len(annotations) < 3 {
			t.Fatalf("%s: annotations %v, %v", file, annotations, err)
		}
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "consul", Name: "consul-ingress-gateway", Annotations: annotations}}
		s.Spec.Type = corev1.ServiceType(service.Type)
		s.Spec.Ports = []corev1.ServicePort{{Name: "gateway-0", Port: 8080}, {Name: "gateway-1", Port: 8443}}
		got := readIntent(s)
		for _, port := range []int{8080, 8443} {
			if got.ports[port].State != want || len(got.problems) > 0 {
				t.Errorf("%s: listener %d has state %q and problems %v, want %q and none", file, port, got.ports[port].State, got.problems, want)
			}
		}
	}
}
