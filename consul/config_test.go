package consul

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
)

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
		`here: envoy_gateway_bind_addresses.a: "10.0.0.1" is not an object with address and port; it counts as not set`,
		`here: envoy_gateway_bind_addresses.b.port: "http" is not a whole number; it counts as not set`,
		`here: envoy_gateway_bind_tagged_addresses: [true,false] is not true or false; it counts as not set`,
		`here: envoy_gateway_no_default_bind: "perhaps" is not true or false; it counts as not set`,
		`here: max_request_headers_kb: 1.5 is not a whole number; it counts as not set`,
		`here: xds_fetch_timeout_ms: "soon" is not a whole number; it counts as not set`,
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
