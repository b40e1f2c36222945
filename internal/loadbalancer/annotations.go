package loadbalancer

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/settings"
)

//go:generate go run ../../tools/balancers-doc ../../docs/load-balancers.md

// Annotation is one row of the table: an annotation with which a cloud's
// balancer is told whether to send PROXY headers. Of several of one provider the
// first counts that says something of a port.
type Annotation struct {
	Provider string
	// Key is the annotation; "<port>" in it stands for a port of the Service.
	Key string
	// Source is where that can be read.
	Source string
	// Seen says where the values of this row were read.
	Evidence Evidence
	// Check is what an operator has to know beside it; "" if nothing.
	Note string

	form form
	// ports is a second annotation: where it is there, the first one counts for the
	// ports in it only. "": the cloud has none such.
	ports string
	// unless gives why the annotation does not count on this Service; "" if it
	// does. nil: it always does.
	unless func(*corev1.Service) string
}

// Seen is where the values of a row were read. The zero value: nowhere that is
// the provider's own.
type Evidence uint8

// Where a row can come from.
const (
	NotVerified Evidence = iota
	InDocs               // in the provider's documentation
	InSource             // in the source of the provider's controller, which says what any other value does, too
)

func (s Evidence) String() string {
	return [...]string{"not verified", "documentation", "source"}[s]
}

// Describe gives what documentation says of the annotation's values.
func (a Annotation) Describe() Description {
	d := a.form.describe()
	if a.ports != "" {
		d.On += fmt.Sprintf("; with `%s: 80,443` on these ports only", a.ports)
	}
	d.PerPort = d.PerPort || a.ports != "" || strings.Contains(a.Key, portInKey)
	return d
}

// portInKey stands for a port of the Service in the name of an annotation.
const portInKey = "<port>"

// keyFor gives the annotation for a port.
func (a Annotation) keyFor(port int32) string {
	return strings.Replace(a.Key, portInKey, strconv.Itoa(int(port)), 1)
}

// The annotations of AWS that are named in more places than the table.
const (
	awsPrefix           = "service.beta.kubernetes.io/aws-load-balancer-"
	awsAttributes       = awsPrefix + "target-group-attributes"
	awsType             = awsPrefix + "type"
	awsTargetType       = awsPrefix + "nlb-target-type"
	awsPPV2             = "proxy_protocol_v2.enabled"
	awsPreserveClientIP = "preserve_client_ip.enabled"
	awsClass            = "service.k8s.aws/nlb"
	aws                 = "AWS"
	awsSource           = "https://github.com/kubernetes-sigs/aws-load-balancer-controller/blob/main/pkg/service/model_build_target_group.go"
)

// inTreeNLB: the controller that is built into Kubernetes makes a network load
// balancer for the type "nlb", and reads this annotation for classic ones only. It
// leaves Services with a class to others.
func inTreeNLB(s *corev1.Service) string {
	if s.Annotations[awsType] == "nlb" && s.Spec.LoadBalancerClass == nil {
		return "the controller that makes a balancer of the type \"nlb\" does not read it; use " + awsType + ": external, which the AWS Load Balancer Controller serves, or set usher's proxy_protocol.mode yourself"
	}
	return ""
}

var (
	v1v2 = []word{{"v1", settings.V1}, {"v2", settings.V2}}
	// A classic balancer wants small letters, and a network load balancer does not.
	alibabaWords = words{on: []word{{"on", settings.V2}}, off: []string{"off"}, vague: []string{"ON", "On", "oN"}, other: countsAsOff, kept: true}
	v1v2SSL      = append([]word{{"v2-ssl", settings.V2}, {"v2-ssl-cn", settings.V2}}, v1v2...)
)

