package doctor

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/usherproxy/usher/consul"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/status"
)

// parts are cases of Consul, Usher, Envoy and their versions.
var parts = []checkCase{
	{
		name: "no token", mode: "off", change: func(f *Facts) {
			f.Usher.Facts, f.Consul.Facts = nil, &consul.Inspection{Token: consul.TokenMissing, Hidden: true}
		},
		want: "outage token", has: "CONSUL_HTTP_TOKEN and CONSUL_HTTP_TOKEN_FILE are empty", remedy: newTokenCommand,
	},
	{
		name: "no token, beside an Usher that has one", mode: "off", change: func(f *Facts) { f.Consul.Facts.Token = consul.TokenMissing },
		want: "notice token", remedy: newTokenCommand,
	},
	{
		name: "an unknown token", mode: "off", change: func(f *Facts) { f.Usher.Facts, f.Consul.Facts = nil, &consul.Inspection{Token: consul.TokenUnknown} },
		want: "outage token", has: "Consul does not know the token.", remedy: newTokenCommand,
	},
	{
		name: "a token without rights", mode: "off", change: func(f *Facts) {
			f.Usher.Facts = nil
			f.Consul.Facts = &consul.Inspection{Token: consul.TokenKnown, Accessor: "1234", Hidden: true, Missing: []consul.MissingPermission{writeEdge}}
		},
		want: "outage token", has: `it lacks service:write on "edge"`, remedy: addPolicy(writeEdge.Rule),
	},
	{
		name: "a token with names", mode: "off", change: func(f *Facts) {
			f.Usher.Facts = nil
			f.Consul.Facts.Missing = []consul.MissingPermission{{Name: "service:read on every service", Rule: "service_prefix \"\" {\n  policy = \"read\"\n}\n", Optional: true}}
		},
		want: "notice token", has: "Nothing, if this is meant.", remedy: addPolicy("service_prefix \"\" {\n  policy = \"read\"\n}\n"),
	},
	{
		name: "a token that may not read the instances", mode: "off", change: func(f *Facts) {
			f.Usher.Facts.Source = status.Source{Error: "Permission denied", Since: now}
			f.Usher.Facts.Envoys = nil
			f.Consul.Facts.Instances, f.Consul.Facts.Missing = nil, []consul.MissingPermission{{Name: "node:read", Rule: "node_prefix \"\" {}\n"}}
		},
		want: "outage token, degraded usher", has: "it lacks node:read", remedy: addPolicy("node_prefix \"\" {}\n"),
	},
	{name: "ACLs are off", mode: "off", change: func(f *Facts) { f.Consul.Facts.Token = consul.TokenUnchecked }, fine: "Consul's ACLs are off"},
	{
		name: "a misspelt gateway", mode: "off", change: func(f *Facts) {
			f.Gateway.Name, f.Usher.Facts = "edeg", nil
			f.Consul.Facts.Entry, f.Consul.Facts.Instances = nil, nil
		},
		want: "outage gateway", has: `no ingress-gateway entry "edeg" (did you mean "edge"?)`, remedy: "usher doctor --gateway edge 10.0.0.5:8080",
	},
	{
		name: "a misspelt gateway, with an IPv6 address", mode: "off", change: func(f *Facts) {
			f.Gateway.Name, f.Usher.Facts = "edeg", nil
			f.Consul.Facts.Entry, f.Consul.Facts.Instances = nil, nil
			f.Listener.Facts.Target = "[::1]:8080"
		},
		want: "outage gateway", remedy: "usher doctor --gateway edge '[::1]:8080'",
	},
	{
		name: "a misspelt registration", mode: "off", change: func(f *Facts) {
			f.Gateway.Name, f.Usher.Facts, f.Consul.Facts.Entry = "edeg", nil, nil
		},
		want: "outage gateway", has: `1 instances of an ingress gateway are registered as "edeg"`, remedy: registerEdge,
	},
	{
		name: "a misspelt registration with Consul Enterprise", mode: "off", change: func(f *Facts) {
			f.Gateway, f.Usher.Facts, f.Consul.Facts.Entry = gateway.ID{Partition: "p1", Namespace: "ns1", Name: "edeg"}, nil, nil
		},
		want: "outage gateway", has: `no ingress-gateway entry "p1/ns1/edeg" (did you mean "edge"?)`,
		remedy: strings.Replace(registerEdge, "-register", "-register -partition p1 -namespace ns1", 1),
	},
	{
		name: "a misspelt gateway with Consul Enterprise", mode: "off", change: func(f *Facts) {
			f.Gateway, f.Usher.Facts = gateway.ID{Namespace: "ns1", Name: "edeg"}, nil
			f.Consul.Facts.Entry, f.Consul.Facts.Instances = nil, nil
		},
		want: "outage gateway", remedy: "usher doctor --gateway default/ns1/edge 10.0.0.5:8080",
	},
	{
		name: "an unknown token with Consul Enterprise", mode: "off", change: func(f *Facts) {
			f.Gateway.Partition, f.Gateway.Namespace = "p1", "ns1"
			f.Usher.Facts, f.Consul.Facts = nil, &consul.Inspection{Token: consul.TokenUnknown}
		},
		want: "outage token", remedy: inEnterprise(newTokenCommand),
	},
	{
		name: "a token without rights with Consul Enterprise", mode: "off", change: func(f *Facts) {
			f.Gateway.Partition, f.Gateway.Namespace, f.Usher.Facts = "p1", "ns1", nil
			f.Consul.Facts.Missing = []consul.MissingPermission{writeEdge}
		},
		want: "outage token", remedy: inEnterprise(addPolicy(writeEdge.Rule)),
	},
	{
		name: "a name that no entry resembles", mode: "off", change: func(f *Facts) {
			f.Gateway.Name, f.Usher.Facts, f.Consul.Facts.Entry = "something", nil, nil
		},
		want: "outage gateway", has: "Write the entry",
	},
	{
		name: "no gateway at all", mode: "off", change: func(f *Facts) {
			f.Gateway.Name, f.Usher.Facts, f.Consul.Facts = "", nil, &consul.Inspection{Token: consul.TokenUnchecked}
		},
		want: "outage gateway", has: "Consul has no ingress-gateway entry.",
	},
	{
		name: "several gateways", mode: "off", change: func(f *Facts) { f.Gateway.Name, f.Usher.Facts, f.Consul.Facts.Entry = "", nil, nil },
		want: "notice gateway", has: `the ingress-gateway entries are "edge", "other"`,
	},
	{
		name: "no such listener", mode: "off", change: func(f *Facts) { f.Consul.Facts.Entry.Listeners[0].Port = 80 },
		want: "notice gateway", has: "has no listener on port 8080",
	},
	{
		name: "no instance", mode: "off", change: func(f *Facts) { f.Consul.Facts.Instances = nil },
		want: "outage instances", remedy: registerEdge,
	},
	{
		name: "a critical instance", mode: "off", change: func(f *Facts) { f.Consul.Facts.Instances[0].Critical = []string{"edge listening"} },
		want: "notice instances", has: `the checks that are critical: "edge listening"`, remedy: "curl http://127.0.0.1:19001/ready",
	},
	{
		name: "Usher is not ready", mode: "off", change: func(f *Facts) { f.Usher.Facts.Usher = status.Usher{Reason: "Consul does not answer"} },
		want: "outage usher", has: "/readyz: Consul does not answer",
	},
	{
		name: "Consul is away", mode: "off", change: func(f *Facts) {
			f.Consul = Source[consul.Inspection]{Name: "Consul", Err: errors.New("refused")}
			f.Usher.Facts.Source = status.Source{Error: "connection refused", Since: now}
		},
		want: "degraded usher", has: "since 2026-07-01T12:00:00Z",
	},
	{
		name: "an Envoy is not connected", mode: "off", change: func(f *Facts) { f.Usher.Facts.Envoys = nil },
		want: "degraded envoys", has: "that is not this Usher", remedy: registerEdge,
	},
	{
		name: "an Envoy has no stream", mode: "off", change: noStream(""),
		want: "degraded envoys", has: "this may refuse the Envoy's token",
	},
	{
		name: "an Envoy does not trust the certificate", mode: "off", change: noStream("ssl.fail_verify_error"),
		want: "degraded envoys", has: "cluster.local_agent.ssl.fail_verify_error: 6\nIt does not trust the certificate",
	},
	{
		name: "an Envoy speaks TLS to a port without", mode: "off", change: noStream("ssl.connection_error"),
		want: "degraded envoys", has: "TLS handshakes fail",
	},
	{
		name: "an Envoy's control plane is away", mode: "off", change: noStream("upstream_cx_connect_fail"),
		want: "degraded envoys", has: "Nothing answers at the address in its bootstrap",
	},
	{
		name: "an Envoy does not answer", mode: "off", change: func(f *Facts) {
			f.Usher.Facts.Envoys[0].Types = []status.Type{{Type: "listener", Sync: status.Stale, Since: now.Add(-time.Minute)}, {Type: "route", Sync: status.Stale, Since: now.Add(-10 * time.Second)}}
		},
		want: "degraded envoys", has: "of the type listener since 2026-07-01T11:59:00Z",
	},
	{
		name: "an Envoy rejects a listener", mode: "off", change: func(f *Facts) {
			usherProblem(f, problem.Outage, `Envoy "edge-1"`, "it rejects the update of listener http:0.0.0.0:8080: cannot bind. Correct what Envoy names")
		},
		want: "outage problems", has: "cannot bind",
	},
	{
		name: "a misspelt block of the config file", mode: "off", change: misspeltBlock("/etc/usher.hcl", "edeg", "edge"),
		want: "degraded problems", has: "Correct the name in /etc/usher.hcl:3: it is \"edge\".", remedy: `sed -i --follow-symlinks '3 s/\(gateway[[:space:]]*\)"edeg"/\1"edge"/' /etc/usher.hcl`,
	},
	{
		name: "a misspelt block whose name is in the keyword", mode: "off", change: misspeltBlock("/etc/usher.hcl", "gateway", "gateways"),
		want: "degraded problems", remedy: `sed -i --follow-symlinks '3 s/\(gateway[[:space:]]*\)"gateway"/\1"gateways"/' /etc/usher.hcl`,
	},
	{
		name: "a misspelt block of a file in JSON", mode: "off", change: misspeltBlock("/etc/usher.json", "edeg", "edge"),
		want: "degraded problems", has: `Correct the name in /etc/usher.json:3: it is "edge".`,
	},
	{
		name: "a problem of another gateway", mode: "off", change: func(f *Facts) { f.Usher.Facts.Problems = []status.Problem{{Gateway: "other"}} },
		fine: "problems of other gateways: 1",
	},
	{
		name: "a problem that Usher and the plan have", mode: "off", change: func(f *Facts) {
			usherProblem(f, problem.Notice, "here", "this")
			f.Plan.Facts = &Plan{Problems: []problem.Problem{{Where: "here", What: "this"}}}
		},
		want: "notice problems", has: "here: this",
	},
	{name: "an old Consul", mode: "off", change: func(f *Facts) { f.Consul.Facts.Version = "1.14.3" }, want: "notice versions", has: "Consul 1.14.3 is older than 1.15"},
	{
		name: "an old Envoy", mode: "off", change: func(f *Facts) { f.Envoy.Facts.Release, f.Usher.Facts.Envoys[0].Release = "1.21.6", "1.21.6" },
		want: "degraded versions", has: "Envoy 1.21.6 is older than 1.22",
	},
	{
		name: "an Envoy too old for the mode", mode: "permissive", change: func(f *Facts) { f.Usher.Facts.Envoys[0].Release = "1.22.11" },
		want: "degraded versions", has: "too old for the mode permissive",
	},
	{
		name: "an old chart", mode: "off", change: func(f *Facts) {
			f.Chart.Facts = &Chart{Image: "hashicorp/consul-k8s-control-plane:1.2.1", TooOld: "it does not read the annotation; upgrade it"}
		},
		want: "degraded versions", has: "The Consul chart is too old: it does not read the annotation; upgrade it.",
	},
	{name: "a chart", mode: "off", change: func(f *Facts) { f.Chart.Facts = &Chart{Image: "consul-k8s:1.9.0"} }, fine: "consul-k8s consul-k8s:1.9.0"},
	{name: "an expired certificate", mode: "off", change: certificateFrom(-48*time.Hour, -time.Hour), want: "outage certificate", has: "has expired"},
	{name: "a certificate of the future", mode: "off", change: certificateFrom(time.Hour, 48*time.Hour), want: "outage certificate", has: "is not valid yet"},
	{name: "a certificate that expires", mode: "off", change: certificateFrom(-90*24*time.Hour, 5*24*time.Hour), want: "degraded certificate", has: "120h0m0s from now"},
	{name: "a certificate", mode: "off", change: certificateFrom(-time.Hour, 24*time.Hour), fine: "is valid until 2026-07-02T12:00:00Z"},
}

