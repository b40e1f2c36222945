package loadbalancer

import (
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/settings"
)

//go:generate go run ../../tools/balancers-doc ../../docs/load-balancers.md

// Provider is a cloud, or another maker of load balancers, with the annotations that it reads. Of its annotations,
// the first that says something about a port counts, and one that the cloud ignores only if no other does.
type Provider struct {
	Name        string
	URL         string // where the values of the annotations can be read
	Evidence    string // what is there: InDocumentation, InSourceCode, or nothing of the provider's own
	Annotations []Annotation
	NotHonoured []Condition // when the cloud does not honour any of the annotations
	healthCheck healthCheck
}

// Annotation is an annotation that tells a cloud whether its load balancer sends PROXY headers.
type Annotation struct {
	Key string // "<port>" in it stands for a port of the Service
	Format
	// PortsKey is a second annotation. Where a Service has it, the first one counts only for the ports in it. Empty:
	// the cloud has no such annotation.
	PortsKey string
	// NotHonoured is when the cloud does not honour a value that switches headers on; the first that holds counts,
	// and those of the provider come last.
	NotHonoured []Condition
	// AlwaysHonoured says why there is no such condition, where there is none.
	AlwaysHonoured string
	URL            string // if it is not the provider's
}

// Where the values of annotations were read.
const (
	InDocumentation = "documentation"
	InSourceCode    = "source code" // of the provider's controller, which also says what any other value does
)

// keyFor returns the name of the annotation for a port.
func (a Annotation) keyFor(port int32) string { return forPort(a.Key, port) }

