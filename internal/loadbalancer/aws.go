package loadbalancer

import "regexp"

// AWS's annotations are read by several controllers:
//
//   - The one in Kubernetes (cloud-provider-aws) is for Services without a class and without the types "external" and
//     "nlb-ip". It creates network load balancers for the type "nlb", and classic load balancers otherwise.
//   - The AWS Load Balancer Controller is for its class, and for these two types. With its webhook, it sets its class on
//     new Services that have none.
//   - EKS Auto Mode is for its class, and sets it likewise. It has no public source.
//   - Outscale's has a row.
const (
	awsAutoClass = "eks.amazonaws.com/nlb"
	awsBackend   = awsPrefix + "backend-protocol"
	awsAction    = prefix + "actions."

	awsInTreeURL  = "https://github.com/kubernetes/cloud-provider-aws/tree/master/pkg/providers/v1"
	awsClassicURL = "https://docs.aws.amazon.com/elasticloadbalancing/latest/classic/enable-proxy-protocol.html"
	awsAutoURL    = "https://docs.aws.amazon.com/eks/latest/userguide/auto-configure-nlb.html"
	awsOwnerURL   = "https://github.com/kubernetes-sigs/aws-load-balancer-controller/blob/main/pkg/service/service_utils.go"

	awsSeeTargetGroups = "look at the load balancer's target groups and set Usher's proxy_protocol.mode"
	awsUseClass        = `create another Service with the spec.loadBalancerClass "` + awsClass + `", for the AWS Load Balancer Controller`
)

// The facts that decide between the controllers.
var (
	awsInTree    = []Fact{hasNoClass(), isNot(awsType, "external", "nlb-ip")}
	awsInTreeNLB = []Fact{hasNoClass(), is(awsType, "nlb")}
	awsClassic   = []Fact{hasNoClass(), isNot(awsType, "nlb", "external", "nlb-ip")}

	awsClassicName = hasHostname("status.loadBalancer has the host name of a classic load balancer", regexp.MustCompile(`\.elb\.amazonaws\.com`))
	awsNetworkName = hasHostname("status.loadBalancer has the host name of a network load balancer", regexp.MustCompile(`\.elb\.[a-z0-9-]+\.amazonaws\.com`))
)

// awsNotAll is when "*" is not honoured.
var awsNotAll = []Condition{
	{
		When: []Fact{hasClass(awsAutoClass)}, State: Unclear,
		Cloud: "AWS documents that EKS Auto Mode does not support this annotation",
		Fix:   "use " + awsAttributes + "; or " + awsSeeTargetGroups,
		URL:   awsAutoURL,
	},
	{
		When: with(awsInTreeNLB, awsClassicName), State: Unclear,
		Cloud: "the controller in Kubernetes does not turn a classic load balancer into a network load balancer, and leaves it as it is or creates another one",
		Fix:   "undo the change of the type and create another Service",
		URL:   awsInTreeURL,
	},
	{
		When: awsInTreeNLB, State: Ignored,
		Cloud: "the controller in Kubernetes creates the load balancer, and it reads this annotation only for classic load balancers",
		Fix:   awsUseClass + ", or remove this annotation",
		URL:   awsInTreeURL,
	},
	{
		When: with(awsClassic, isSet(awsAttributes)), State: Unclear,
		Cloud: "the controller in Kubernetes has refused the Service since v1.34, because a classic load balancer has no target groups",
		Fix:   "remove " + awsAttributes,
		URL:   awsInTreeURL,
	},
	{
		When: with(awsClassic, awsNetworkName), State: Unclear,
		Cloud: "the controller in Kubernetes does not turn a network load balancer into a classic load balancer, and leaves it as it is or creates another one",
		Fix:   "undo the change of the type and create another Service",
		URL:   awsInTreeURL,
	},
	{
		When: with(awsClassic, is(awsBackend, "http")), State: Ignored,
		Cloud: "the listeners of the classic load balancer are for HTTP, and it sends PROXY headers only for TCP and SSL",
		Fix:   "use " + awsBackend + ` "tcp"`,
		URL:   awsClassicURL,
	},
	{
		When: with(awsClassic, is(awsBackend, "https"), isSet(awsPrefix+"ssl-cert"), namesPort(awsPrefix+"ssl-ports")), State: Ignored,
		Cloud: "the listener of the classic load balancer is for HTTPS, and it sends PROXY headers only for TCP and SSL",
		Fix:   "use " + awsBackend + ` "ssl"`,
		URL:   awsClassicURL,
	},
}