// inEnterprise gives commands about policies and tokens the flags of the namespace ns1 in the partition p1.
func inEnterprise(commands string) string {
	return strings.NewReplacer("consul acl policy create", "consul acl policy create -partition p1 -namespace ns1",
		"consul acl token create", "consul acl token create -partition p1 -namespace ns1",
		"consul acl token update", "consul acl token update -partition p1 -namespace ns1").Replace(commands)
}

// misspeltBlock lets line 3 of the config file have a wrong name in place of the right one.
func misspeltBlock(file, wrong, right string) func(*Facts) {
	return func(f *Facts) {
		f.Usher.Facts.Problems = []status.Problem{{
			Where: fmt.Sprintf("%s:3: gateway %q", file, wrong),
			What:  fmt.Sprintf("no ingress gateway has this name (did you mean %q?), so the block has no effect", right),
		}}
	}
}

// noStream takes the Envoy's stream away, for the reason that a counter has.
func noStream(counter string) func(*Facts) {
	return func(f *Facts) {
		f.Usher.Facts.Envoys, f.Envoy.Facts.XDS = nil, false
		f.Envoy.Facts.After[xdsCluster+counter] = 6
	}
}

func certificateFrom(begin, end time.Duration) func(*Facts) {
	return func(f *Facts) {
		f.Certificate.Facts = &Certificate{Names: []string{"usher.consul.svc"}, NotBefore: now.Add(begin), NotAfter: now.Add(end)}
	}
}
