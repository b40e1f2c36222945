package loadbalancer

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/usherproxy/usher/internal/settings"
)

const prefix = "service.beta.kubernetes.io/"

// balanced is a Service of type LoadBalancer with these annotations and ports
// 80 and 443, which lead to 8080 and 8443.
func balanced(annotations map[string]string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "consul", Name: "edge", Annotations: annotations},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, NodePort: 30080, TargetPort: intstr.FromInt32(8080)},
			{Name: "https", Port: 443, NodePort: 30443, TargetPort: intstr.FromInt32(8443), Protocol: corev1.ProtocolTCP},
			{Name: "quic", Port: 443, TargetPort: intstr.FromInt32(9443), Protocol: corev1.ProtocolUDP},
		}},
	}
}

// says is what a value of an annotation says of ports 80 and 443.
type valueCase struct {
	key, value string
	http, tls  proxyState
	sends      settings.Version
	problem    string // part of the only one; "" if there is none
}

func all(key, value string, s proxyState, sends settings.Version) valueCase {
	return valueCase{key: key, value: value, http: s, tls: s, sends: sends}
}

func bad(key, value string, s proxyState, problem string) valueCase {
	return valueCase{key: key, value: value, http: s, tls: s, problem: problem}
}

// only80 says on of port 80 and nothing of the other.
func only80(key, value string, sends settings.Version) valueCase {
	return valueCase{key: key, value: value, http: proxyOn, tls: proxyOff, sends: sends}
}

const (
	v1, v2 = settings.V1, settings.V2

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
	scaleway  = prefix + "scw-loadbalancer-proxy-protocol-"
	hetzner   = "load-balancer.hetzner.cloud/uses-proxyprotocol"
	linode    = prefix + "linode-loadbalancer-"
	upcloud   = prefix + "upcloud-load-balancer-config"
	naver     = prefix + "ncloud-load-balancer-proxy-protocol"
	thalassa  = "loadbalancer.k8s.thalassa.cloud/enable-proxy-protocol"
	bizfly    = "kubernetes.bizflycloud.vn/enable-proxy-protocol"
	loxilb    = "loxilb.io/useproxyprotov2"
	azure     = prefix + "azure-pls-proxy-protocol"
	awsAll    = awsPrefix + "proxy-protocol"
	awsPorts  = awsPrefix + "proxy-protocol-per-target-group"
)

