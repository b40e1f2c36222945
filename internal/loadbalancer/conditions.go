package loadbalancer

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Each of these lists is in the order in which the conditions count. A condition without a URL was read where the
// provider's values were.

// outscaleNotHonoured is when Outscale does not honour its annotation.
var outscaleNotHonoured = []Condition{
	leavesClasses, refusesUDP, refuses(hasSessionAffinity(), `use "None"`),
	{
		When: []Fact{not(is(oscPrefix+"proxy-protocol", "*"), "the value is a list of ports")}, State: Unclear,
		Cloud: "the cloud's controller follows the list only when the first port is added to it and the last one is removed",
		Fix:   `use "*", or set Usher's proxy_protocol.mode`,
		URL:   "https://github.com/outscale/cloud-provider-osc/blob/main/ccm/cloud/loadbalancer.go",
	},
	{
		When: []Fact{isAnyCase(oscPrefix+"backend-protocol", "http")}, State: Unclear,
		Cloud: "the listeners are for HTTP, and Outscale does not document whether it sends PROXY headers there",
		Fix:   `use "tcp", or set Usher's proxy_protocol.mode`,
	},
	{
		When:  []Fact{isAnyCase(oscPrefix+"backend-protocol", "https"), isSet(oscPrefix + "ssl-cert"), namesPort(oscPrefix + "ssl-ports")},
		State: Unclear,
		Cloud: "the listener is for HTTPS, and Outscale does not document whether it sends PROXY headers there",
		Fix:   `use "ssl", or set Usher's proxy_protocol.mode`,
	},
}

// digitalOceanNotHonoured is when DigitalOcean does not honour its annotation.
var digitalOceanNotHonoured = []Condition{
	leavesClasses,
	{
		When: []Fact{isTrue("service.kubernetes.io/do-loadbalancer-disown")}, State: Unclear,
		Cloud: "the cloud's controller leaves the load balancer as it is", Fix: "remove that annotation, or set Usher's proxy_protocol.mode",
	},
	{
		When: []Fact{is(doPrefix+"type", "REGIONAL_NETWORK")}, State: Ignored,
		Cloud: "the load balancer passes packets on as they are and sends no headers",
		Fix:   `create another Service with the type "REGIONAL", or remove this annotation`,
	},
	{
		When: []Fact{isUnset(doPrefix + "type")}, State: Unclear,
		Cloud: "the cloud chooses the type when it creates the load balancer, and then writes it into this annotation (since v0.1.60 of its controller)",
		Fix:   `wait for it, or set the annotation to "REGIONAL"; a load balancer of the type "REGIONAL_NETWORK" sends no headers`,
	},
	refuses(isNot(doPrefix+"type", "REGIONAL"), `use "REGIONAL"`),
}

// scalewayNotHonoured is when Scaleway honours none of its annotations.
var scalewayNotHonoured = []Condition{
	leavesClasses,
	{
		When: []Fact{isTrue(scaleway + "externally-managed"), isUnset(scaleway + "id")}, State: Unclear,
		Cloud: "the cloud's controller refuses the Service and configures no load balancer", Fix: "set " + scaleway + "id",
	},
	{
		When: []Fact{isTrue(scaleway + "private"), isSet(scaleway + "ip-ids")}, State: Unclear,
		Cloud: refusesService, Fix: "remove one of them",
	},
}

// linodeNotHonoured is when Linode honours none of its annotations.
var linodeNotHonoured = []Condition{leavesClasses, linodeNotTCP(linodeOwnProtocol), linodeNotTCP(linodeDefaultProtocol)}

// linodeNotTCP is the condition that a port of the load balancer is for HTTP, HTTPS or UDP.
func linodeNotTCP(protocol Fact) Condition {
	return Condition{
		When: []Fact{protocol}, State: Unclear,
		Cloud: "NodeBalancers send PROXY headers on TCP connections, and Linode does not document what they do with others",
		Fix:   `use "tcp", or set Usher's proxy_protocol.mode`,
		URL:   "https://techdocs.akamai.com/cloud-computing/docs/using-proxy-protocol-with-nodebalancers",
	}
}

