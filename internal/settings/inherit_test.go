package settings

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWhatIsInheritedIsNotAnInstancesOwn(t *testing.T) {
	for name, test := range map[string]struct{ merged, inherited, own string }{
		"nothing":                {`null`, `null`, `null`},
		"nothing inherited":      {`{"a": 1}`, `null`, `{"a": 1}`},
		"all inherited":          {`{"proxy_protocol": {"mode": "off"}}`, `{"proxy_protocol": {"mode": "off"}}`, `null`},
		"another value":          {`{"proxy_protocol": {"mode": "off"}}`, `{"proxy_protocol": {"mode": "strict"}}`, `{"proxy_protocol": {"mode": "off"}}`},
		"one key of two":         {`{"proxy_protocol": {"mode": "off", "upstream": "v1"}}`, `{"proxy_protocol": {"mode": "off", "upstream": "v2"}}`, `{"proxy_protocol": {"upstream": "v1"}}`},
		"a key more":             {`{"proxy_protocol": {"mode": "off", "upstream": "v1"}}`, `{"proxy_protocol": {"mode": "off"}}`, `{"proxy_protocol": {"upstream": "v1"}}`},
		"inherited list of one":  {`{"proxy_protocol": {"mode": "off"}}`, `[{"proxy_protocol": [{"mode": "off"}]}]`, `null`},
		"own list of one":        {`{"proxy_protocol": [{"mode": "off"}]}`, `{"proxy_protocol": {"mode": "strict"}}`, `{"proxy_protocol": {"mode": "off"}}`},
		"equal lists":            {`{"proxy_protocol": {"versions": ["v1", "v2"]}}`, `{"proxy_protocol": {"versions": ["v1", "v2"]}}`, `null`},
		"a list and its element": {`{"proxy_protocol": {"versions": ["v1"]}}`, `{"proxy_protocol": {"versions": "v1"}}`, `null`},
		"another list":           {`{"proxy_protocol": {"versions": ["v1", "v2"]}}`, `{"proxy_protocol": {"versions": ["v1"]}}`, `{"proxy_protocol": {"versions": ["v1", "v2"]}}`},
		"a listener":             {`{"listeners": {"80": {"proxy_protocol": {"mode": "off"}}, "90": {"proxy_protocol": {"mode": "off"}}}}`, `{"listeners": {"80": {"proxy_protocol": {"mode": "off"}}}}`, `{"listeners": {"90": {"proxy_protocol": {"mode": "off"}}}}`},
		"a key of a listener":    {`{"listeners": {"80": {"proxy_protocol": {"mode": "off", "upstream": "v1"}}}}`, `{"listeners": {"80": {"proxy_protocol": {"mode": "off"}}}}`, `{"listeners": {"80": {"proxy_protocol": {"upstream": "v1"}}}}`},
		"a value that is an object": {
			`{"proxy_protocol": {"tlvs": {"type": 234, "name": "own"}}}`, `{"proxy_protocol": {"tlvs": {"type": 234, "name": "x"}}}`,
			`{"proxy_protocol": {"tlvs": {"type": 234, "name": "own"}}}`,
		},
		"inherited, and malformed": {`"strict"`, `"strict"`, `null`},
		"own, and malformed":       {`"strict"`, `{"a": 1}`, `"strict"`},
		"not merged yet":           {`null`, `{"a": 1}`, `null`},
		"another type":             {`{"a": "1"}`, `{"a": 1}`, `{"a": "1"}`},
	} {
		t.Run(name, func(t *testing.T) {
			got := StripInherited(decoded(t, test.merged), decoded(t, test.inherited))
			if diff := cmp.Diff(decoded(t, test.own), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// What Consul 1.15.1 and 1.22.0 make of a proxy-defaults entry and a
// registration in HCL.
func TestConsulsMergeIsUndone(t *testing.T) {
	inherited := decoded(t, `{
		"client_address": {"forwarded_proto": {"https_ports": [443, 444]}, "trusted_hops": 2},
		"listeners": {"8080": {"proxy_protocol": {"mode": "off", "versions": "v1"}}, "81": {"proxy_protocol": {"mode": "off"}}},
		"proxy_protocol": {"mode": "strict", "tlvs": {"header": "x-pd", "name": "pd", "type": "alpn"}, "trusted_cidrs": ["10.0.0.0/8", "2001:db8::/32"], "versions": ["v1", "v2"]}
	}`)
	merged := decoded(t, `{
		"client_address": {"forwarded_proto": "trust", "trusted_hops": 3},
		"listeners": {"8080": {"proxy_protocol": {"mode": "off", "versions": ["v2", "v1"]}}, "81": {"proxy_protocol": {"mode": "off"}}, "90": {"client_address": {"xff": "append"}}},
		"proxy_protocol": {"mode": "strict", "tlvs": {"header": "x-pd", "name": "own", "type": "authority"}, "trusted_cidrs": "192.0.2.1", "versions": "v2"}
	}`)
	got, problems := Decode("x", StripInherited(merged, inherited))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	want := Settings{
		Listener: Listener{
			ProxyProtocol: ProxyProtocol{
				Versions:     []Version{V2},
				TrustedCIDRs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")},
				TLVs:         []TLV{{Type: 2, Name: "own", Header: "x-pd"}}, // the header is Consul's doing
			},
			ClientAddress: ClientAddress{TrustedHops: 3, ForwardedProto: ForwardedProto{Type: ForwardedProtoTrust}},
		},
		Listeners: map[int]Listener{
			8080: {ProxyProtocol: ProxyProtocol{Versions: []Version{V1, V2}}},
			90:   {ClientAddress: ClientAddress{XFF: XFFAppend}},
		},
	}
	if diff := cmp.Diff(want, got, comparePolicies); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func decoded(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}