// annotated are values of every annotation of the table, one at a time.
var valueCases = []valueCase{
	all(awsAll, "*", proxyOn, ""),
	bad(awsAll, "true", proxyUnknown, `"true" is refused, and the balancer stays as it was; use "*", or remove the annotation`),
	bad(awsAll, "", proxyUnknown, `"" is refused`),
	all(awsPorts, "80,443", proxyOn, v2),
	only80(awsPorts, " 80 ", v2),
	only80(awsPorts, "80,", v2),
	bad(awsPorts, "0,80", proxyUnknown, `"0,80" is refused`),
	all(awsPorts, " , ", proxyOff, ""),
	all(awsPorts, "8443", proxyOff, ""),
	all(awsPorts, "", proxyOff, ""),
	bad(awsPorts, "*", proxyUnknown, `"*" is refused`),
	bad(awsPorts, "http", proxyUnknown, `use ports of the Service, such as "80,443"`),
	only80(awsAttributes+".80", "proxy_protocol_v2.enabled=true", v2),
	all(awsAttributes+".80", "proxy_protocol_v2.enabled=false", proxyOff, ""),
	all(awsAttributes, "deregistration_delay.timeout_seconds=120, proxy_protocol_v2.enabled=true", proxyOn, v2),
	all(awsAttributes, "proxy_protocol_v2.enabled=false", proxyOff, ""),
	all(awsAttributes, "proxy_protocol_v2.enabled=", proxyOff, ""),
	all(awsAttributes, "proxy_protocol_v2.enabled = true , a=b", proxyOn, v2),
	all(awsAttributes, "preserve_client_ip.enabled=true", proxyOff, ""),
	bad(awsAttributes, "proxy_protocol_v2.enabled=*", proxyUnknown, `"proxy_protocol_v2.enabled=*" is refused`),
	all(digital, "true", proxyOn, v1),
	all(digital, "false", proxyOff, ""),
	bad(digital, "v2", proxyUnknown, `"v2" is refused, and the balancer stays as it was; use "true" or "false"`),
	all(scaleway+"v2", "*", proxyOn, v2),
	all(scaleway+"v2", "true", proxyOn, v2),
	only80(scaleway+"v2", "80", v2),
	all(scaleway+"v2", "false", proxyOff, ""),
	bad(scaleway+"v2", "yes", proxyUnknown, `"yes" is refused, and the balancer stays as it was; use ports of the Service`),
	all(scaleway+"v2", "", proxyOff, ""),
	all(scaleway+"v1", "80,443", proxyOn, v1),
	all(scaleway+"v1", "false", proxyOff, ""),
	all(scaleOld, "1", proxyOn, v2), // not the port 1
	only80(scaleOld, "80", v2),
	all(scaleOld, "false", proxyOff, ""),
	bad(scaleOld, "*", proxyUnknown, `"*" is refused`),
	all(hetzner, "true", proxyOn, ""),
	all(hetzner, "false", proxyOff, ""),
	bad(hetzner, "yes", proxyUnknown, `"yes" is refused`),
	only80(linode+"port-80", `{"protocol": "tcp", "proxy-protocol": "V2"}`, v2),
	all(linode+"port-80", `{"proxy-protocol": "none"}`, proxyOff, ""),
	all(linode+"port-80", `{"protocol": "tcp"}`, proxyOff, ""),
	all(linode+"port-80", `{"proxy-protocol": ""}`, proxyOff, ""),
	{key: linode + "port-80", value: `v2`, http: proxyUnknown, tls: proxyOff, problem: `"v2" is not a JSON object`},
	{key: linode + "port-80", value: `{"proxy-protocol": 2}`, http: proxyUnknown, tls: proxyOff, problem: `"2" is refused`},
	all(linode+"default-proxy-protocol", "v1", proxyOn, v1),
	all(linode+"default-proxy-protocol", "None", proxyOff, ""),
	bad(linode+"default-proxy-protocol", "true", proxyUnknown, `use "v1", "v2", "none"`),
	all(linode+"proxy-protocol", "v2", proxyOn, v2),
	all(linode+"proxy-protocol", "none", proxyOff, ""),
	all(openstack, "true", proxyOn, v1),
	all(openstack, "v2", proxyOn, v2),
	all(openstack, "false", proxyOff, ""),
	bad(openstack, "TRUE", proxyOff, `"TRUE" counts as off; use "true", "v1", "v2", "false"`),
	all(ovh, "v1", proxyOn, v1),
	all(ovh, "v2-ssl-cn", proxyOn, v2),
	bad(ovh, "true", proxyUnknown, `"true" is in no documentation`),
	all(ociLB, "1", proxyOn, v1),
	all(ociLB, "2", proxyOn, v2),
	bad(ociLB, "v2", proxyUnknown, `"v2" is refused, and the balancer stays as it was; use "1", "2"`),
	bad(ociLB, "", proxyUnknown, `"" is refused`),
	all(ociNLB, "true", proxyOn, v2),
	all(ociNLB, "True", proxyOn, v2),
	all(ociNLB, "false", proxyOff, ""),
	bad(ociNLB, "1", proxyUnknown, `"1" is refused, and the balancer stays as it was; use "true", "false"`),
	bad(ociNLB, "", proxyUnknown, `"" is refused`),
	all(vultr, "true", proxyOn, ""),
	all(vultr, "false", proxyOff, ""),
	bad(vultr, "v2", proxyOff, `"v2" counts as off; use "true" or "false"`),
	all(civo, "send-proxy", proxyOn, v1),
	all(civo, "send-proxy-v2", proxyOn, v2),
	bad(civo, "", proxyUnknown, `"" is in no documentation; use "send-proxy", "send-proxy-v2"`),
	bad(civo, "true", proxyUnknown, `"true" is in no documentation`),
	all(upcloud, `{"backends": [{"name": "http", "properties": {"outbound_proxy_protocol": "v2"}}, {"name": "https", "properties": {"outbound_proxy_protocol": "v2"}}]}`, proxyOn, v2),
	only80(upcloud, `{"backends": [{"name": "http", "properties": {"outbound_proxy_protocol": "v1"}}, {"name": "https"}]}`, v1),
	all(upcloud, `{"backends": [{"name": "http", "properties": {"outbound_proxy_protocol": ""}}]}`, proxyOff, ""),
	all(upcloud, `{"frontends": [{"name": "http", "mode": "tcp"}]}`, proxyOff, ""),
	bad(upcloud, `{`, proxyUnknown, "this is not the JSON of a load balancer"),
	all(outscale, "*", proxyOn, ""),
	only80(outscale, "30080", ""),
	all(outscale, "80", proxyOff, ""),
	bad(outscale, "http", proxyUnknown, `use nodePorts of the Service, such as "30080,30443", or "*"`),
	all(ibm, "Proxy-Protocol, other", proxyOn, v1),
	bad(ibm, "nlb, proxy-protocol", proxyUnknown, `is refused, and the balancer stays as it was; use "proxy-protocol" without "nlb"`),
	all(ibm, "nlb", proxyOff, ""),
	all(alibaba, "on", proxyOn, v2),
	all(alibaba, "off", proxyOff, ""),
	bad(alibaba, "true", proxyOff, `"true" counts as off; use "on", "off"`),
	bad(alibaba, "ON", proxyUnknown, `"ON" depends on the release of the controller`),
	all(alicloud, "on", proxyOn, v2),
	all(alicloud, "off", proxyOff, ""),
	all(volc, "standard", proxyOn, ""),
	all(volc, "off", proxyOff, ""),
	bad(volc, "on", proxyUnknown, `"on" is in no documentation; use "standard", "off"`),
	all(stackit, "true", proxyOn, v2),
	all(stackit, "false", proxyOff, ""),
	bad(stackit, "v2", proxyUnknown, `"v2" is refused`),
	all(yawol, "true", proxyOn, v2),
	all(yawol, "false", proxyOff, ""),
	bad(yawol, "v2", proxyOff, `"v2" counts as off`),
	all(cloudsc, "proxy", proxyOn, v1),
	all(cloudsc, "proxyv2", proxyOn, v2),
	all(cloudsc, "tcp", proxyOff, ""),
	bad(cloudsc, "v2", proxyUnknown, `use "proxy", "proxyv2", "tcp"`),
	all(cloudst, "true", proxyOn, v1),
	bad(cloudst, "false", proxyUnknown, `"false" depends on the release of the controller; use "true", or remove the annotation`),
	all(bright, "v1", proxyOn, v1),
	all(bright, "v2-ssl", proxyOn, v2),
	all(bright, "v2", proxyOn, v2),
	bad(bright, "V2", proxyUnknown, `"V2" is refused`),
	bad(bright, "true", proxyUnknown, `"true" is refused`),
	all(naver, "true", proxyOn, ""),
	all(naver, "false", proxyOff, ""),
	bad(naver, "v2", proxyUnknown, `"v2" is in no documentation; use "true", "false"`),
	all(thalassa, "1", proxyOn, v1),
	all(thalassa, "false", proxyOff, ""),
	bad(thalassa, "v1", proxyOff, `"v1" counts as off`),
	all(bizfly, "true", proxyOn, v1),
	all(bizfly, "false", proxyOff, ""),
	bad(bizfly, "True", proxyOff, `"True" counts as off; use "true", "false"`),
	all(loxilb, "yes", proxyOn, v2),
	all(loxilb, "no", proxyOff, ""),
	bad(loxilb, "true", proxyOff, `"true" counts as off; use "yes", "no"`),
	bad(azure, "true", proxyUnknown, "it counts for a Private Link Service only"),
	all(azure, "false", proxyOff, ""),
	bad(azure, "v2", proxyOff, `"v2" counts as off`),
}

