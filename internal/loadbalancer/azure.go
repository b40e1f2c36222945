package loadbalancer

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const (
	azurePrefix   = prefix + "azure-"
	azureCreate   = azurePrefix + "pls-create"
	azureInternal = azurePrefix + "load-balancer-internal"
	azureProbe    = azurePrefix + "load-balancer-health-probe-protocol"

	azureDoubt = "HTTP probes come from the load balancer, not through the Private Link Service; " +
		"Microsoft documents that they carry a PROXY header while the Private Link Service sends one, and the listener rejects them if they do not"
)

// azureTrimmed finds the value without the spaces around it.
func azureTrimmed(value string, _ corev1.ServicePort) (string, bool, error) {
	return strings.TrimSpace(value), true, nil
}

// isNotTrue is the fact that an annotation is not "true", in whatever case.
func isNotTrue(key string) Fact {
	return annotation(key, `is not "true"`, func(value string) bool { return !strings.EqualFold(strings.TrimSpace(value), "true") })
}

var azureNotHonoured = []Condition{
	leavesClasses,
	{
		When: []Fact{isNotTrue(azureCreate)}, State: Unclear,
		Cloud: "the controller creates no Private Link Service, and leaves one that exists as it is",
		Fix:   "set " + azureCreate + ` to "true"; or delete the Private Link Service and remove this annotation`,
	},
	{
		When: []Fact{isNot(azureInternal, "true"), isNotTrue(azurePrefix + "disable-load-balancer-floating-ip")}, State: Unclear,
		Cloud: "the controller refuses a Private Link Service and does not change one that exists",
		Fix:   "set " + azureInternal + ` to "true", or remove this annotation`,
	},
	{
		When: []Fact{{
			Clause: `spec.ipFamilies is only "IPv6"`, fields: []field{specField("ipFamilies")},
			holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
				return slices.Equal(s.Spec.IPFamilies, []corev1.IPFamily{corev1.IPv6Protocol})
			},
		}},
		State: Unclear, Cloud: "the controller refuses a Private Link Service, which is for IPv4",
		Fix: "create another Service with IPv4, or remove this annotation",
	},
}

// azureCheck is how Azure probes a port: by an annotation for the port, or else by the port's appProtocol, or else by
// an annotation for all ports, and otherwise over TCP.
func azureCheck(s *corev1.Service, p corev1.ServicePort) httpCheck {
	ofPort := fmt.Sprintf(prefix+"port_%d_", p.Port)
	key, protocol, fix := azureProbe, s.Annotations[azureProbe], `use "tcp"`
	if p.AppProtocol != nil {
		key, protocol = ofPort+"health-probe_protocol", *p.AppProtocol
		fix = `it is the port's appProtocol where nothing is said; set it to "tcp"`
	}
	if value, found := s.Annotations[ofPort+"health-probe_protocol"]; found {
		key, protocol, fix = ofPort+"health-probe_protocol", value, `use "tcp"`
	}
	protocol = strings.ToLower(strings.TrimSpace(protocol))
	if protocol != "http" && protocol != "https" || strings.EqualFold(s.Annotations[ofPort+"no_probe_rule"], "true") {
		return httpCheck{}
	}
	return httpCheck{key: key, fix: fix + ", which works in both cases", protocol: "HTTP"}
}
