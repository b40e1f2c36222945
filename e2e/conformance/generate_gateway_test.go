//go:build e2e

package conformance

import (
	"fmt"
	"maps"
)

// registration makes what is particular about the gateway's registration.
func (g *generator) registration() object {
	config, over := object{}, object{}
	g.some(
		20,
		func() { config["xds_fetch_timeout_ms"] = g.IntN(5000) },
		func() { config["max_request_headers_kb"] = 1 + g.IntN(500) },
		func() { config["envoy_gateway_bind_tagged_addresses"] = true },
		func() {
			config["envoy_gateway_bind_addresses"] = object{"one": object{"Address": "10.0.2.1", "Port": 1}}
		},
		func() { over["Address"] = pick(g, "", "fd00::1") },
	)
	if config["envoy_gateway_bind_addresses"] != nil {
		g.some(50, func() { config["envoy_gateway_no_default_bind"] = true })
	}
	over["TaggedAddresses"] = object{"lan": object{"Address": "10.0.3.1", "Port": 1}}
	over["Proxy"] = object{"Config": config}
	return over
}

func (g *generator) proxyDefaults() {
	e := object{"Kind": "proxy-defaults", "Name": "global"}
	g.some(
		50,
		func() { e["AccessLogs"] = g.accessLogs() },
		func() { e["Config"] = object{"xds_fetch_timeout_ms": g.IntN(5000)} },
	)
	if len(e) > 2 {
		g.entry(e)
	}
}

func (g *generator) accessLogs() object {
	logs := object{"Enabled": g.maybe(90)}
	switch kind := pick(g, "", "stdout", "stderr", "file"); kind {
	case "":
	case "file":
		logs["Type"], logs["Path"] = kind, "/var/log/envoy.log"
	default:
		logs["Type"] = kind
	}
	switch pick(g, "default", "json", "text") {
	case "json":
		logs["JSONFormat"] = `{"method": "%REQ(:METHOD)%", "code": "%RESPONSE_CODE%"}`
	case "text":
		logs["TextFormat"] = pick(g, "%START_TIME%", "%START_TIME%\n")
	}
	g.some(30, func() { logs["DisableListenerLogs"] = true })
	return logs
}

func (g *generator) mesh() {
	if g.maybe(50) {
		return
	}
	e := object{"Kind": "mesh"}
	g.some(
		60,
		func() { e["TLS"] = object{"Outgoing": g.parameters()} },
		func() { e["ValidateClusters"] = true },
	)
	g.entry(e)
}

// parameters are versions and cipher suites that go together.
func (g *generator) parameters() object {
	p := object{}
	g.some(
		50,
		func() { p["TLSMinVersion"] = pick(g, "TLS_AUTO", "TLSv1_1", "TLSv1_2") },
		func() { p["TLSMaxVersion"] = pick(g, "TLS_AUTO", "TLSv1_2", "TLSv1_3") },
		func() {
			p["CipherSuites"] = []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"}
		},
	)
	return p
}

func (g *generator) ingress(listeners []any) {
	e := object{"Kind": "ingress-gateway", "Name": gatewayName, "Listeners": listeners}
	tls := g.parameters()
	switch g.tls {
	case "leaf":
		tls["Enabled"] = true
	case "sds":
		tls["SDS"] = object{"ClusterName": "sds", "CertResource": "all"}
	}
	if g.maybe(60) || g.tls != "" {
		e["TLS"] = tls
	}
	if g.limits && g.maybe(50) {
		e["Defaults"] = g.limit()
	}
	g.entry(e)
}

func (g *generator) limit() object {
	l := object{}
	g.some(
		50,
		func() { l["MaxConnections"] = 1 + g.IntN(1000) },
		func() { l["MaxPendingRequests"] = 1 + g.IntN(1000) },
		func() { l["MaxConcurrentRequests"] = 1 + g.IntN(1000) },
		func() { l["PassiveHealthCheck"] = g.healthCheck() },
	)
	return l
}

func (g *generator) healthCheck() object {
	c := object{"Interval": g.duration()}
	g.some(
		50,
		func() { c["MaxFailures"] = g.IntN(10) },
		func() { c["EnforcingConsecutive5xx"] = g.IntN(101) },
		func() { c["MaxEjectionPercent"] = g.IntN(101) },
		func() { c["BaseEjectionTime"] = g.duration() },
	)
	return c
}

func (g *generator) listener(port int, protocol string, names []string) object {
	l := object{"Port": port, "Protocol": protocol}
	if g.maybe(30) {
		l["TLS"] = g.listenerTLS()
	}
	if protocol == "tcp" {
		l["Services"] = []any{g.service(object{"Name": names[0]})}
		return l
	}
	if g.maybe(15) && g.meet {
		l["Services"] = []any{g.service(object{"Name": "*"})}
		return l
	}
	var services []any
	for i, name := range names {
		s := object{"Name": name}
		g.headers(s)
		if g.maybe(50) {
			s["Hosts"] = []string{name + ".example.com", fmt.Sprintf("*.%s.example.com", name), name + ".example.com:1234"}[:1+g.IntN(3)]
			if i == 0 && g.tls != "leaf" && g.maybe(30) {
				s["Hosts"] = []string{"*"}
			} else if g.maybe(30) {
				s["TLS"] = object{"SDS": object{"ClusterName": "sds", "CertResource": name}}
			}
		}
		services = append(services, g.service(s))
	}
	l["Services"] = services
	return l
}

// service gives a service of a listener its own limits, where no other
// listener or chain leads to the same instances.
func (g *generator) service(s object) object {
	if g.limits && !g.meet {
		maps.Copy(s, g.limit())
	}
	return s
}

func (g *generator) listenerTLS() object {
	tls := g.parameters()
	switch pick(g, "", "leaf", "sds") {
	case "leaf":
		tls["Enabled"] = true
	case "sds":
		tls["SDS"] = object{"ClusterName": "other", "CertResource": "one"}
	}
	return tls
}