func TestEveryAnnotationIsReadAsItsCloudReadsIt(t *testing.T) {
	for _, c := range valueCases {
		t.Run(c.key+"="+c.value, func(t *testing.T) {
			check(t, c, balanced(map[string]string{c.key: c.value}))
		})
	}
}

func check(t *testing.T, c valueCase, s *corev1.Service) {
	t.Helper()
	checkTold(t, c, readIntent(s))
}

func checkTold(t *testing.T, c valueCase, got serviceIntent) {
	t.Helper()
	if len(got.listeners) != 2 || got.others.state != proxyOff {
		t.Errorf("listeners %v, others %v; want 8080 and 8443, and no headers anywhere else", got.listeners, got.others)
	}
	for port, want := range map[int]proxyState{8080: c.http, 8443: c.tls} {
		of := got.listeners[port]
		if of.state != want {
			t.Errorf("listener %d: signal %d, want %d", port, of.state, want)
		}
		if want == proxyOn && of.version != c.sends {
			t.Errorf("listener %d: the balancer sends %q, want %q", port, of.version, c.sends)
		}
	}
	switch {
	case c.problem == "" && len(got.problems) > 0:
		t.Errorf("problems %v, want none", got.problems)
	case c.problem != "" && (len(got.problems) != 1 || !strings.Contains(got.problems[0].String(), c.problem)):
		t.Errorf("problems %v, want one that says %s", got.problems, c.problem)
	}
	for _, p := range got.problems {
		if !strings.HasPrefix(p.Where, "Kubernetes Service consul/edge") {
			t.Errorf("the problem is at %q, which names no Service", p.Where)
		}
	}
}