// openstackNotHonoured is when OpenStack's controller does not honour its annotation.
var openstackNotHonoured = []Condition{
	leavesClasses,
	refuses(is(openstackPrefix+"x-forwarded-for", "true"), "remove one of the two annotations"),
	{
		When: []Fact{hasUDPPort()}, State: Unclear,
		Cloud: "the cloud's controller asks for a PROXY pool behind the UDP listener as well, which Octavia refuses, and later ports stay as they are",
		Fix:   "create another Service for the UDP port",
	},
	{
		When: []Fact{is(ovhClass, "iolb")}, State: Ignored, Elsewhere: true, Cloud: "OVH's older load balancers do not read this annotation",
		Fix: "set " + prefix + "ovh-loadbalancer-proxy-protocol", URL: ovhURL,
	},
}

// ovhNotHonoured is when OVH's older load balancers do not honour their annotation.
var ovhNotHonoured = []Condition{
	{
		When: []Fact{is(ovhClass, "octavia")}, State: Ignored, Elsewhere: true, Cloud: "OVH's newer load balancers do not read this annotation",
		Fix: "set " + openstackPrefix + "proxy-protocol", URL: ovhURL,
	},
	{
		When: []Fact{isUnset(ovhClass)}, State: Unclear,
		Cloud: "OVH creates newer load balancers since Kubernetes 1.31, which do not read this annotation, and older ones before",
		Fix:   "set " + ovhClass + ` to "iolb" for an older load balancer, or ` + openstackPrefix + "proxy-protocol for a newer one",
		URL:   ovhURL,
	},
}

// ociNotHonoured is when Oracle's load balancers do not honour their annotation.
var ociNotHonoured = []Condition{
	leavesClasses,
	{
		When: []Fact{isAnyCase(ociType, "nlb")}, State: Ignored, Elsewhere: true, Cloud: "the cloud's controller does not read it for network load balancers",
		Fix: "set " + ociNLBPrefix + "is-ppv2-enabled",
	},
	{
		When: []Fact{isAnyCase(ociPrefix+"backend-protocol", "http", "grpc")}, State: Unclear,
		Cloud: "the listeners are not for TCP, and Oracle does not document whether it sends PROXY headers there",
		Fix:   `use "TCP", or set Usher's proxy_protocol.mode`,
	},
	refusesUDP, refuses(hasSessionAffinity(), `use "None"`),
}

// ociNLBNotHonoured is when Oracle's network load balancers do not honour their annotation.
var ociNLBNotHonoured = []Condition{
	leavesClasses,
	{
		When:  []Fact{not(isAnyCase(ociType, "nlb"), ociType+` is not "nlb"`)},
		State: Ignored, Elsewhere: true, Cloud: "the cloud's controller creates a load balancer that is no network load balancer, and does not read it",
		Fix: "set " + ociPrefix + "connection-proxy-protocol-version",
	},
	{
		When: []Fact{isSet(ociNLBPrefix + "is-preserve-source"), isClusterPolicy()}, State: Unclear,
		Cloud: refusesService,
		Fix:   "remove that annotation",
	},
	{
		When: []Fact{hasUDPPort()}, State: Unclear,
		Cloud: "the cloud's controller sets it for the UDP listener as well, and Oracle documents it for TCP listeners only",
		Fix:   "create another Service for the UDP port",
		URL:   "https://docs.oracle.com/iaas/Content/NetworkLoadBalancer/NetworkLoadBalancers/network-load-balancer-management.htm",
	},
	refuses(hasSessionAffinity(), `use "None"`),
}

// vultrNotHonoured is when Vultr does not honour its annotation.
var vultrNotHonoured = []Condition{
	leavesClasses,
	{
		When: []Fact{isAnyCase(vultrPrefix+"create", "false")}, State: Unclear,
		Cloud: "the cloud's controller does not touch the load balancer", Fix: "remove that annotation, or set Usher's proxy_protocol.mode",
	},
	refuses(vultrWrongPort, "use the first port of the Service, or remove that annotation"),
}

// bothScalewayVersions is when a port of the Service has both versions.
var bothScalewayVersions = []Condition{{
	When: []Fact{{
		Clause: scalewayV1 + " names a port as well", fields: []field{annotationField(scalewayV1)},
		holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
			return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
				wants := func(key string) bool { return scalewayPorts("").parse(s.Annotations[key], p).state == proxyOn }
				return wants(scalewayV1) && wants(scalewayV2)
			})
		},
	}},
	State: Unclear, Cloud: "Scaleway refuses both versions on one port", Fix: "remove the port from one of them",
}}