// Annotations is the table of what clouds read. What is not in it, nobody reads
// as an annotation: docs/load-balancers.md names clouds that never send a header.
var Annotations = []Annotation{
	{
		Provider: aws, Key: awsPrefix + "proxy-protocol", Source: awsSource, Evidence: InSource,
		form:   words{on: []word{{"*", ""}}, other: refused},
		unless: inTreeNLB,
		Note: "version 2 from a network load balancer (AWS Load Balancer Controller, EKS Auto Mode), version 1 from a classic one (the controller in Kubernetes) and from Outscale, which has a key of its own as well. " +
			"Health checks carry the header, too: on a port that is no listener's they have to be TCP",
	},
	{
		Provider: aws, Key: awsPrefix + "proxy-protocol-per-target-group", Source: awsSource, Evidence: InSource,
		form: portList{sends: settings.V2, closed: true, other: refused},
		Note: "ports that are not in the list are off",
	},
	{
		Provider: aws, Key: awsAttributes + ".<port>", Source: awsSource, Evidence: InSource,
		form: attribute{name: awsPPV2, sends: settings.V2, other: refused},
	},
	{
		Provider: aws, Key: awsAttributes, Source: awsSource, Evidence: InSource,
		form: attribute{name: awsPPV2, sends: settings.V2, other: refused},
		Note: "with `preserve_client_ip.enabled=true` connections come from the clients' own addresses, and no `trusted_cidrs` can name them",
	},
	{
		Provider: "Outscale", Key: "service.beta.kubernetes.io/osc-load-balancer-proxy-protocol",
		Source: "https://github.com/outscale/cloud-provider-osc/blob/main/docs/annotations.md", Evidence: InSource,
		form: portList{all: []string{"*"}, nodes: true, other: versionDependent},
		Note: "older controllers know AWS's annotation only, which newer ones read as this one",
	},
	{
		Provider: "DigitalOcean", Key: "service.beta.kubernetes.io/do-loadbalancer-enable-proxy-protocol",
		Source: "https://github.com/digitalocean/digitalocean-cloud-controller-manager/blob/master/cloud-controller-manager/do/loadbalancers.go", Evidence: InSource,
		form: boolean{sends: settings.V1, other: refused},
		Note: "health checks of a port of the Service (`do-loadbalancer-override-health-check`) carry the header as well; others go to kube-proxy, without it. Clients in the cluster bypass the balancer unless `do-loadbalancer-hostname` is set",
	},
	{
		Provider: "Scaleway", Key: "service.beta.kubernetes.io/scw-loadbalancer-proxy-protocol-v2",
		Source: "https://github.com/scaleway/scaleway-cloud-controller-manager/blob/master/scaleway/loadbalancers_annotations.go", Evidence: InSource,
		form:   portList{all: []string{"true", "*"}, none: []string{"false", ""}, sends: settings.V2, other: refused},
		unless: bothOfScaleway,
		Note:   "a port that the next one names as well is refused. Clients in the cluster bypass the balancer unless all ports have it, or `scw-loadbalancer-use-hostname` is set",
	},
	{
		Provider: "Scaleway", Key: "service.beta.kubernetes.io/scw-loadbalancer-proxy-protocol-v1",
		Source: "https://github.com/scaleway/scaleway-cloud-controller-manager/blob/master/scaleway/loadbalancers_annotations.go", Evidence: InSource,
		form: portList{all: []string{"true", "*"}, none: []string{"false", ""}, sends: settings.V1, other: refused},
	},
	{
		Provider: "Scaleway", Key: "service.beta.kubernetes.io/scw-loadbalancer-send-proxy-v2",
		Source: "https://github.com/scaleway/scaleway-cloud-controller-manager/blob/master/scaleway/loadbalancers_annotations.go", Evidence: InSource,
		form: portList{all: []string{"true", "1"}, none: []string{"false", "0"}, sends: settings.V2, other: refused},
		Note: "the older name of the version 2",
	},
	{
		Provider: "Hetzner", Key: "load-balancer.hetzner.cloud/uses-proxyprotocol",
		Source: "https://github.com/hetznercloud/hcloud-cloud-controller-manager/blob/main/internal/annotation/load_balancer.go", Evidence: InSource,
		form: boolean{other: refused},
		Note: "the controller can be told to do so for every Service (`HCLOUD_LOAD_BALANCERS_USES_PROXYPROTOCOL`): say it on the Service as well. " +
			"Which version it sends, and whether HTTP health checks carry a header, is in none of its pages that were read: use TCP checks",
	},
	{
		Provider: "Linode", Key: "service.beta.kubernetes.io/linode-loadbalancer-port-<port>",
		Source: "https://github.com/linode/linode-cloud-controller-manager/blob/main/cloud/linode/loadbalancers.go", Evidence: InSource,
		form: member{key: "proxy-protocol", words: words{on: v1v2, off: []string{"none"}, fold: true, other: refused}},
	},
	{
		Provider: "Linode", Key: "service.beta.kubernetes.io/linode-loadbalancer-default-proxy-protocol",
		Source: "https://github.com/linode/linode-cloud-controller-manager/blob/main/cloud/linode/loadbalancers.go", Evidence: InSource,
		form: words{on: v1v2, off: []string{"none"}, fold: true, other: refused},
		Note: "whether HTTP health checks carry a header is in none of its pages that were read: use `connection`",
	},
	{
		Provider: "Linode", Key: "service.beta.kubernetes.io/linode-loadbalancer-proxy-protocol",
		Source: "https://github.com/linode/linode-cloud-controller-manager/blob/main/cloud/linode/loadbalancers.go", Evidence: InSource,
		form: words{on: v1v2, off: []string{"none"}, fold: true, other: refused},
		Note: "the older name of the one before",
	},
	{
		Provider: "OpenStack (Infomaniak, OVH's newer balancers, Selectel, SysEleven, VK, …)", Key: "loadbalancer.openstack.org/proxy-protocol",
		Source: "https://github.com/kubernetes/cloud-provider-openstack/blob/master/pkg/openstack/loadbalancer.go", Evidence: InSource,
		form: words{on: append([]word{{"true", settings.V1}}, v1v2...), off: []string{"false"}, other: countsAsOff},
		Note: "clients in the cluster go through the balancer where the controller sets `ipMode: Proxy`, as newer ones do",
	},
	{
		Provider: "OVH (older balancers)", Key: "service.beta.kubernetes.io/ovh-loadbalancer-proxy-protocol",
		Source: "https://help.ovhcloud.com/csm/en-public-cloud-kubernetes-get-source-ip-behind-loadbalancer", Evidence: InDocs,
		form: words{on: v1v2SSL, other: undocumented},
	},
	{
		Provider: "Oracle (load balancer)", Key: "service.beta.kubernetes.io/oci-load-balancer-connection-proxy-protocol-version",
		Source: "https://github.com/oracle/oci-cloud-controller-manager/blob/master/pkg/cloudprovider/providers/oci/load_balancer_spec.go", Evidence: InSource,
		form: words{on: []word{{"1", settings.V1}, {"2", settings.V2}}, other: refused, kept: true},
		Note: "of TCP listeners. Oracle cannot switch it off: make the balancer anew, or set the mode yourself",
	},
	{
		Provider: "Oracle (network load balancer)", Key: "oci-network-load-balancer.oraclecloud.com/is-ppv2-enabled",
		Source: "https://github.com/oracle/oci-cloud-controller-manager/blob/master/pkg/cloudprovider/providers/oci/load_balancer_spec.go", Evidence: InSource,
		form: words{on: []word{{"true", settings.V2}}, off: []string{"false"}, fold: true, other: refused, kept: true},
	},
	{
		Provider: "Vultr", Key: "service.beta.kubernetes.io/vultr-loadbalancer-proxy-protocol",
		Source: "https://github.com/vultr/vultr-cloud-controller-manager/blob/master/vultr/loadbalancers.go", Evidence: InSource,
		form: boolean{other: countsAsOff},
	},
	{
		Provider: "Civo", Key: "kubernetes.civo.com/loadbalancer-enable-proxy-protocol",
		Source: "https://github.com/civo/civo-cloud-controller-manager/blob/master/cloud-controller-manager/civo/loadbalancer.go", Evidence: InSource,
		form: words{on: []word{{"send-proxy", settings.V1}, {"send-proxy-v2", settings.V2}}, other: undocumented, kept: true},
		Note: "the controller hands the value to Civo's API as it is, and says nothing to it where it is empty",
	},
	{
		Provider: "UpCloud", Key: "service.beta.kubernetes.io/upcloud-load-balancer-config",
		Source: "https://github.com/UpCloudLtd/uks-instructions/blob/main/ingress/README.md", Evidence: InDocs,
		form: backends{words: words{on: v1v2, off: []string{""}, other: undocumented}},
		Note: "a backend has the name of the Service's port, and its frontend the mode `tcp`, without which it is `http`",
	},
	{
		Provider: "IBM Cloud (VPC)", Key: "service.kubernetes.io/ibm-load-balancer-cloud-provider-enable-features",
		Source: "https://github.com/IBM-Cloud/cloud-provider-ibm/tree/master/pkg/vpcctl", Evidence: InSource,
		form: feature{name: "proxy-protocol", never: "nlb", sends: settings.V1},
		Note: "IBM's documentation says that it is read when the balancer is made, and newer controllers follow a change as well. With an older one a change does nothing, and Usher cannot know that: make the Service anew, or set the mode yourself",
	},
	{
		Provider: "Alibaba Cloud", Key: "service.beta.kubernetes.io/alibaba-cloud-loadbalancer-proxy-protocol",
		Source: "https://github.com/kubernetes/cloud-provider-alibaba-cloud/blob/master/pkg/controller/service/nlbv2/listeners.go", Evidence: InSource,
		form: alibabaWords,
		Note: "Alibaba says that a classic balancer cannot be switched while it serves: connections are lost on its side",
	},
	{
		Provider: "Alibaba Cloud", Key: "service.beta.kubernetes.io/alicloud-loadbalancer-proxy-protocol",
		Source: "https://github.com/kubernetes/cloud-provider-alibaba-cloud/blob/master/pkg/controller/service/reconcile/annotation/annotations.go", Evidence: InSource,
		form: alibabaWords,
		Note: "the older name of the one before",
	},
	{
		Provider: "Volcengine", Key: "service.beta.kubernetes.io/volcengine-loadbalancer-proxy-protocol",
		Source: "https://github.com/volcengine/volcengine-cloud-controller-manager/blob/main/docs/usage.md", Evidence: InDocs,
		form: words{on: []word{{"standard", ""}}, off: []string{"off"}, other: undocumented},
	},
	{
		Provider: "STACKIT", Key: "lb.stackit.cloud/tcp-proxy-protocol",
		Source: "https://github.com/stackitcloud/cloud-provider-stackit/blob/main/pkg/ccm/loadbalancer_spec.go", Evidence: InSource,
		form:  boolean{sends: settings.V2, other: refused},
		ports: "lb.stackit.cloud/tcp-proxy-protocol-ports-filter",
	},
	{
		Provider: "STACKIT", Key: "yawol.stackit.cloud/tcpProxyProtocol",
		Source: "https://github.com/stackitcloud/cloud-provider-stackit/blob/main/pkg/ccm/loadbalancer_spec.go", Evidence: InSource,
		form:  boolean{sends: settings.V2, other: countsAsOff},
		ports: "yawol.stackit.cloud/tcpProxyProtocolPortsFilter",
		Note:  "the older name of the one before",
	},
	{
		Provider: "cloudscale.ch", Key: "k8s.cloudscale.ch/loadbalancer-pool-protocol",
		Source: "https://github.com/cloudscale-ch/cloudscale-cloud-controller-manager/blob/main/pkg/cloudscale_ccm/loadbalancer.go", Evidence: InSource,
		form: words{on: []word{{"proxy", settings.V1}, {"proxyv2", settings.V2}}, off: []string{"tcp"}, other: refused},
		Note: "a change makes the balancer's pools anew, and connections are lost on its side meanwhile; the old ones go first, so that a value that cloudscale.ch refuses leaves none",
	},
	{
		Provider: "CloudStack", Key: "service.beta.kubernetes.io/cloudstack-load-balancer-proxy-protocol",
		Source: "https://github.com/apache/cloudstack-kubernetes-provider/blob/main/protocol.go", Evidence: InSource,
		form: words{on: []word{{"true", settings.V1}}, other: versionDependent},
		Note: "older controllers take the mere presence of the annotation, even `false`, for on, and newer ones nothing but `true`: remove it to switch off",
	},
	{
		Provider: "Brightbox", Key: "service.beta.kubernetes.io/brightbox-load-balancer-listener-proxy-protocol",
		Source: "https://github.com/brightbox/brightbox-cloud-controller-manager/blob/master/brightbox/validation.go", Evidence: InSource,
		form: words{on: v1v2SSL, other: refused},
	},
	{
		Provider: "Naver Cloud", Key: "service.beta.kubernetes.io/ncloud-load-balancer-proxy-protocol",
		Source: "https://guide.ncloud-docs.com/docs/en/nks-nks-1-8", Evidence: InDocs,
		form: words{on: []word{{"true", ""}}, off: []string{"false"}, other: undocumented},
		Note: "of balancers with the protocol `tcp` or `ssl`",
	},
	{
		Provider: "Thalassa Cloud", Key: "loadbalancer.k8s.thalassa.cloud/enable-proxy-protocol",
		Source: "https://github.com/thalassa-cloud/cloud-provider-thalassa/blob/main/pkg/provider/loadbalancer_targetgroups.go", Evidence: InSource,
		form: boolean{sends: settings.V1, other: countsAsOff},
	},
	{
		Provider: "Bizfly Cloud", Key: "kubernetes.bizflycloud.vn/enable-proxy-protocol",
		Source: "https://github.com/bizflycloud/bizfly-cloud-controller-manager/blob/master/cloud-controller-manager/bizfly/loadbalancer.go", Evidence: InSource,
		form: words{on: []word{{"true", settings.V1}}, off: []string{"false"}, other: countsAsOff},
		Note: "clients in the cluster bypass the balancer unless `kubernetes.bizflycloud.vn/enable-ingress-hostname` is set",
	},
	{
		Provider: "LoxiLB (kube-loxilb)", Key: "loxilb.io/useproxyprotov2",
		Source: "https://github.com/loxilb-io/kube-loxilb/blob/main/pkg/agent/manager/loadbalancer/loadbalancer.go", Evidence: InSource,
		form: words{on: []word{{"yes", settings.V2}}, off: []string{"no"}, other: countsAsOff},
	},
	{
		Provider: "Azure (Private Link Service)", Key: "service.beta.kubernetes.io/azure-pls-proxy-protocol",
		Source: "https://github.com/kubernetes-sigs/cloud-provider-azure/blob/master/pkg/provider/azure_privatelinkservice.go", Evidence: InSource,
		form:   words{on: []word{{"true", settings.V2}}, off: []string{"false"}, fold: true, other: countsAsOff},
		unless: withoutPLS,
		Note:   "connections that do not come through the Private Link Service have no header, so that only clients of that service may use a strict listener; the public balancer never sends one. TLV `azure_link_id` has the link's id",
	},
}

