package consul

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

// gatewayWith returns a registration with a mode in its merged Proxy.Config.
func gatewayWith(t *testing.T, mode string) []*registration {
	t.Helper()
	regs, err := instancesType.decode(nil, response{body: []byte(`[{
		"Node": {"Node": "n", "Datacenter": "dc1"},
		"Service": {"ID": "edge", "Service": "edge", "Kind": "ingress-gateway",
			"Proxy": {"Config": {"usher": {"proxy_protocol": {"mode": "` + mode + `"}}}}}
	}]`)})
	if err != nil {
		t.Fatal(err)
	}
	return *regs.(*[]*registration)
}

// defaultsWith returns a proxy-defaults entry with a mode.
func defaultsWith(mode string) *proxyDefaults {
	return &proxyDefaults{config: map[string]any{
		settings.Key: map[string]any{"proxy_protocol": map[string]any{"mode": mode}},
	}}
}

// buildInstances builds instances alone.
func buildInstances(prev state, now time.Time, regs []*registration, d *proxyDefaults) *snapshotBuild {
	b := newSnapshotBuild(input{now: now}, prev)
	b.addInstances(regs, d)
	return b
}

func TestABadValueThatIsMergedLateIsTheProxyDefaultsAlone(t *testing.T) {
	var s state
	start := time.Now()
	for _, step := range []struct {
		name         string
		merged, said string // by the registration, by proxy-defaults
		after        time.Duration
		problems     int
		again        time.Duration
	}{
		{"both good", "strict", "strict", 0, 0, noDeadline},
		{"merged before proxy-defaults is read", "stict", "strict", 0, 0, mergeTime},
		{"both bad", "stict", "stict", 10 * time.Millisecond, 0, noDeadline},
		{"corrected, not merged yet", "stict", "strict", time.Minute, 0, mergeTime},
		{"still not", "stict", "strict", time.Minute + 300*time.Millisecond, 0, mergeTime - 300*time.Millisecond},
		{"merged", "strict", "strict", time.Minute + 500*time.Millisecond, 0, noDeadline},
		{"the registration's own", "stict", "strict", time.Hour, 0, mergeTime},
		{"for longer", "stict", "strict", time.Hour + mergeTime, 1, noDeadline},
		{"another one", "off!", "strict", time.Hour + 2*mergeTime, 1, noDeadline},
		{"corrected", "off", "strict", time.Hour + 3*mergeTime, 0, noDeadline},
	} {
		now := start.Add(step.after)
		b := buildInstances(s, now, gatewayWith(t, step.merged), defaultsWith(step.said))
		s = b.next
		if problems := b.snapshot.Problems; len(problems) != step.problems {
			t.Errorf("%s: problems %v, want %d", step.name, problems, step.problems)
		}
		if diff := cmp.Diff(step.again, b.rebuildAfter); diff != "" {
			t.Errorf("%s: look again (-want +got):\n%s", step.name, diff)
		}
	}
}

func TestBadSettingsOfAnInstanceKeepItsLastValidOnes(t *testing.T) {
	now := time.Now()
	before := buildInstances(state{}, now, gatewayWith(t, "strict"), defaultsWith("off"))
	in := buildInstances(before.next, now, gatewayWith(t, "stict"), defaultsWith("off")).snapshot.Instances
	if got := in[0].Registration; got.NeverValid || got.Settings.ProxyProtocol.Mode != settings.Strict {
		t.Errorf("own settings are %+v, want the last valid ones", got)
	}
	in = buildInstances(state{}, now, gatewayWith(t, "stict"), defaultsWith("off")).snapshot.Instances
	if !in[0].Registration.NeverValid {
		t.Errorf("own settings are %+v, want unknown ones", in[0].Registration)
	}
}

func TestTheServiceInFrontOfAnInstance(t *testing.T) {
	for meta, want := range map[string]gateway.KubernetesService{
		`{"k8s-namespace": "consul", "k8s-service-name": "consul-edge", "pod-name": "edge-1"}`: {Namespace: "consul", Name: "consul-edge"},
		`{"k8s-namespace": "consul"}`: {},
		`null`:                        {},
	} {
		regs, err := instancesType.decode(nil, response{body: []byte(`[{"Node": {"Node": "n"}, "Service": {"ID": "edge", "Kind": "ingress-gateway", "Meta": ` + meta + `}}]`)})
		if err != nil {
			t.Fatal(err)
		}
		if in, _ := (*regs.(*[]*registration))[0].instance("here"); in.Kubernetes != want {
			t.Errorf("%s: %+v, want %+v", meta, in.Kubernetes, want)
		}
	}
}