// linodeUDP is when the default of all ports counts for a UDP port as well.
var linodeUDP = []Condition{refuses(Fact{
	Clause: "it counts for a UDP port as well", fields: []field{specField("ports")},
	holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
		return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
			return p.Protocol == corev1.ProtocolUDP && linodePortSetting(s, p, "proxy-protocol") != "none"
		})
	},
}, `set "proxy-protocol": "none" in `+linode+"port-<port> of the UDP port")}

// linodeOwnProtocol is the fact that the annotation of a single port names another protocol than TCP.
var linodeOwnProtocol = Fact{
	Clause: `"protocol" in ` + linode + `port-<port> is not "tcp"`, fields: []field{annotationField(linode + "port-<port>")},
	holds: func(s *corev1.Service, p corev1.ServicePort) bool {
		protocol := linodePortSetting(s, p, "protocol")
		return protocol != "" && protocol != "tcp"
	},
}

// linodeDefaultProtocol is the fact that a port has the protocol of all ports, which is not TCP.
var linodeDefaultProtocol = Fact{
	Clause: linode + `default-protocol is not "tcp"`, fields: []field{annotationField(linode + "default-protocol")},
	holds: func(s *corev1.Service, p corev1.ServicePort) bool {
		protocol := strings.ToLower(s.Annotations[linode+"default-protocol"])
		return protocol != "" && protocol != "tcp" && linodePortSetting(s, p, "protocol") == ""
	},
}

// vultrWrongPort is the fact that health checks go to a port that the controller does not accept.
var vultrWrongPort = Fact{
	Clause: vultrPrefix + "healthcheck-port is not the first port of the Service",
	fields: []field{annotationField(vultrPrefix + "healthcheck-port"), specField("ports")},
	holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
		value := s.Annotations[vultrPrefix+"healthcheck-port"]
		return value != "" && value != strconv.Itoa(int(s.Spec.Ports[0].Port))
	},
}

// loxilbNotHonoured is when LoxiLB does not honour its annotation. It handles Services with its class, or with networks
// of their own. Its load balancer refuses rules that it cannot carry out, and kube-loxilb then leaves the Service
// without an address.
var loxilbNotHonoured = []Condition{
	{
		When: []Fact{hasNoClass(), isUnset(loxilbPrefix + "multus-nets")}, State: Ignored, Elsewhere: true,
		Cloud: "kube-loxilb leaves the Service to another controller", Fix: `create another Service with the class "` + loxilbClass + `", or remove this annotation`,
	},
	{
		When: []Fact{hasOtherClass(loxilbClass), isUnset(loxilbPrefix + "multus-nets")}, State: Unclear,
		Cloud: "it depends on kube-loxilb's settings whether it handles the Service", Fix: `create another Service with "` + loxilbClass + `"`,
	},
	{
		When: []Fact{hasUDPPort()}, State: Unclear, URL: loxilbRules,
		Cloud: "LoxiLB refuses a UDP port that gets headers", Fix: refusesUDP.Fix,
	},
	{
		When: []Fact{is(loxilbPrefix+"probetype", "http", "https")}, State: Unclear, URL: loxilbRules,
		Cloud: "LoxiLB refuses the Service, because it has no such probes for Services", Fix: `use "tcp"`,
	},
	{
		When: []Fact{is(loxilbPrefix+"lbmode", "dsr")}, State: Unclear,
		Cloud: "LoxiLB does not document whether it sends headers where gateways answer clients directly", Fix: `use "fullnat" or "onearm"`,
	},
	{
		When: []Fact{is(loxilbPrefix+"lbmode", "fullproxy")}, State: Unclear, URL: "https://github.com/loxilb-io/loxilb-ebpf/pull/86",
		Cloud: "only releases of LoxiLB since July 2026 send headers in this mode", Fix: `use "fullnat" or "onearm"`,
	},
	{
		When: []Fact{is(loxilbPrefix+"ipam", loxilbIPv6...)}, State: Unclear,
		Cloud: "only newer releases of LoxiLB send headers over IPv6, and it documents IPv4 only", Fix: "create another Service with IPv4",
	},
}

var loxilbIPv6 = []string{"ipv6", "ip6", "nat66", "ipv6to4", "nat64"}