// notSeen are the keys of rows that stand in no page or code of the provider's
// that could be had.
var notSeen []string

// A row that is in no case would be a row that nobody has tried.
func TestEveryRowOfTheTableIsTriedOnAndOff(t *testing.T) {
	for _, a := range Annotations {
		var onToo, notOn bool
		for _, c := range valueCases {
			if c.key == a.keyFor(80) {
				onToo = onToo || c.http == proxyOn
				notOn = notOn || c.http != proxyOn
			}
		}
		if a.Key == azure { // on needs a second annotation
			onToo = true
		}
		if !onToo || !notOn {
			t.Errorf("%s: on %v, not on %v", a.Key, onToo, notOn)
		}
		if a.Source == "" || a.form == nil || a.Provider == "" {
			t.Errorf("%s: a row needs a provider, a form and a source", a.Key)
		}
		if a.Evidence == NotVerified && !slices.Contains(notSeen, a.Key) {
			t.Errorf("%s: it is not said where its values were read", a.Key)
		}
	}
}

func TestAnnotationsThatDependOnOthers(t *testing.T) {
	type annotations = map[string]string
	for name, c := range map[string]struct {
		annotations
		valueCase
	}{
		"nothing":                       {annotations{}, all("", "", proxyOff, "")},
		"a key that nobody reads":       {annotations{"service.beta.kubernetes.io/my-proxy-protocol": "true"}, all("", "", proxyOff, "")},
		"AWS, all before some":          {annotations{awsAll: "*", awsPorts: "80", awsAttributes: awsPPV2 + "=false"}, all("", "", proxyOn, "")},
		"AWS, some before attribute":    {annotations{awsPorts: "80", awsAttributes: awsPPV2 + "=true"}, only80("", "", v2)},
		"AWS, port before attribute":    {annotations{awsAttributes + ".443": awsPPV2 + "=false", awsAttributes: awsPPV2 + "=true"}, only80("", "", v2)},
		"AWS, in-tree NLB":              {annotations{awsAll: "*", awsType: "nlb"}, bad("", "", proxyUnknown, `does not read it; use service.beta.kubernetes.io/aws-load-balancer-type: external`)},
		"AWS, external":                 {annotations{awsAll: "*", awsType: "external"}, all("", "", proxyOn, "")},
		"Scaleway, one of each":         {annotations{scaleway + "v2": "80", scaleway + "v1": "443"}, valueCase{http: proxyOn, tls: proxyOn, sends: ""}},
		"AWS, a port without a word":    {annotations{awsAttributes + ".443": awsPPV2 + "=", awsAttributes: awsPPV2 + "=true"}, all("", "", proxyOn, v2)},
		"Scaleway, none of version 2":   {annotations{scaleway + "v2": "false", scaleway + "v1": "true"}, all("", "", proxyOn, v1)},
		"Scaleway, both on a port":      {annotations{scaleway + "v2": "*", scaleway + "v1": "80"}, bad("", "", proxyUnknown, "port 80 is in service.beta.kubernetes.io/scw-loadbalancer-proxy-protocol-v1 as well, and Scaleway refuses both")},
		"Scaleway, new before old":      {annotations{scaleway + "v1": "*", scaleOld: "true"}, all("", "", proxyOn, v1)},
		"Linode, a port without a word": {annotations{linode + "port-443": `{"proxy-protocol": ""}`, linode + "default-proxy-protocol": "v2"}, all("", "", proxyOn, v2)},
		"Alibaba, new before old":       {annotations{alibaba: "off", alicloud: "on"}, all("", "", proxyOff, "")},
		"STACKIT, an empty list":        {annotations{stackit: "true", stackit + "-ports-filter": ""}, all("", "", proxyOff, "")},
		"Linode, port before all":       {annotations{linode + "port-443": `{"proxy-protocol": "none"}`, linode + "default-proxy-protocol": "v2"}, only80("", "", v2)},
		"Linode, new before old":        {annotations{linode + "default-proxy-protocol": "none", linode + "proxy-protocol": "v2"}, all("", "", proxyOff, "")},
		"STACKIT, some ports":           {annotations{stackit: "true", stackit + "-ports-filter": "80"}, only80("", "", v2)},
		"STACKIT, no ports":             {annotations{stackit: "true", stackit + "-ports-filter": "http"}, bad("", "", proxyUnknown, `"http" is no list of ports`)},
		"Azure":                         {annotations{azure: "True", prefix + "azure-pls-create": "true"}, all("", "", proxyOn, v2)},
		"two clouds agree":              {annotations{hetzner: "true", openstack: "v2"}, all("", "", proxyOn, "")},
		"two clouds, two versions":      {annotations{digital: "true", openstack: "v2"}, all("", "", proxyOn, "")},
		"two clouds, first unclear":     {annotations{digital: "v2", openstack: "true"}, bad("", "", proxyUnknown, `"v2" is refused`)},
		"two clouds, second unclear":    {annotations{openstack: "true", ovh: "true"}, bad("", "", proxyUnknown, `"true" is in no documentation`)},
		"two clouds do not":             {annotations{hetzner: "true", openstack: "false"}, bad("", "", proxyUnknown, "it contradicts load-balancer.hetzner.cloud/uses-proxyprotocol")},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "Scaleway, one of each" {
				got := readIntent(balanced(c.annotations)).listeners
				if got[8080].version != v2 || got[8443].version != v1 {
					t.Errorf("got %v, want v2 on 8080 and v1 on 8443", got)
				}
				return
			}
			check(t, c.valueCase, balanced(c.annotations))
		})
	}
	s := balanced(annotations{awsAll: "*", awsType: "nlb"})
	for _, class := range []string{awsClass, "eks.amazonaws.com/nlb"} {
		s.Spec.LoadBalancerClass = &class
		check(t, all("", "", proxyOn, ""), s)
	}
}

