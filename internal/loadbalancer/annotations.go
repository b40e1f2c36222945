package loadbalancer

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/settings"
)

//go:generate go run ../../tools/balancers-doc ../../docs/load-balancers.md

// Provider is a cloud, or another maker of load balancers, with the annotations that it reads. Of its annotations,
// the first that says something about a port counts.
type Provider struct {
	Name        string
	URL         string // where the values of the annotations can be read
	Evidence    string // what is there: InDocumentation, InSourceCode, or nothing of the provider's own
	Annotations []Annotation
	healthCheck healthCheck
}

// Annotation is an annotation that tells a cloud whether its load balancer sends PROXY headers.
type Annotation struct {
	Key string // "<port>" in it stands for a port of the Service
	Format
	// PortsKey is a second annotation. Where a Service has it, the first one counts only for the ports in it. Empty:
	// the cloud has no such annotation.
	PortsKey string
	// check returns why the cloud does not read the annotation on a Service, and what to do; nil if it does. Without a
	// check it always does.
	check func(*corev1.Service) error
	URL   string // if it is not the provider's
}

// Where the values of annotations were read.
const (
	InDocumentation = "documentation"
	InSourceCode    = "source code" // of the provider's controller, which also says what any other value does
)

// keyFor returns the name of the annotation for a port.
func (a Annotation) keyFor(port int32) string {
	return strings.Replace(a.Key, "<port>", strconv.Itoa(int(port)), 1)
}

// Names that are used more than once.
const (
	v1, v2 = settings.V1, settings.V2

	prefix = "service.beta.kubernetes.io/"

	awsPrefix           = prefix + "aws-load-balancer-"
	awsAttributes       = awsPrefix + "target-group-attributes"
	awsType             = awsPrefix + "type"
	awsTargetType       = awsPrefix + "nlb-target-type"
	awsPPV2             = "proxy_protocol_v2.enabled"
	awsPreserveClientIP = "preserve_client_ip.enabled"
	awsClass            = "service.k8s.aws/nlb"

	scaleway   = prefix + "scw-loadbalancer-"
	scalewayV1 = scaleway + "proxy-protocol-v1"
	scalewayV2 = scaleway + "proxy-protocol-v2"

	linode   = prefix + "linode-loadbalancer-"
	ibmCheck = "service.kubernetes.io/ibm-load-balancer-cloud-provider-vpc-health-check-"

	ociURL = "https://github.com/oracle/oci-cloud-controller-manager/blob/master/pkg/cloudprovider/providers/oci/load_balancer_spec.go"
)

// Formats and values that several rows share.
var (
	v1v2    = []Value{{"v1", v1}, {"v2", v2}}
	v1v2SSL = append([]Value{{"v2-ssl", v2}, {"v2-ssl-cn", v2}}, v1v2...)

	linodeWords = Format{On: v1v2, Off: []string{"none"}, IgnoreCase: true, Otherwise: refused}
	// A classic load balancer wants lower case, and a network load balancer takes any.
	alibabaWords = Format{
		On: []Value{{"on", v2}}, Off: []string{"off"}, Otherwise: countsAsOff, PersistsWhenRemoved: true,
		ambiguous: []string{"ON", "On", "oN"},
	}
)

func scalewayPorts(version settings.Version) Format {
	return Format{
		On: []Value{{"true", version}, {"*", version}}, Off: []string{"false", ""}, Otherwise: refused,
		Ports: &PortList{Version: version},
	}
}