// decoded is JSON as Consul's answers decode.
func decoded(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func TestProxyConfigIsDecodedAsConsulDoes(t *testing.T) {
	ms := func(n int) *time.Duration {
		d := time.Duration(n) * time.Millisecond
		return &d
	}
	for name, test := range map[string]struct {
		config string
		want   gateway.ProxyConfig
	}{
		"empty":        {`{}`, gateway.ProxyConfig{}},
		"unknown keys": {`{"protocol": "http", "envoy_listener_json": "{"}`, gateway.ProxyConfig{}},
		"as documented": {`{
			"envoy_gateway_no_default_bind": true, "envoy_gateway_bind_tagged_addresses": true,
			"envoy_gateway_bind_addresses": {"a": {"address": "10.0.0.1", "port": 8443}, "b": {"Address": "::1"}},
			"max_request_headers_kb": 96, "xds_fetch_timeout_ms": 250
		}`, gateway.ProxyConfig{
			NoDefaultBind: true, BindTaggedAddresses: true,
			BindAddresses:       map[string]gateway.Address{"a": {Address: "10.0.0.1", Port: 8443}, "b": {Address: "::1"}},
			MaxRequestHeadersKB: 96, FetchTimeout: ms(250),
		}},
		"converted": {`{
			"envoy_gateway_no_default_bind": "true", "envoy_gateway_bind_tagged_addresses": 1,
			"envoy_gateway_bind_addresses": [{"a": [{"ADDRESS": "10.0.0.1", "Port": "1"}]}],
			"max_request_headers_kb": "0x60", "xds_fetch_timeout_ms": "0"
		}`, gateway.ProxyConfig{
			NoDefaultBind: true, BindTaggedAddresses: true,
			BindAddresses:       map[string]gateway.Address{"a": {Address: "10.0.0.1", Port: 1}},
			MaxRequestHeadersKB: 96, FetchTimeout: ms(0),
		}},
		"keys in any case":   {`{"Envoy_Gateway_No_Default_Bind": true}`, gateway.ProxyConfig{NoDefaultBind: true}},
		"older names":        {`{"envoy_mesh_gateway_no_default_bind": true}`, gateway.ProxyConfig{NoDefaultBind: true}},
		"older name beside":  {`{"envoy_mesh_gateway_no_default_bind": true, "envoy_gateway_no_default_bind": false}`, gateway.ProxyConfig{}},
		"a negative timeout": {`{"xds_fetch_timeout_ms": -1, "max_request_headers_kb": -1}`, gateway.ProxyConfig{}},
		"nothing":            {`{"xds_fetch_timeout_ms": null, "envoy_gateway_bind_addresses": null}`, gateway.ProxyConfig{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, problems := proxyConfig("here", decoded(t, test.config).(map[string]any))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
		})
	}
}

func TestAProxyConfigThatCannotBeDecodedIsAProblem(t *testing.T) {
	got, problems := proxyConfig("here", decoded(t, `{
		"envoy_gateway_no_default_bind": "perhaps", "envoy_gateway_bind_tagged_addresses": [true, false],
		"envoy_gateway_bind_addresses": {"a": "10.0.0.1", "b": {"address": "10.0.0.2", "port": "http"}},
		"max_request_headers_kb": 1.5, "xds_fetch_timeout_ms": "soon"
	}`).(map[string]any))
	if diff := cmp.Diff(gateway.ProxyConfig{BindAddresses: map[string]gateway.Address{"b": {Address: "10.0.0.2"}}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.String())
	}
	want := []string{
		`here: Proxy.Config.envoy_gateway_bind_addresses.a: "10.0.0.1" is not an object with address and port; correct it; until then Usher ignores it`,
		`here: Proxy.Config.envoy_gateway_bind_addresses.b.port: "http" is not a whole number; correct it; until then Usher ignores it`,
		`here: Proxy.Config.envoy_gateway_bind_tagged_addresses: [true,false] is not true or false; correct it; until then Usher ignores it`,
		`here: Proxy.Config.envoy_gateway_no_default_bind: "perhaps" is not true or false; correct it; until then Usher ignores it`,
		`here: Proxy.Config.max_request_headers_kb: 1.5 is not a whole number; correct it; until then Usher ignores it`,
		`here: Proxy.Config.xds_fetch_timeout_ms: "soon" is not a whole number; correct it; until then Usher ignores it`,
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestAMisspeltKeyIsReportedWhereItIs has ushr instead of usher in proxy-defaults, which the agent merges into the
// registration, too, and user in the registration alone.
func TestAMisspeltKeyIsReportedWhereItIs(t *testing.T) {
	value, err := proxyDefaultsType.decode(nil, response{body: []byte(`[{"Name": "global", "Config": {"ushr": {}}}]`)})
	if err != nil {
		t.Fatal(err)
	}
	d := value.(*proxyDefaults)
	if len(d.problems) != 1 || d.problems[0].Where != `proxy-defaults "global": Config.ushr` || !strings.Contains(d.problems[0].What, `did you mean "usher"?`) {
		t.Errorf("proxy-defaults: %v", d.problems)
	}
	merged := map[string]any{"ushr": map[string]any{}, "ushre": map[string]any{}}
	problems := settings.CheckKeys("Proxy.Config", merged, d.config)
	if len(problems) != 1 || problems[0].Where != "Proxy.Config.ushre" {
		t.Errorf("the registration: %v", problems)
	}
}