// awsNotPorts is when annotations about single ports are not honoured.
var awsNotPorts = []Condition{
	{
		When: awsInTree, State: Ignored,
		Cloud: "the controller in Kubernetes creates the load balancer, and it does not know this annotation",
		Fix:   awsUseClass + ", or remove this annotation",
		URL:   awsInTreeURL,
	},
	{
		When: []Fact{hasClass(awsAutoClass)}, State: Unclear,
		Cloud: "AWS does not document whether EKS Auto Mode reads this annotation",
		Fix:   "use " + awsAttributes + "; or " + awsSeeTargetGroups,
		URL:   awsAutoURL,
	},
}

// awsNotAttributes is when attributes of target groups are not honoured.
var awsNotAttributes = []Condition{
	{
		When: awsInTreeNLB, State: Unclear, PersistsWhenRemoved: true,
		Cloud: "the controller in Kubernetes creates the load balancer, and it has read this annotation only since v1.34",
		Fix:   awsSeeTargetGroups + "; or " + awsUseClass,
		URL:   awsInTreeURL,
	},
	{
		When: awsClassic, State: Ignored,
		Cloud: "the load balancer is a classic one, which has no target groups",
		Fix:   "use " + awsPrefix + `proxy-protocol "*"; or ` + awsUseClass,
		URL:   awsInTreeURL,
	},
}

// awsNotAny is when none of the annotations is honoured.
var awsNotAny = []Condition{
	{
		When: []Fact{hasOtherClass(awsClass, awsAutoClass)}, State: Unclear,
		Cloud: "another controller creates the load balancer, and Usher does not know whether it reads this annotation",
		Fix:   "set Usher's proxy_protocol.mode",
		URL:   awsOwnerURL,
	},
	{
		When: []Fact{hasNoClass(), is(awsType, "external"), isNot(awsTargetType, "ip", "instance")}, State: Ignored,
		Cloud: "no controller creates a load balancer", Fix: "set " + awsTargetType + ` to "ip" or "instance"`,
		URL: awsOwnerURL,
	},
	{
		When: []Fact{hasNoClass(), is(awsType, "external", "nlb-ip"), awsClassicName}, State: Unclear,
		Cloud: "the old load balancer stays in AWS",
		Fix:   "undo the change of the type and create another Service",
		URL:   awsInTreeURL,
	},
	{
		When: with(awsInTree, hasUDPPort()), State: Unclear,
		Cloud: "the controller in Kubernetes refuses a Service with ports for TCP and UDP, and leaves its load balancer as it is",
		Fix:   "remove the UDP port; or " + awsUseClass,
		URL:   awsInTreeURL,
	},
	{
		When: with(awsInTree, hasSessionAffinity()), State: Unclear,
		Cloud: "the controller in Kubernetes refuses the Service, and leaves its load balancer as it is", Fix: `use "None"`,
		URL: awsInTreeURL,
	},
	{
		When: with(awsInTree, hasNoNodePort()), State: Ignored,
		Cloud: "the controller in Kubernetes creates no listener for the port",
		Fix:   `set spec.allocateLoadBalancerNodePorts to "true"; or ` + awsUseClass,
		URL:   awsInTreeURL,
	},
	{
		When: []Fact{hasNoNodePort(), isNot(awsType, "nlb-ip"), isNot(awsTargetType, "ip")}, State: Unclear,
		Cloud: "the controller refuses instances as targets, and leaves the load balancer as it is",
		Fix:   "set " + awsTargetType + ` to "ip"`,
	},
	{
		When: []Fact{has(awsAction+"TCP-<port>", "targetGroupARN")}, State: Unclear,
		Cloud: "the load balancer forwards to target groups that the Service does not configure", Fix: awsSeeTargetGroups,
	},
	{
		When: []Fact{has(awsAction+"TLS-<port>", "targetGroupARN")}, State: Unclear,
		Cloud: "the load balancer forwards to target groups that the Service does not configure", Fix: awsSeeTargetGroups,
	},
}
