package loadbalancer

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const upcloudKey = prefix + "upcloud-load-balancer-config"

// upcloudConfig is UpCloud's own description of a load balancer. Its controller fills in a frontend for every port of
// the Service where there are no frontends, and a backend for every port where there are no backends.
type upcloudConfig struct {
	Frontends []struct {
		Name, Mode string
		Backend    string `json:"default_backend"`
	}
	Backends []upcloudBackend
}

type upcloudBackend struct {
	Name       string
	Properties struct {
		Proxy     *string `json:"outbound_proxy_protocol"`
		CheckType string  `json:"health_check_type"`
		CheckURL  string  `json:"health_check_url"`
	}
}

func parseUpcloud(value string) (upcloudConfig, error) {
	var config upcloudConfig
	if json.Unmarshal([]byte(value), &config) != nil {
		return upcloudConfig{}, errors.New("not the JSON of an UpCloud load balancer; " +
			`use {"backends": [{"name": "…", "properties": {"outbound_proxy_protocol": "v2"}}]}`)
	}
	return config, nil
}

// upcloudName is the controller's name for the frontend and the backend of a port.
func upcloudName(p corev1.ServicePort) string {
	return cmp.Or(p.Name, fmt.Sprintf("config_%d", p.Port))
}

// frontend returns the mode of the frontend of a port, and the name of its backend; served is false if the port has no
// frontend. The only one of a Service with one port needs no name.
func (c upcloudConfig) frontend(p corev1.ServicePort) (mode, backend string, served bool) {
	name := upcloudName(p)
	for _, f := range c.Frontends {
		if f.Name == name || f.Name == "" && len(c.Frontends) == 1 {
			return cmp.Or(f.Mode, "http"), cmp.Or(f.Backend, name), true
		}
	}
	return "http", name, len(c.Frontends) == 0
}

// backend returns the backend that a port leads to; nil: none of these.
func (c upcloudConfig) backend(p corev1.ServicePort) *upcloudBackend {
	_, name, _ := c.frontend(p)
	for i, b := range c.Backends {
		if b.Name == name || b.Name == "" && len(c.Backends) == 1 {
			return &c.Backends[i]
		}
	}
	return nil
}

// upcloudProxy finds the version of the headers for a port.
func upcloudProxy(value string, port corev1.ServicePort) (string, bool, error) {
	config, err := parseUpcloud(value)
	if err != nil {
		return "", false, err
	}
	if b := config.backend(port); b != nil && b.Properties.Proxy != nil {
		return *b.Properties.Proxy, true, nil
	}
	return "", false, nil
}

var upcloudNotHonoured = []Condition{
	leavesClasses,
	{
		When: []Fact{{
			Clause: "a port of the Service has a frontend and no backend", holds: upcloudLacksBackend,
			fields: []field{annotationField(upcloudKey), specField("ports")},
		}},
		State: Unclear, Cloud: "UpCloud refuses the load balancer and does not change it",
		Fix: "list a backend with the name of each port of the Service",
	},
	{
		When: []Fact{{
			Clause: `the frontend of the port does not have the mode "tcp"`, fields: []field{annotationField(upcloudKey)},
			holds: func(s *corev1.Service, p corev1.ServicePort) bool {
				config, _ := parseUpcloud(s.Annotations[upcloudKey])
				mode, _, _ := config.frontend(p)
				return mode != "tcp"
			},
		}},
		State: Unclear, Cloud: "the load balancer is an HTTP proxy, and UpCloud does not document whether it sends headers then",
		Fix: `list a frontend with the name of the port and the mode "tcp"`,
	},
}

// upcloudLacksBackend reports whether a frontend leads to a backend that does not exist. If any backend is listed, the
// controller adds no others, and a backend needs no name only if the Service has one port.
func upcloudLacksBackend(s *corev1.Service, _ corev1.ServicePort) bool {
	config, _ := parseUpcloud(s.Annotations[upcloudKey])
	unnamed := func(b upcloudBackend) bool { return b.Name == "" }
	if len(s.Spec.Ports) > 1 && slices.ContainsFunc(config.Backends, unnamed) {
		return true
	}
	return len(config.Backends) > 0 && slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
		_, _, served := config.frontend(p)
		return served && config.backend(p) == nil
	})
}

// upcloudCheck is how UpCloud checks a port. With the traffic policy Local, its controller makes checks of kube-proxy
// out of those that are not described.
func upcloudCheck(s *corev1.Service, p corev1.ServicePort) httpCheck {
	config, _ := parseUpcloud(s.Annotations[upcloudKey])
	b := config.backend(p)
	if b == nil || !strings.HasPrefix(b.Properties.CheckType, "http") || strings.Contains(b.Properties.CheckURL, "://") {
		return httpCheck{}
	}
	return httpCheck{key: upcloudKey, fix: "set the backend's health_check_type to \"tcp\"", protocol: "HTTP"}
}