// Whatever stands in an annotation, the answer is one of a few, and a problem is
// one line.
func FuzzRead(f *testing.F) {
	for i := range Annotations {
		f.Add(i, "true")
	}
	for _, c := range valueCases {
		f.Add(0, c.value)
	}
	f.Fuzz(func(t *testing.T, row int, value string) {
		if row < 0 || row >= len(Annotations) {
			return
		}
		for _, of := range readIntent(balanced(map[string]string{Annotations[row].keyFor(80): value})).listeners {
			if of.state != proxyOn && of.state != proxyOff && of.state != proxyUnknown {
				t.Errorf("signal %d", of.state)
			}
		}
	})
}

// FuzzService checks that no Service makes Usher panic, and that the result can be
// noted.
func FuzzService(f *testing.F) {
	for _, s := range []*corev1.Service{service("true", 0), service("", 0), keepsClients(), {}} {
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
		r := newTestReconciler(t, 0)
		r.noting(60, is(&s), "")
		if noted := r.noting(90, versioned(service("true", 0), 1), encodeState(r.state)); noted == "" {
			t.Error("nothing can be noted")
		}
		for _, p := range r.b.Problems {
			if strings.ContainsAny(p.What, "\n") {
				t.Errorf("problem %q", p)
			}
		}
	})
}

// The two Services that the chart makes of the values files of the lab.
func TestTheLabsValuesFiles(t *testing.T) {
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
			if got.listeners[port].state != want || len(got.problems) > 0 {
				t.Errorf("%s: listener %d has signal %d and problems %v, want %d and none", file, port, got.listeners[port].state, got.problems, want)
			}
		}
	}
}
