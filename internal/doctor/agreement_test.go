package doctor

import (
	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/probe"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/status"
)

// agreement are cases of the load balancer and the listener.
var agreement = []checkCase{
	{name: "nothing is known", mode: "off", fine: "nothing shows that the load balancer sends headers"},
	{
		name: "off, and through the balancer every request gets 400", mode: "off", change: func(f *Facts) { throughBalancer(f, probe.AddedHeader) },
		want: "outage balancer and listener", has: "the probe through the load balancer: It is 400 to all.", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off, and every request gets 400, because no Envoy is on Usher", mode: "off", change: func(f *Facts) {
			throughBalancer(f, probe.AddedHeader)
			f.Envoy.Facts, f.Usher.Facts.Envoys, f.Usher.Facts.Gateways = nil, nil, nil
		},
		want: "outage balancer and listener, degraded envoys", has: `Usher's /status has no Envoy of gateway "edge"`, remedy: registerEdge,
	},
	{
		name: "off, and every request gets 400, because the Envoy of a Nomad job is not on Usher", mode: "off", change: func(f *Facts) {
			throughBalancer(f, probe.AddedHeader)
			f.Envoy.Facts, f.Usher.Facts.Envoys, f.Usher.Facts.Gateways = nil, nil, nil
			f.Consul.Facts.Instances[0].ServiceID = "_nomad-task-1"
		},
		want: "outage balancer and listener, degraded envoys", has: `Usher's /status has no Envoy of gateway "edge"`, hasNot: "consul connect envoy",
	},
	{
		name: "off, and Envoy cannot read requests", mode: "off", change: func(f *Facts) { grow(f, "http.ingress_upstream_8080.downstream_cx_protocol_error", 5) },
		want: "outage balancer and listener", has: "5 connections that are no HTTP (http.ingress_upstream_8080.downstream_cx_protocol_error: 7, then 12)", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off with TLS, and handshakes fail", mode: "off", change: func(f *Facts) {
			f.Listener.Facts.Results[0].Conclusion.TLS = true
			grow(f, "listener.10.0.0.5_8080.ssl.connection_error", 5)
		},
		want: "outage balancer and listener", has: "5 TLS handshakes that failed", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off, and Envoy cannot read some connections", mode: "off", change: func(f *Facts) {
			grow(f, "http.ingress_upstream_8080.downstream_cx_protocol_error", 5)
			grow(f, "http.ingress_upstream_8080.downstream_cx_total", 10)
		},
		want: "notice balancer and listener", has: "too few to show what the load balancer sends",
	},
	{
		name: "off, and there is one connection, with junk", mode: "off", change: func(f *Facts) {
			grow(f, "http.ingress_upstream_8080.downstream_cx_protocol_error", 1)
			grow(f, "http.ingress_upstream_8080.downstream_cx_total", 1)
		},
		want: "notice balancer and listener", hasNot: "connections of clients",
	},
	{
		name: "off with TLS, and some handshakes fail", mode: "off", change: func(f *Facts) {
			f.Listener.Facts.Results[0].Conclusion.TLS = true
			grow(f, "listener.10.0.0.5_8080.ssl.connection_error", 5)
			grow(f, "listener.10.0.0.5_8080.ssl.handshake", 5)
		},
		want: "notice balancer and listener", has: "5 TLS handshakes that failed",
	},
	{
		name: "off with TLS, and connections are those of the handshakes that fail", mode: "off", change: func(f *Facts) {
			f.Listener.Facts.Results[0].Conclusion.TLS = true
			grow(f, "listener.10.0.0.5_8080.ssl.connection_error", 5)
			grow(f, "http.ingress_upstream_8080.downstream_cx_total", 5)
		},
		want: "outage balancer and listener", hasNot: "connections of clients", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off, and Envoys report some malformed connections to Usher", mode: "off", change: func(f *Facts) {
			f.Envoy.Facts = nil
			f.Usher.Facts.After[Reported{GatewayPort{"edge", 8080}, "malformed"}] = 4
			f.Usher.Facts.After[Reported{GatewayPort{"edge", 8080}, "no_header"}] = 4
		},
		want: "notice balancer and listener", has: "4 of the type malformed",
	},
	{
		name: "strict, and Envoys report few connections that it refuses", mode: "strict", change: func(f *Facts) {
			f.Envoy.Facts = nil
			f.Usher.Facts.After[Reported{GatewayPort{"edge", 8080}, "refused"}] = 2
		},
		want: "notice balancer and listener", has: "2 of the type refused",
	},
	{
		name: "strict, and all headers have another version", mode: "strict", change: func(f *Facts) { grow(f, proxyPrefix+"versions.v1.disallowed", 3) },
		want: "outage balancer and listener", has: "3 connections whose PROXY header has a version that is not accepted", remedy: hcl(`mode = "strict" versions = ["v1", "v2"]`),
	},
	{
		name: "strict, and headers have another version or are absent", mode: "strict", change: func(f *Facts) {
			grow(f, proxyPrefix+"versions.v1.disallowed", 3)
			grow(f, proxyPrefix+"not_found_disallowed", 3)
		},
		want: "outage balancer and listener", has: "of a version that listener 8080", remedy: hcl(`mode = "strict" versions = ["v1", "v2"]`),
	},
	{
		name: "strict, and some headers have another version", mode: "strict", change: func(f *Facts) {
			grow(f, proxyPrefix+"versions.v1.disallowed", 3)
			grow(f, proxyPrefix+"versions.v2.found", 3)
		},
		want: "degraded balancer and listener", has: "of a version that listener 8080", remedy: hcl(`mode = "strict" versions = ["v1", "v2"]`),
	},
	{
		name: "permissive, and some headers have another version", mode: "permissive", change: func(f *Facts) {
			grow(f, proxyPrefix+"versions.v1.disallowed", 3)
			grow(f, proxyPrefix+"not_found_allowed", 3)
		},
		want: "degraded balancer and listener, notice strict", remedy: hcl(`mode = "permissive" versions = ["v1", "v2"]`),
	},
	{
		name: "strict, and one header has another version", mode: "strict", change: func(f *Facts) { grow(f, proxyPrefix+"versions.v1.disallowed", 1) },
		want: "notice balancer and listener", has: "too few",
	},
	{
		name: "strict, and what follows the header is not HTTP", mode: "strict", change: func(f *Facts) { grow(f, "http.ingress_upstream_8080.downstream_cx_protocol_error", 1) },
		fine: "nothing shows whether the load balancer sends headers",
	},
	{
		name: "permissive with TLS, and handshakes fail", mode: "permissive", change: func(f *Facts) {
			f.Listener.Facts.Results[0].Conclusion.TLS = true
			grow(f, "listener.10.0.0.5_8080.ssl.connection_error", 5)
		},
		fine: "nothing shows whether the load balancer sends headers",
	},
	{
		name: "strict, with an old Envoy, and Usher knows another strict listener only", mode: "strict", change: func(f *Facts) {
			f.Usher.Facts.Gateways[0].Listeners[0].Port = 9090
			grow(f, "proxy_proto.not_found_disallowed", 3)
		},
		fine: "nothing shows whether the load balancer sends headers",
	},
	{
		name: "strict, and few have no header", mode: "strict", change: func(f *Facts) { grow(f, proxyPrefix+"not_found_disallowed", 2) },
		want: "notice balancer and listener", has: "that the mode strict does not serve",
	},
	{
		name: "permissive, and some garbage", mode: "permissive", change: func(f *Facts) {
			grow(f, "http.ingress_upstream_8080.downstream_cx_protocol_error", 3)
			grow(f, "http.ingress_upstream_8080.downstream_cx_total", 9)
		},
		want: "notice balancer and listener",
	},
	{
		name: "off, and Envoys report headers to Usher", mode: "off", change: func(f *Facts) {
			f.Envoy.Facts = nil
			f.Usher.Facts.After[Reported{GatewayPort{"edge", 8080}, "malformed"}] = 4
		},
		want: "outage balancer and listener", has: "reported to Usher: 4 of the type malformed", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off, and Usher has concluded it", mode: "off", change: func(f *Facts) {
			usherProblem(f, problem.Outage, "gateway edge: listener 8080", problemText("its mode is off"))
		},
		want: "outage balancer and listener", has: "what looks like a PROXY header, from 10.0.3.7", remedy: hcl(`mode = "permissive"`), ill: "Usher has no problem",
	},
	{
		name: "off, and the Service switches headers on", mode: "off", change: func(f *Facts) { behindService(f, settings.Strict) },
		want: "outage balancer and listener", has: "the Service consul/edge in Kubernetes switches PROXY headers on", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off, and the target is the balancer", mode: "off", change: func(f *Facts) { f.Listener.Facts = report(probe.Conclusion{Finding: probe.AddedHeader}) },
		want: "outage balancer and listener", has: "It is 400 to all.", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off, and the service speaks first", mode: "off", change: func(f *Facts) {
			f.Listener.Facts.Results[0].Conclusion.SpeaksFirst = true
			behindService(f, settings.Strict)
		},
		want: "outage balancer and listener", remedy: hcl(`mode = "strict"`),
	},
	{
		name: "off in a file", mode: "off", change: func(f *Facts) {
			setIn("/etc/usher/usher.hcl:3", "off")(f)
			throughBalancer(f, probe.AddedHeader)
		},
		want: "outage balancer and listener", has: "The mode is set in /etc/usher/usher.hcl:3.",
		remedy: `sed -i --follow-symlinks '3 s/\(mode[[:space:]]*[=:][[:space:]]*"\{0,1\}\)off/\1permissive/' /etc/usher/usher.hcl`,
	},
	{
		name: "off in a file in JSON", mode: "off", change: func(f *Facts) {
			setIn("/etc/usher/usher.json:1", "off")(f)
			throughBalancer(f, probe.AddedHeader)
		},
		want: "outage balancer and listener", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off in a line of a file that is for another gateway, too", mode: "off", change: func(f *Facts) {
			setIn("/etc/usher/usher.hcl:3", "off")(f)
			f.Usher.Facts.Gateways = append(f.Usher.Facts.Gateways, status.Gateway{Name: "other", Listeners: f.Usher.Facts.Gateways[0].Listeners})
			throughBalancer(f, probe.AddedHeader)
		},
		want: "outage balancer and listener", has: "The mode is set in /etc/usher/usher.hcl:3. If that line", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off in a line of a file that is for another port, too", mode: "off", change: func(f *Facts) {
			setIn("/etc/usher/usher.hcl:3", "off")(f)
			g := &f.Usher.Facts.Gateways[0]
			other := g.Listeners[0]
			other.Port = 9090
			g.Listeners = append(g.Listeners, other)
			throughBalancer(f, probe.AddedHeader)
		},
		want: "outage balancer and listener", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "permissive in a file, and headers only for ten minutes", mode: "permissive", change: headersOnlyAnd(setIn("/etc/usher/usher.hcl:3", "permissive")),
		want: "notice strict", has: "The mode is set in /etc/usher/usher.hcl:3. If that line", remedy: hcl(`mode = "strict"`),
	},
	{
		name: "off, and only Usher knows that", mode: "off", change: func(f *Facts) {
			f.Listener.Facts = nil
			behindService(f, settings.Strict)
		},
		want: "outage balancer and listener", has: "Envoy answers 400, or closes the connection.", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off, and Envoy has had errors earlier", mode: "off", change: func(f *Facts) { f.Envoy.Facts.Before["http.ingress_upstream_8080.downstream_cx_protocol_error"] = 5 },
		want: "notice balancer and listener", has: "since it started: http.ingress_upstream_8080.downstream_cx_protocol_error: 5",
	},
	{
		name: "off, and Envoy can read no request", mode: "off", change: func(f *Facts) {
			grow(f, "http.ingress_upstream_8080.downstream_cx_protocol_error", 5)
			grow(f, "http.ingress_upstream_8080.downstream_cx_total", 5)
		},
		want: "outage balancer and listener", hasNot: "connections of clients", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off without TLS, and handshakes fail at another listener of the port", mode: "off",
		change: func(f *Facts) { grow(f, "listener.10.0.0.6_8080.ssl.connection_error", 5) },
		fine:   "nothing shows that the load balancer sends headers",
	},
	{
		name: "off, and another gateway's Envoys report headers", mode: "off",
		change: func(f *Facts) {
			f.Envoy.Facts = nil
			f.Usher.Facts.After[Reported{GatewayPort{"other", 8080}, "malformed"}] = 4
		},
		fine: "nothing shows that the load balancer sends headers",
	},
	{
		name: "strict, and another port closes connections", mode: "strict",
		change: func(f *Facts) { grow(f, "proxy_proto.http_10_0_0_5_9090.not_found_disallowed", 3) },
		fine:   "nothing shows whether the load balancer sends headers",
	},
	{
		name: "off, and another port has errors", mode: "off", change: func(f *Facts) { grow(f, "http.ingress_upstream_9090.downstream_cx_protocol_error", 5) },
		fine: "nothing shows that the load balancer sends headers",
	},
	{
		name: "off, and the balancer sends nothing", mode: "off", change: func(f *Facts) { throughBalancer(f, probe.Off) },
		fine: "the load balancer and listener 8080 agree: the mode is off, and it sends none",
	},
	{
		name: "off, and requests arrive without a header", mode: "off", change: func(f *Facts) { grow(f, "http.ingress_upstream_8080.downstream_cx_total", 5) },
		fine: "it sends none",
	},
	{
		name: "strict, and the balancer sends nothing", mode: "strict", change: func(f *Facts) { throughBalancer(f, probe.Strict) },
		want: "outage balancer and listener", has: "The load balancer sends no PROXY headers, and listener 8080", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "strict, and Envoy closes connections without a header", mode: "strict", change: func(f *Facts) { grow(f, proxyPrefix+"not_found_disallowed", 3) },
		want: "outage balancer and listener", has: "3 connections without a PROXY header that were closed", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "strict in a file", mode: "strict", change: func(f *Facts) {
			setIn("usher's.hcl:12", "strict")(f)
			grow(f, proxyPrefix+"not_found_disallowed", 3)
		},
		want: "outage balancer and listener", remedy: `sed -i --follow-symlinks '12 s/\(mode[[:space:]]*[=:][[:space:]]*"\{0,1\}\)strict/\1permissive/' 'usher'\''s.hcl'`,
	},
	{
		name: "strict, and Usher has concluded it", mode: "strict", change: func(f *Facts) {
			usherProblem(f, problem.Degraded, "gateway edge: listener 8080", problemText("its mode is strict"))
		},
		want: "outage balancer and listener", has: "because none begins with a PROXY header", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "strict, and some have no header", mode: "strict", change: func(f *Facts) {
			grow(f, proxyPrefix+"not_found_disallowed", 3)
			grow(f, proxyPrefix+"versions.v2.found", 90)
		},
		want: "degraded balancer and listener", has: "90 connections with a PROXY header", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "strict, with an old Envoy whose counters have no prefix", mode: "strict", change: func(f *Facts) { grow(f, "proxy_proto.not_found_disallowed", 3) },
		want: "outage balancer and listener", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "off, with an old Envoy whose counters are those of another listener", mode: "off", change: func(f *Facts) { grow(f, "proxy_proto.versions.v2.found", 3) },
		fine: "nothing shows that the load balancer sends headers",
	},
	{
		name: "strict, with an old Envoy and another strict listener", mode: "strict", change: func(f *Facts) {
			g := &f.Usher.Facts.Gateways[0]
			other := g.Listeners[0]
			other.Port = 9090
			g.Listeners = append(g.Listeners, other)
			grow(f, "proxy_proto.not_found_disallowed", 3)
		},
		fine: "nothing shows whether the load balancer sends headers",
	},
	{
		name: "strict, with an old Envoy and another listener that is off", mode: "strict", change: func(f *Facts) {
			g := &f.Usher.Facts.Gateways[0]
			other := g.Listeners[0]
			other.Port, other.InForce = 9090, "off"
			g.Listeners = append(g.Listeners, other)
			grow(f, "proxy_proto.not_found_disallowed", 3)
		},
		want: "outage balancer and listener", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "strict, with an old Envoy and without Usher", mode: "strict", change: func(f *Facts) {
			f.Usher.Facts = nil
			grow(f, "proxy_proto.not_found_disallowed", 3)
		},
		want: "outage balancer and listener", remedy: hcl(`mode = "permissive"`),
	},
	{
		name: "strict, with an old Envoy, other listeners and without Usher", mode: "strict", change: func(f *Facts) {
			f.Usher.Facts = nil
			f.Consul.Facts.Entry.Listeners = append(f.Consul.Facts.Entry.Listeners, gateway.Listener{Port: 9090})
			grow(f, "proxy_proto.not_found_disallowed", 3)
		},
		fine: "nothing shows whether the load balancer sends headers",
	},
	{
		name: "strict, and it agrees", mode: "strict", change: func(f *Facts) { throughBalancer(f, probe.Off) },
		fine: "agree: the mode is strict, and it sends PROXY headers",
	},
	{
		name: "permissive, and Envoy refuses a second header", mode: "permissive", change: func(f *Facts) {
			throughBalancer(f, probe.Off)
			f.Balancer.Facts.Results[0].Answers = []probe.Answer{{Sent: "PROXY v1", Reaction: probe.HTTP, Status: 400, Server: "envoy"}}
		},
		fine: "agree: the mode is permissive, and it sends PROXY headers",
	},
	{
		name: "permissive, and the balancer reads HTTP", mode: "permissive", change: func(f *Facts) {
			throughBalancer(f, probe.Off)
			f.Balancer.Facts.Results[0].Conclusion.Envoy = true // it passes answers on
			f.Balancer.Facts.Results[0].Answers = []probe.Answer{
				{Sent: "no PROXY header", Reaction: probe.HTTP, Status: 200, Server: "envoy"},
				{Sent: "PROXY v1", Reaction: probe.HTTP, Status: 400, Server: "nginx"},
				{Sent: "PROXY v2", Reaction: probe.HTTP, Status: 400},
			}
		},
		fine: "it refuses the probe's header itself",
	},
	{
		name: "permissive, and another version", mode: "permissive", change: func(f *Facts) {
			f.Listener.Facts.Results[0].Conclusion.Versions = []string{"v1"}
			grow(f, "http.ingress_upstream_8080.downstream_cx_protocol_error", 5)
		},
		want: "degraded balancer and listener", remedy: hcl(`mode = "permissive" versions = ["v1", "v2"]`),
	},
	{
		name: "permissive, and garbage", mode: "permissive", change: func(f *Facts) { grow(f, "http.ingress_upstream_8080.downstream_cx_protocol_error", 5) },
		want: "degraded balancer and listener", has: "Look for clients",
	},
	{
		name: "permissive, and headers only for ten minutes", mode: "permissive", change: headersOnlyAnd(func(*Facts) {}),
		want: "notice strict", has: `usher_listener_headers_only{gateway="edge", port="8080"} 1`, remedy: hcl(`mode = "strict"`),
	},
	{
		name: "permissive with headers only, and Consul was not asked", mode: "permissive", change: headersOnlyAnd(func(f *Facts) { f.Consul.Facts = nil }),
		fine: "as far as this Usher's Envoys report; not known to be safe for strict: Consul has not said which instances there are",
	},
	{
		name: "permissive with headers only, and Consul has no instance", mode: "permissive", change: headersOnlyAnd(func(f *Facts) { f.Consul.Facts.Instances = nil }),
		want: "outage instances", remedy: registerEdge, fine: "not known to be safe for strict: Consul has not said which instances there are",
	},
	{
		name: "permissive with headers only, and the token may not read all", mode: "permissive", change: headersOnlyAnd(func(f *Facts) { f.Consul.Facts.Missing = []consul.MissingPermission{writeEdge} }),
		want: "notice token", remedy: addPolicy(writeEdge.Rule), fine: "not known to be safe for strict: the token may not read all instances",
	},
	{
		name: "permissive with headers only, and another instance is elsewhere", mode: "permissive", change: headersOnlyAnd(func(f *Facts) {
			f.Consul.Facts.Instances = append(f.Consul.Facts.Instances, consul.RegisteredInstance{Node: "n2", ServiceID: "edge-2"})
		}),
		want: "degraded envoys", remedy: registerEdge, fine: `not known to be safe for strict: this Usher does not serve the instances "edge-2"`,
	},
	{
		name: "permissive with headers only, and an instance of another node has the same service ID", mode: "permissive", change: headersOnlyAnd(func(f *Facts) {
			f.Consul.Facts.Instances = append(f.Consul.Facts.Instances, consul.RegisteredInstance{Node: "n2", ServiceID: "edge-1"})
		}),
		want: "degraded envoys", remedy: registerEdge, fine: `not known to be safe for strict: this Usher does not serve the instances "edge-1"`,
	},
	{
		name: "permissive with headers only, and off elsewhere", mode: "permissive", change: headersOnlyAnd(func(f *Facts) {
			g := &f.Usher.Facts.Gateways[0]
			off := g.Listeners[0]
			off.InForce = "off"
			g.Listeners = append(g.Listeners, off)
		}),
		fine: "not known to be safe for strict: Usher does not send the mode permissive to all of them",
	},
	{
		name: "permissive, and no headers", mode: "permissive", change: func(f *Facts) { grow(f, proxyPrefix+"not_found_allowed", 3) },
		want: "notice strict", has: "sends no PROXY headers to listener 8080",
	},
	{
		name: "permissive, and both", mode: "permissive", change: func(f *Facts) {
			grow(f, proxyPrefix+"not_found_allowed", 3)
			grow(f, proxyPrefix+"versions.v1.found", 3)
		},
		want: "notice strict", has: "The mode strict would close connections to listener 8080", fine: "connections come with headers and without",
	},
	{
		name: "permissive, and headers now", mode: "permissive", change: func(f *Facts) { grow(f, proxyPrefix+"versions.v1.found", 3) },
		fine: "strict is safe when usher_listener_headers_only of Usher is 1",
	},
	{
		name: "permissive, and none earlier", mode: "permissive", change: func(f *Facts) {
			f.Envoy.Facts.Before[proxyPrefix+"not_found_allowed"] = 3
		},
		fine: "not yet safe for strict",
	},
	{
		name: "addresses outside trusted_cidrs", mode: "strict", change: func(f *Facts) {
			f.Usher.Facts.Before[Reported{GatewayPort{"edge", 8080}, "untrusted"}] = 2
			f.Usher.Facts.After[Reported{GatewayPort{"edge", 8080}, "untrusted"}] = 5
		},
		want: "degraded trusted_cidrs", has: "3 of the type untrusted",
	},
	{
		name: "few addresses outside trusted_cidrs", mode: "strict", change: func(f *Facts) {
			f.Usher.Facts.After[Reported{GatewayPort{"edge", 8080}, "untrusted"}] = 2
		},
		want: "notice trusted_cidrs", has: "2 of the type untrusted",
	},
	{
		name: "strict, and the balancer's connections are closed", mode: "strict", change: func(f *Facts) { throughBalancer(f, probe.ClosesAll) },
		want: "outage balancer and listener", has: "the probe through the load balancer: It is closes.",
	},
	{
		name: "strict, and the balancer's connections are closed after their headers", mode: "strict", change: func(f *Facts) {
			throughBalancer(f, probe.ClosesLater)
			grow(f, proxyPrefix+"versions.v2.found", 5)
		},
		want: "outage balancer and listener", has: "reads headers and closes.",
	},
	{
		name: "strict, and only the probe's connections are closed", mode: "strict", change: func(f *Facts) {
			throughBalancer(f, probe.ClosesAll)
			f.Usher.Facts.After[Reported{GatewayPort{"edge", 8080}, "header"}] = 5
		},
		want: "notice balancer and listener", has: "5 of the type header",
	},
	{
		name: "nothing listens", mode: "off", change: func(f *Facts) { f.Listener.Facts = report(probe.Conclusion{Finding: probe.NothingListens}) },
		want: "outage listener", has: "It is nothing listens.",
	},
	{
		name: "it closes everything", mode: "off", change: func(f *Facts) { f.Listener.Facts = report(probe.Conclusion{Finding: probe.ClosesAll}) },
		want: "degraded listener", has: "Check the address.",
	},
	{
		name: "its addresses differ", mode: "off", change: func(f *Facts) {
			f.Listener.Facts.Results = append(f.Listener.Facts.Results, report(probe.Conclusion{Finding: probe.Strict}).Results...)
		},
		want: "degraded listener", has: "they differ",
	},
	{
		name: "it does not do what Usher sends", mode: "off", change: func(f *Facts) { f.Usher.Facts.Gateways[0].Listeners[0].InForce = "strict" },
		want: "degraded listener", has: "Usher sends the mode strict, and the mode is off", remedy: "usher status",
	},
}

// headersOnlyAnd lets connections to the listener have begun with headers only for ten minutes, and changes something else.
func headersOnlyAnd(change func(*Facts)) func(*Facts) {
	return func(f *Facts) {
		f.Usher.Facts.HeadersOnly[GatewayPort{"edge", 8080}] = true
		change(f)
	}
}