// Providers is the table of what clouds read.
var Providers = []Provider{
	{Name: "AWS", Evidence: InSourceCode, Annotations: []Annotation{
		{Key: awsPrefix + "proxy-protocol", check: byInTreeController, Format: Format{
			On: []Value{{Text: "*"}}, Otherwise: refused,
		}},
		{Key: awsPrefix + "proxy-protocol-per-target-group", Format: Format{
			Ports: &PortList{Version: v2, OthersOff: true}, Otherwise: refused,
		}},
		{Key: awsAttributes + ".<port>", Format: attribute(awsPPV2, v2, refused)},
		{Key: awsAttributes, Format: attribute(awsPPV2, v2, refused)},
	}, healthCheck: healthCheck{
		key: awsPrefix + "healthcheck-protocol", tcp: "tcp", portKey: awsPrefix + "healthcheck-port", withHeader: true,
	}, URL: "https://github.com/kubernetes-sigs/aws-load-balancer-controller/blob/main/pkg/service/model_build_target_group.go"},
	{Name: "Outscale", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    prefix + "osc-load-balancer-proxy-protocol",
		Format: Format{On: []Value{{Text: "*"}}, Ports: &PortList{NodePorts: true}, Otherwise: versionDependent},
	}}, URL: "https://github.com/outscale/cloud-provider-osc/blob/main/docs/annotations.md"},
	// Health checks of a port of the Service carry the header, and others do not go to the gateway.
	{Name: "DigitalOcean", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: prefix + "do-loadbalancer-enable-proxy-protocol", Format: boolean(v1, refused),
	}}, URL: "https://github.com/digitalocean/digitalocean-cloud-controller-manager/blob/master/cloud-controller-manager/do/loadbalancers.go"},
	{Name: "Scaleway", Evidence: InSourceCode, Annotations: []Annotation{
		{Key: scalewayV2, Format: scalewayPorts(v2), check: bothScalewayVersions},
		{Key: scalewayV1, Format: scalewayPorts(v1)},
		{Key: scaleway + "send-proxy-v2", Format: Format{
			On: []Value{{"true", v2}, {"1", v2}}, Off: []string{"false", "0"}, Otherwise: refused,
			Ports: &PortList{Version: v2},
		}},
	}, healthCheck: healthCheck{
		key: scaleway + "health-check-type", tcp: "tcp", perPort: true, headerKey: scaleway + "health-check-send-proxy",
	}, URL: "https://github.com/scaleway/scaleway-cloud-controller-manager/blob/master/scaleway/loadbalancers_annotations.go"},
	{Name: "Hetzner", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: "load-balancer.hetzner.cloud/uses-proxyprotocol", Format: boolean("", refused),
	}}, healthCheck: healthCheck{
		key: "load-balancer.hetzner.cloud/health-check-protocol", tcp: "tcp",
		portKey: "load-balancer.hetzner.cloud/health-check-port",
	}, URL: "https://github.com/hetznercloud/hcloud-cloud-controller-manager/blob/main/internal/annotation/load_balancer.go"},
	{Name: "Linode", Evidence: InSourceCode, Annotations: []Annotation{
		{Key: linode + "port-<port>", Format: Format{
			On: v1v2, Off: []string{"none"}, IgnoreCase: true, Otherwise: refused,
			Location: "as `proxy-protocol` in a JSON object", extract: linodePort,
		}},
		{Key: linode + "default-proxy-protocol", Format: linodeWords},
		{Key: linode + "proxy-protocol", Format: linodeWords},
	}, healthCheck: healthCheck{
		key: linode + "check-type", tcp: "connection",
	}, URL: "https://github.com/linode/linode-cloud-controller-manager/blob/main/cloud/linode/loadbalancers.go"},
	{Name: "OpenStack (Infomaniak, OVH's newer load balancers, Selectel, SysEleven, VK, …)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    "loadbalancer.openstack.org/proxy-protocol",
		Format: Format{On: append([]Value{{"true", v1}}, v1v2...), Off: []string{"false"}, Otherwise: countsAsOff},
	}}, URL: "https://github.com/kubernetes/cloud-provider-openstack/blob/master/pkg/openstack/loadbalancer.go"},
	{Name: "OVH (older load balancers)", Evidence: InDocumentation, Annotations: []Annotation{{
		Key: prefix + "ovh-loadbalancer-proxy-protocol", Format: Format{On: v1v2SSL, Otherwise: undocumented},
	}}, URL: "https://help.ovhcloud.com/csm/en-public-cloud-kubernetes-get-source-ip-behind-loadbalancer"},
	{Name: "Oracle (load balancer)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    prefix + "oci-load-balancer-connection-proxy-protocol-version",
		Format: Format{On: []Value{{"1", v1}, {"2", v2}}, Otherwise: refused, PersistsWhenRemoved: true},
	}}, URL: ociURL},
	{Name: "Oracle (network load balancer)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: "oci-network-load-balancer.oraclecloud.com/is-ppv2-enabled", Format: Format{
			On: []Value{{"true", v2}}, Off: []string{"false"}, IgnoreCase: true, Otherwise: refused, PersistsWhenRemoved: true,
		},
	}}, URL: ociURL},
	{Name: "Vultr", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: prefix + "vultr-loadbalancer-proxy-protocol", Format: boolean("", countsAsOff),
	}}, healthCheck: healthCheck{
		key: prefix + "vultr-loadbalancer-healthcheck-protocol", tcp: "tcp",
		pathKey: prefix + "vultr-loadbalancer-healthcheck-path",
	}, URL: "https://github.com/vultr/vultr-cloud-controller-manager/blob/master/vultr/loadbalancers.go"},
	{Name: "Civo", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: "kubernetes.civo.com/loadbalancer-enable-proxy-protocol", Format: Format{
			On: []Value{{"send-proxy", v1}, {"send-proxy-v2", v2}}, Otherwise: undocumented, PersistsWhenRemoved: true,
		},
	}}, URL: "https://github.com/civo/civo-cloud-controller-manager/blob/master/cloud-controller-manager/civo/loadbalancer.go"},
	{Name: "UpCloud", Evidence: InDocumentation, Annotations: []Annotation{{
		Key: prefix + "upcloud-load-balancer-config", Format: Format{
			On: v1v2, Off: []string{""}, Otherwise: undocumented, PerPort: true,
			Location: "as `backends[].properties.outbound_proxy_protocol` in a JSON object", extract: upcloudBackend,
		},
	}}, URL: "https://github.com/UpCloudLtd/uks-instructions/blob/main/ingress/README.md"},
	{Name: "IBM Cloud (VPC)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    "service.kubernetes.io/ibm-load-balancer-cloud-provider-enable-features",
		Format: Format{On: []Value{{"proxy-protocol", v1}}, Otherwise: ignored, Location: "in the list", extract: ibmFeature},
	}}, healthCheck: healthCheck{
		key: ibmCheck + "protocol", tcp: "tcp", portKey: ibmCheck + "port",
	}, URL: "https://github.com/IBM-Cloud/cloud-provider-ibm/tree/master/pkg/vpcctl"},
	{Name: "Alibaba Cloud", Evidence: InSourceCode, Annotations: []Annotation{
		{Key: prefix + "alibaba-cloud-loadbalancer-proxy-protocol", Format: alibabaWords},
		{
			Key: prefix + "alicloud-loadbalancer-proxy-protocol", Format: alibabaWords,
			URL: "https://github.com/kubernetes/cloud-provider-alibaba-cloud/blob/master/pkg/controller/service/reconcile/annotation/annotations.go",
		},
	}, healthCheck: healthCheck{
		key: prefix + "alibaba-cloud-loadbalancer-health-check-type", tcp: "tcp",
		portKey: prefix + "alibaba-cloud-loadbalancer-health-check-connect-port",
	}, URL: "https://github.com/kubernetes/cloud-provider-alibaba-cloud/blob/master/pkg/controller/service/nlbv2/listeners.go"},
	{Name: "Volcengine", Evidence: InDocumentation, Annotations: []Annotation{{
		Key:    prefix + "volcengine-loadbalancer-proxy-protocol",
		Format: Format{On: []Value{{Text: "standard"}}, Off: []string{"off"}, Otherwise: undocumented},
	}}, URL: "https://github.com/volcengine/volcengine-cloud-controller-manager/blob/main/docs/usage.md"},
	{Name: "STACKIT", Evidence: InSourceCode, Annotations: []Annotation{
		{
			Key:    "lb.stackit.cloud/tcp-proxy-protocol",
			Format: boolean(v2, refused), PortsKey: "lb.stackit.cloud/tcp-proxy-protocol-ports-filter",
		},
		{
			Key:    "yawol.stackit.cloud/tcpProxyProtocol",
			Format: boolean(v2, countsAsOff), PortsKey: "yawol.stackit.cloud/tcpProxyProtocolPortsFilter",
		},
	}, URL: "https://github.com/stackitcloud/cloud-provider-stackit/blob/main/pkg/ccm/loadbalancer_spec.go"},
	{Name: "cloudscale.ch", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    "k8s.cloudscale.ch/loadbalancer-pool-protocol",
		Format: Format{On: []Value{{"proxy", v1}, {"proxyv2", v2}}, Off: []string{"tcp"}, Otherwise: refused},
	}}, healthCheck: healthCheck{
		key: "k8s.cloudscale.ch/loadbalancer-health-monitor-type", tcp: "tcp",
	}, URL: "https://github.com/cloudscale-ch/cloudscale-cloud-controller-manager/blob/main/pkg/cloudscale_ccm/loadbalancer.go"},
	{Name: "CloudStack", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    prefix + "cloudstack-load-balancer-proxy-protocol",
		Format: Format{On: []Value{{"true", v1}}, Otherwise: versionDependent},
	}}, URL: "https://github.com/apache/cloudstack-kubernetes-provider/blob/main/protocol.go"},
	{Name: "Brightbox", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: prefix + "brightbox-load-balancer-listener-proxy-protocol", Format: Format{On: v1v2SSL, Otherwise: refused},
	}}, healthCheck: healthCheck{
		key: prefix + "brightbox-load-balancer-healthcheck-protocol", tcp: "tcp",
	}, URL: "https://github.com/brightbox/brightbox-cloud-controller-manager/blob/master/brightbox/validation.go"},
	{Name: "Naver Cloud", Evidence: InDocumentation, Annotations: []Annotation{{
		Key:    prefix + "ncloud-load-balancer-proxy-protocol",
		Format: Format{On: []Value{{Text: "true"}}, Off: []string{"false"}, Otherwise: undocumented},
	}}, URL: "https://guide.ncloud-docs.com/docs/en/nks-nks-1-8"},
	{Name: "Thalassa Cloud", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: "loadbalancer.k8s.thalassa.cloud/enable-proxy-protocol", Format: boolean(v1, countsAsOff),
	}}, URL: "https://github.com/thalassa-cloud/cloud-provider-thalassa/blob/main/pkg/provider/loadbalancer_targetgroups.go"},
	{Name: "Bizfly Cloud", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    "kubernetes.bizflycloud.vn/enable-proxy-protocol",
		Format: Format{On: []Value{{"true", v1}}, Off: []string{"false"}, Otherwise: countsAsOff},
	}}, URL: "https://github.com/bizflycloud/bizfly-cloud-controller-manager/blob/master/cloud-controller-manager/bizfly/loadbalancer.go"},
	{Name: "LoxiLB (kube-loxilb)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    "loxilb.io/useproxyprotov2",
		Format: Format{On: []Value{{"yes", v2}}, Off: []string{"no"}, Otherwise: countsAsOff},
	}}, URL: "https://github.com/loxilb-io/kube-loxilb/blob/main/pkg/agent/manager/loadbalancer/loadbalancer.go"},
	{Name: "Azure (Private Link Service)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    prefix + "azure-pls-proxy-protocol",
		Format: Format{On: []Value{{"true", v2}}, Off: []string{"false"}, IgnoreCase: true, Otherwise: countsAsOff},
		check:  withoutPrivateLink,
	}}, URL: "https://github.com/kubernetes-sigs/cloud-provider-azure/blob/master/pkg/provider/azure_privatelinkservice.go"},
}