// bothOfScaleway: its controller refuses a Service that wants both versions on one
// port.
func bothOfScaleway(s *corev1.Service) string {
	const other = "service.beta.kubernetes.io/scw-loadbalancer-proxy-protocol-v1"
	v2 := s.Annotations["service.beta.kubernetes.io/scw-loadbalancer-proxy-protocol-v2"]
	list := portList{all: []string{"true", "*"}, none: []string{"false", ""}}
	for _, p := range s.Spec.Ports {
		if list.read(said{v2, p}).state == proxyOn && list.read(said{s.Annotations[other], p}).state == proxyOn {
			return fmt.Sprintf("port %d is in %s as well, and Scaleway refuses both; remove it from one of them", p.Port, other)
		}
	}
	return ""
}

// withoutPLS: Azure reads the annotation for a Private Link Service only.
func withoutPLS(s *corev1.Service) string {
	if s.Annotations["service.beta.kubernetes.io/azure-pls-create"] != "true" {
		return "it counts for a Private Link Service only; add service.beta.kubernetes.io/azure-pls-create: \"true\", or remove it"
	}
	return ""
}

// Never are those in front of gateways that send no header because of any
// annotation, with what there is instead.
var WithoutAnnotation = []struct{ Name, Instead string }{
	{"Azure's public load balancer", "keeps the client's address by itself with `externalTrafficPolicy: Local`"},
	{"Google Cloud", "passthrough balancers keep the address; a proxy balancer is told with `proxyHeader` of its target proxy, and Private Service Connect with `enableProxyProtocol`: set the mode yourself"},
	{"EdgeCenter", "its controller reads `loadbalancer.edgecenter.com/proxy-protocol` and does nothing with it; should yours do, set the mode yourself"},
	{"Huawei Cloud", "`kubernetes.io/elb.transparent-client-ip` keeps the address, which is not PROXY protocol"},
	{"Yandex Cloud", "keeps the address with `externalTrafficPolicy: Local`"},
	{"MetalLB, kube-vip, k3s, Cilium's LB-IPAM", "announce addresses and send no header; `externalTrafficPolicy: Local` keeps the address"},
	{"your own HAProxy, or any other balancer that no controller made", "no Service tells what it does: set the mode yourself"},
}
