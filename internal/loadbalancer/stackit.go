package loadbalancer

import (
	"regexp"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// Two controllers read STACKIT's annotations: STACKIT's own reads those with both prefixes, and yawol, which came
// before it, reads its own.
const (
	stackitKey    = "lb.stackit.cloud/tcp-proxy-protocol"
	stackitPorts  = stackitKey + "-ports-filter"
	yawolPrefix   = "yawol.stackit.cloud/"
	yawolKey      = yawolPrefix + "tcpProxyProtocol"
	yawolPorts    = yawolKey + "PortsFilter"
	yawolClass    = "stackit.cloud/yawol"
	yawolURL      = "https://github.com/stackitcloud/yawol/blob/main/internal/helper/service.go"
	onlyOneFilter = "use " + stackitPorts
)

// bothSay is the fact that a Service has both annotations, and differ says that they do not agree.
func bothSay(a, b string, differ func(a, b string) bool) Fact {
	return Fact{
		Clause: b + " differs from " + a, fields: []field{annotationField(a), annotationField(b)},
		holds: func(s *corev1.Service, _ corev1.ServicePort) bool {
			valueA, foundA := s.Annotations[a]
			valueB, foundB := s.Annotations[b]
			return foundA && foundB && differ(valueA, valueB)
		},
	}
}

// onlyYawolPorts is the fact that the Service has yawol's list of ports alone, and holds says something about it.
func onlyYawolPorts(clause string, holds func(list string, port int32) bool) Fact {
	return Fact{
		Clause: yawolPorts + " " + clause, fields: []field{annotationField(stackitPorts), annotationField(yawolPorts)},
		holds: func(s *corev1.Service, p corev1.ServicePort) bool {
			_, own := s.Annotations[stackitPorts]
			list, found := s.Annotations[yawolPorts]
			return found && !own && holds(list, p.Port)
		},
	}
}

var stackitNotHonoured = []Condition{
	leavesClasses,
	{
		When: []Fact{annotation(yawolPrefix+"className", `is set, and not to "stackit"`, func(name string) bool {
			return name != "" && name != "stackit"
		})},
		State: Unclear, Cloud: "releases of STACKIT's controller differ in whether they handle the Service",
		Fix: "remove that annotation",
	},
	refuses(bothSay(stackitKey, yawolKey, func(a, b string) bool {
		onA, _ := strconv.ParseBool(a)
		onB, _ := strconv.ParseBool(b)
		return onA != onB
	}), "remove "+yawolKey),
	refuses(bothSay(stackitPorts, yawolPorts, func(a, b string) bool { return a != b }), "remove "+yawolPorts),
	refuses(onlyYawolPorts("is not a list of ports", func(list string, _ int32) bool {
		_, valid := parsePortNumbers(list)
		return !valid
	}), onlyOneFilter),
	{
		When: []Fact{onlyYawolPorts("does not name the port", func(list string, port int32) bool {
			ports, _ := parsePortNumbers(list)
			return !slices.Contains(ports, port)
		})},
		State: Ignored, Cloud: "STACKIT's controller sends no headers to the port", Fix: onlyOneFilter + ", or name the port",
	},
}

var plainPortList = regexp.MustCompile(`^[1-9][0-9]*(,[1-9][0-9]*)*$`)

var yawolNotHonoured = []Condition{
	{
		When:  []Fact{hasOtherClass(yawolClass)},
		State: Unclear, Cloud: "it depends on the settings of yawol's controller whether it handles the Service", URL: yawolURL,
		Fix: `create another Service without a class, or with "` + yawolClass + `"`,
	},
	{
		When: []Fact{onlyYawolPorts(`is not like "80,443"`, func(list string, _ int32) bool {
			return !plainPortList.MatchString(list)
		})},
		State: Unclear, Cloud: "yawol's controller sends headers to all ports, and STACKIT's does not", URL: yawolURL,
		Fix: `use ports of the Service, such as "80,443", without spaces`,
	},
	{
		When:  []Fact{isSet(stackitPorts)},
		State: Unclear, Cloud: "STACKIT's controller reads that list, and yawol's does not", URL: yawolURL,
		Fix: "use " + stackitKey + " as well, or remove that list",
	},
}