// byInTreeController is for the controller that is built into Kubernetes: it creates a network load balancer for the
// type "nlb", and reads the annotation for classic ones only. It leaves Services with a class to others.
func byInTreeController(s *corev1.Service) error {
	if s.Annotations[awsType] == "nlb" && s.Spec.LoadBalancerClass == nil {
		return errors.New(`the controller that creates load balancers of the type "nlb" does not read it; enable the headers at the load balancer ` +
			`itself and set Usher's proxy_protocol.mode; or create another Service with ` + awsType + ` "external", for the AWS Load Balancer Controller ` +
			`(never change that annotation on an existing Service: the old load balancer then stays in AWS)`)
	}
	return nil
}

// bothScalewayVersions is for Scaleway's controller, which refuses a Service that wants both versions on one port.
func bothScalewayVersions(s *corev1.Service) error {
	for _, p := range s.Spec.Ports {
		wants := func(key string) bool { return scalewayPorts("").parse(s.Annotations[key], p).state == proxyOn }
		if wants(scalewayV1) && wants(scalewayV2) {
			return fmt.Errorf("port %d is in %s as well, and Scaleway refuses both versions on one port; "+
				"remove it from one of them", p.Port, scalewayV1)
		}
	}
	return nil
}

// withoutPrivateLink is for Azure, which reads the annotation only for a Private Link Service.
func withoutPrivateLink(s *corev1.Service) error {
	const create = prefix + "azure-pls-create"
	if s.Annotations[create] == "true" {
		return nil
	}
	return errors.New("the cloud reads it only for a Private Link Service; " +
		"set " + create + ` to "true", or remove this annotation`)
}