// forPort returns a text in which "<port>" stands for a port, such as a key, for this port.
func forPort(text string, port int32) string {
	return strings.ReplaceAll(text, "<port>", strconv.Itoa(int(port)))
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

	oscPrefix = prefix + "osc-load-balancer-"
	doPrefix  = prefix + "do-loadbalancer-"

	scaleway   = prefix + "scw-loadbalancer-"
	scalewayV1 = scaleway + "proxy-protocol-v1"
	scalewayV2 = scaleway + "proxy-protocol-v2"

	linode          = prefix + "linode-loadbalancer-"
	openstackPrefix = "loadbalancer.openstack.org/"
	ovhClass        = "loadbalancer.ovhcloud.com/class"
	ociPrefix       = prefix + "oci-load-balancer-"
	ociNLBPrefix    = "oci-network-load-balancer.oraclecloud.com/"
	ociType         = "oci.oraclecloud.com/load-balancer-type"
	vultrPrefix     = prefix + "vultr-loadbalancer-"
	ibmCheck        = "service.kubernetes.io/ibm-load-balancer-cloud-provider-vpc-health-check-"

	brightboxPrefix = prefix + "brightbox-load-balancer-"
	brightboxKey    = brightboxPrefix + "listener-proxy-protocol"
	naverPrefix     = prefix + "ncloud-load-balancer-"
	thalassaPrefix  = "loadbalancer.k8s.thalassa.cloud/"
	loxilbPrefix    = "loxilb.io/"
	loxilbClass     = "loxilb.io/loxilb"
	loxilbRules     = "https://github.com/loxilb-io/loxilb/blob/main/pkg/loxinet/rules.go"
	volcengineClass = "volcengine.com/clb"

	ovhURL = "https://help.ovhcloud.com/csm/en-public-cloud-kubernetes-migrate-iolb-to-public-cloud-loadbalancer?id=kb_article_view&sysparm_article=KB0066721"
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
		extract:   func(value string, _ corev1.ServicePort) (string, bool, error) { return value, value != "", nil },
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
		{Key: awsPrefix + "proxy-protocol", NotHonoured: awsNotAll, Format: Format{
			On: []Value{{Text: "*"}}, Otherwise: refused,
		}},
		{Key: awsPrefix + "proxy-protocol-per-target-group", NotHonoured: awsNotPorts, Format: Format{
			Ports: &PortList{Version: v2, OthersOff: true}, Otherwise: refused,
		}},
		{Key: awsAttributes + ".<port>", NotHonoured: awsNotPorts, Format: attribute(awsPPV2, v2, refused)},
		{Key: awsAttributes, NotHonoured: awsNotAttributes, Format: attribute(awsPPV2, v2, refused)},
	}, NotHonoured: awsNotAny, healthCheck: healthCheck{
		key: awsPrefix + "healthcheck-protocol", tcp: "tcp", portKey: awsPrefix + "healthcheck-port", withHeader: true,
		except: awsIgnoresChecks,
	}, URL: "https://github.com/kubernetes-sigs/aws-load-balancer-controller/blob/main/pkg/service/model_build_target_group.go"},
	{Name: "Outscale", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    oscPrefix + "proxy-protocol",
		Format: Format{On: []Value{{Text: "*"}}, Ports: &PortList{NodePorts: true}, Otherwise: versionDependent},
	}}, NotHonoured: outscaleNotHonoured, healthCheck: healthCheck{find: outscaleCheck}, URL: "https://github.com/outscale/cloud-provider-osc/blob/main/docs/annotations.md"},
	// Health checks of a port of the Service carry the header, and others do not go to the gateway.
	{Name: "DigitalOcean", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: doPrefix + "enable-proxy-protocol", Format: boolean(v1, refused),
	}}, NotHonoured: digitalOceanNotHonoured, URL: "https://github.com/digitalocean/digitalocean-cloud-controller-manager/blob/master/cloud-controller-manager/do/loadbalancers.go"},
	{Name: "Scaleway", Evidence: InSourceCode, Annotations: []Annotation{
		{Key: scalewayV2, Format: scalewayPorts(v2), NotHonoured: bothScalewayVersions},
		{Key: scalewayV1, Format: scalewayPorts(v1)},
		{Key: scaleway + "send-proxy-v2", Format: Format{
			On: []Value{{"true", v2}, {"1", v2}}, Off: []string{"false", "0"}, Otherwise: refused,
			Ports: &PortList{Version: v2},
		}},
	}, NotHonoured: scalewayNotHonoured, healthCheck: healthCheck{
		key: scaleway + "health-check-type", tcp: "tcp", words: []string{"ldap", "mysql", "pgsql", "redis"}, perPort: true,
		headerKey: scaleway + "health-check-send-proxy", except: scalewayAsksNodes,
	}, URL: "https://github.com/scaleway/scaleway-cloud-controller-manager/blob/master/scaleway/loadbalancers_annotations.go"},
	{Name: "Hetzner", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: "load-balancer.hetzner.cloud/uses-proxyprotocol", Format: boolean("", refused),
	}}, NotHonoured: []Condition{leavesClasses}, healthCheck: healthCheck{
		key: "load-balancer.hetzner.cloud/health-check-protocol", tcp: "tcp", elseKey: "load-balancer.hetzner.cloud/protocol",
		portKey: "load-balancer.hetzner.cloud/health-check-port", except: hetznerConnects,
	}, URL: "https://github.com/hetznercloud/hcloud-cloud-controller-manager/blob/main/internal/annotation/load_balancer.go"},
	{Name: "Linode", Evidence: InSourceCode, Annotations: []Annotation{
		{Key: linode + "port-<port>", Format: Format{
			On: v1v2, Off: []string{"none"}, IgnoreCase: true, Otherwise: refused,
			Location: "as `proxy-protocol` in a JSON object", extract: linodePort,
		}},
		{Key: linode + "default-proxy-protocol", Format: linodeWords, NotHonoured: linodeUDP},
		{Key: linode + "proxy-protocol", Format: linodeWords, NotHonoured: linodeUDP},
	}, NotHonoured: linodeNotHonoured, healthCheck: healthCheck{
		key: linode + "check-type", tcp: "connection",
	}, URL: "https://github.com/linode/linode-cloud-controller-manager/blob/main/cloud/linode/loadbalancers.go"},
	{Name: "OpenStack (Infomaniak, OVH's newer load balancers, Selectel, SysEleven, VK, …)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    openstackPrefix + "proxy-protocol",
		Format: Format{On: append([]Value{{"true", v1}}, v1v2...), Off: []string{"false"}, Otherwise: countsAsOff},
	}}, NotHonoured: openstackNotHonoured, URL: "https://github.com/kubernetes/cloud-provider-openstack/blob/master/pkg/openstack/loadbalancer.go"},
	{Name: "OVH (older load balancers)", Evidence: InDocumentation, Annotations: []Annotation{{
		Key: prefix + "ovh-loadbalancer-proxy-protocol", Format: Format{On: v1v2SSL, Otherwise: undocumented},
	}}, NotHonoured: ovhNotHonoured, URL: "https://help.ovhcloud.com/csm/en-public-cloud-kubernetes-get-source-ip-behind-loadbalancer"},
	{Name: "Oracle (load balancer)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    ociPrefix + "connection-proxy-protocol-version",
		Format: Format{On: []Value{{"1", v1}, {"2", v2}}, Otherwise: refused, PersistsWhenRemoved: true},
	}}, NotHonoured: ociNotHonoured, URL: ociURL},
	{Name: "Oracle (network load balancer)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: ociNLBPrefix + "is-ppv2-enabled", Format: Format{
			On: []Value{{"true", v2}}, Off: []string{"false"}, IgnoreCase: true, Otherwise: refused, PersistsWhenRemoved: true,
		},
	}}, NotHonoured: ociNLBNotHonoured, URL: ociURL},
	{Name: "Vultr", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: vultrPrefix + "proxy-protocol", Format: boolean("", countsAsOff),
	}}, NotHonoured: vultrNotHonoured, healthCheck: healthCheck{
		key: vultrPrefix + "healthcheck-protocol", tcp: "tcp", pathKey: vultrPrefix + "healthcheck-path",
	}, URL: "https://github.com/vultr/vultr-cloud-controller-manager/blob/master/vultr/loadbalancers.go"},
	{Name: "Civo", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: "kubernetes.civo.com/loadbalancer-enable-proxy-protocol", Format: Format{
			On: []Value{{"send-proxy", v1}, {"send-proxy-v2", v2}}, Otherwise: undocumented, PersistsWhenRemoved: true,
		},
	}}, NotHonoured: []Condition{leavesClasses}, URL: "https://github.com/civo/civo-cloud-controller-manager/blob/master/cloud-controller-manager/civo/loadbalancer.go"},
	{Name: "UpCloud", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: upcloudKey, Format: Format{
			On: v1v2, Off: []string{""}, Otherwise: undocumented, PerPort: true,
			Location: "as `backends[].properties.outbound_proxy_protocol` in a JSON object", extract: upcloudProxy,
		},
	}}, NotHonoured: upcloudNotHonoured, healthCheck: healthCheck{
		find: upcloudCheck,
	}, URL: "https://github.com/UpCloudLtd/upcloud-cloud-controller-manager/blob/main/internal/loadbalancer/utils.go"},
	{Name: "IBM Cloud (VPC)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    "service.kubernetes.io/ibm-load-balancer-cloud-provider-enable-features",
		Format: Format{On: []Value{{"proxy-protocol", v1}}, Otherwise: ignored, Location: "in the list", extract: ibmFeature},
	}}, NotHonoured: []Condition{
		leavesClasses, refusesUDP, refuses(allocatesNoNodePorts, "set it to true").
			readAt("https://github.com/IBM-Cloud/cloud-provider-ibm/blob/master/ibm/ibm_loadbalancer.go"),
	}, healthCheck: healthCheck{
		key: ibmCheck + "protocol", tcp: "tcp", portKey: ibmCheck + "port",
	}, URL: "https://github.com/IBM-Cloud/cloud-provider-ibm/tree/master/pkg/vpcctl"},
	{Name: "Alibaba Cloud", Evidence: InSourceCode, Annotations: []Annotation{
		{Key: alibabaPrefix + "proxy-protocol", Format: alibabaWords},
		{
			Key: alicloudPrefix + "proxy-protocol", Format: alibabaWords, NotHonoured: alibabaUnset,
			URL: "https://github.com/kubernetes/cloud-provider-alibaba-cloud/blob/master/pkg/controller/service/reconcile/annotation/annotations.go",
		},
	}, NotHonoured: alibabaNotHonoured, healthCheck: healthCheck{
		find: alibabaHTTPCheck,
	}, URL: "https://github.com/kubernetes/cloud-provider-alibaba-cloud/blob/master/pkg/controller/service/nlbv2/listeners.go"},
	// It checks listeners over TCP only.
	{Name: "Volcengine", Evidence: InDocumentation, Annotations: []Annotation{{
		Key:    prefix + "volcengine-loadbalancer-proxy-protocol",
		Format: Format{On: []Value{{Text: "standard"}}, Off: []string{"off"}, Otherwise: undocumented},
	}}, NotHonoured: []Condition{{
		When:  []Fact{hasOtherClass(volcengineClass)},
		State: Unclear, Cloud: "the cloud does not document that this annotation counts for another class",
		Fix: `create another Service without a class, or with "` + volcengineClass + `"`,
	}}, URL: "https://github.com/volcengine/volcengine-cloud-controller-manager/blob/main/docs/usage.md"},
	{Name: "STACKIT", Evidence: InSourceCode, Annotations: []Annotation{
		{
			Key: stackitKey, Format: boolean(v2, refused), PortsKey: stackitPorts, NotHonoured: stackitNotHonoured,
		},
		{
			Key: yawolKey, Format: boolean(v2, countsAsOff), PortsKey: yawolPorts, NotHonoured: yawolNotHonoured,
		},
	}, URL: "https://github.com/stackitcloud/cloud-provider-stackit/blob/main/pkg/ccm/loadbalancer_spec.go"},
	{Name: "cloudscale.ch", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    "k8s.cloudscale.ch/loadbalancer-pool-protocol",
		Format: Format{On: []Value{{"proxy", v1}, {"proxyv2", v2}}, Off: []string{"tcp"}, Otherwise: refused},
	}}, NotHonoured: []Condition{
		leavesClasses, refuses(hasNoNodePort(), "set spec.allocateLoadBalancerNodePorts to true").
			readAt("https://github.com/cloudscale-ch/cloudscale-cloud-controller-manager/blob/main/pkg/cloudscale_ccm/reconcile.go"),
	}, healthCheck: healthCheck{
		key: "k8s.cloudscale.ch/loadbalancer-health-monitor-type", tcp: "tcp", words: []string{"tls-hello"}, except: isLocal,
	}, URL: "https://github.com/cloudscale-ch/cloudscale-cloud-controller-manager/blob/main/pkg/cloudscale_ccm/loadbalancer.go"},
	{Name: "CloudStack", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    prefix + "cloudstack-load-balancer-proxy-protocol",
		Format: Format{On: []Value{{"true", v1}}, Otherwise: versionDependent},
	}}, NotHonoured: []Condition{leavesClasses}, URL: "https://github.com/apache/cloudstack-kubernetes-provider/blob/main/protocol.go"},
	{Name: "Brightbox", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: brightboxKey, Format: Format{On: v1v2SSL, Otherwise: refused},
	}}, NotHonoured: []Condition{
		leavesClasses, refusesUDP, refuses(hasSessionAffinity(), `use "None"`),
	}, healthCheck: healthCheck{find: brightboxCheck}, URL: "https://github.com/brightbox/brightbox-cloud-controller-manager/blob/master/brightbox/validation.go"},
	{Name: "Naver Cloud", Evidence: InDocumentation, Annotations: []Annotation{{
		Key:    naverPrefix + "proxy-protocol",
		Format: Format{On: []Value{{Text: "true"}}, Off: []string{"false"}, Otherwise: undocumented},
	}}, NotHonoured: []Condition{leavesClasses.readAt("https://guide.ncloud-docs.com/docs/en/k8s-k8sexamples-loadbalancer"), {
		When: []Fact{is(naverPrefix+"layer-type", "nlb")}, State: Unclear, URL: "https://guide.ncloud-docs.com/docs/en/k8s-k8suse-loadbalancer",
		Cloud: "the cloud documents this annotation for network proxy load balancers only, and this one is a network load balancer",
		Fix:   `create another Service with the type "nplb", or remove this annotation`,
	}, {
		When: []Fact{is(naverPrefix+"backend-protocol", "http", "https")}, State: Ignored,
		Cloud: "the load balancer sends headers only with the protocols \"tcp\" and \"ssl\"", Fix: `use "tcp", or remove this annotation`,
	}}, URL: "https://guide.ncloud-docs.com/docs/en/nks-nks-1-8"},
	{Name: "Thalassa Cloud", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: thalassaPrefix + "enable-proxy-protocol", Format: boolean(v1, countsAsOff),
	}}, NotHonoured: []Condition{leavesClasses}, healthCheck: healthCheck{find: thalassaCheck}, URL: "https://github.com/thalassa-cloud/cloud-provider-thalassa/blob/main/pkg/provider/loadbalancer_targetgroups.go"},
	{Name: "Bizfly Cloud", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    "kubernetes.bizflycloud.vn/enable-proxy-protocol",
		Format: Format{On: []Value{{"true", v1}}, Off: []string{"false"}, Otherwise: countsAsOff},
	}}, NotHonoured: []Condition{leavesClasses, {
		When: []Fact{hasUDPPort()}, State: Unclear, URL: "https://docs.openstack.org/api-ref/load-balancer/v2/#protocol-combinations-listener-pool",
		Cloud: "the cloud refuses a UDP port that gets headers, and the load balancer stays unfinished", Fix: refusesUDP.Fix,
	}}, URL: "https://github.com/bizflycloud/bizfly-cloud-controller-manager/blob/master/cloud-controller-manager/bizfly/loadbalancer.go"},
	{Name: "LoxiLB (kube-loxilb)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key:    loxilbPrefix + "useproxyprotov2",
		Format: Format{On: []Value{{"yes", v2}}, Off: []string{"no"}, Otherwise: countsAsOff},
	}}, NotHonoured: loxilbNotHonoured, URL: "https://github.com/loxilb-io/kube-loxilb/blob/main/pkg/agent/manager/loadbalancer/loadbalancer.go"},
	{Name: "Azure (Private Link Service)", Evidence: InSourceCode, Annotations: []Annotation{{
		Key: azurePrefix + "pls-proxy-protocol",
		Format: Format{
			On: []Value{{"true", v2}}, Off: []string{"false"}, IgnoreCase: true, Otherwise: countsAsOff, extract: azureTrimmed,
		},
	}}, NotHonoured: azureNotHonoured, healthCheck: healthCheck{
		find: azureCheck, doubt: azureDoubt,
	}, URL: "https://github.com/kubernetes-sigs/cloud-provider-azure/blob/master/pkg/provider/azure_privatelinkservice.go"},
}
