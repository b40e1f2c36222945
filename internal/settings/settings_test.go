package settings

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type (
	obj   = map[string]any
	array = []any
)

func usher(mode any) obj {
	return obj{"proxy_protocol": obj{"mode": mode}}
}

func pp(members obj) obj { return obj{"proxy_protocol": members} }

func ca(members obj) obj { return obj{"client_address": members} }

func says(p Listener) Settings { return Settings{Listener: p} }

var comparePolicies = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestDecodeSettings(t *testing.T) {
	strict := says(Listener{ProxyProtocol: ProxyProtocol{Mode: Strict}})
	prefix := netip.MustParsePrefix
	for name, tc := range map[string]struct {
		raw  any
		want Settings
	}{
		"absent":                               {nil, Settings{}},
		"empty object":                         {obj{}, Settings{}},
		"mode":                                 {usher("strict"), strict},
		"lists of one as HCL makes them":       {[]map[string]any{{"proxy_protocol": []map[string]any{{"mode": "strict"}}}}, strict},
		"lists of one as JSON gives them":      {array{obj{"proxy_protocol": array{obj{"mode": array{"strict"}}}}}, strict},
		"versions, and the order has no sense": {pp(obj{"versions": array{"v2", "v1", "v2"}}), says(Listener{ProxyProtocol: ProxyProtocol{Versions: []Version{V1, V2}}})},
		"a list of one that is its element":    {pp(obj{"versions": "v2", "trusted_cidrs": "10.0.0.0/8"}), says(Listener{ProxyProtocol: ProxyProtocol{Versions: []Version{V2}, TrustedCIDRs: []netip.Prefix{prefix("10.0.0.0/8")}}})},
		"networks, addresses and mapped ones": {
			pp(obj{"trusted_cidrs": array{"2001:db8::/32", "10.0.0.0/8", "192.0.2.7", "::1", "::ffff:172.16.0.0/108", "::ffff:192.0.2.8", "10.0.0.0/8"}}),
			says(Listener{ProxyProtocol: ProxyProtocol{TrustedCIDRs: []netip.Prefix{
				prefix("10.0.0.0/8"), prefix("172.16.0.0/12"), prefix("192.0.2.7/32"), prefix("192.0.2.8/32"), prefix("::1/128"), prefix("2001:db8::/32"),
			}}}),
		},
		"any":     {pp(obj{"trusted_cidrs": "any"}), says(Listener{ProxyProtocol: ProxyProtocol{TrustedCIDRs: AnyNetwork}})},
		"no TLVs": {pp(obj{"tlvs": "none"}), says(Listener{ProxyProtocol: ProxyProtocol{TLVs: []TLV{}}})},
		"one TLV": {pp(obj{"tlvs": obj{"type": "aws_vpce_id"}}), says(Listener{ProxyProtocol: ProxyProtocol{TLVs: []TLV{{Type: 0xEA, Name: "aws_vpce_id"}}}})},
		"TLVs": {
			pp(obj{"tlvs": array{obj{"type": "0xE4", "name": "tenant", "header": "x-tenant"}, obj{"type": 234.0, "name": "vpce"}, obj{"type": 5, "name": "id", "header": "none"}}}),
			says(Listener{ProxyProtocol: ProxyProtocol{TLVs: []TLV{{Type: 0xE4, Name: "tenant", Header: "x-tenant"}, {Type: 0xEA, Name: "vpce"}, {Type: 5, Name: "id", Header: "none"}}}}),
		},
		"parts of a TLV": {
			pp(obj{"tlvs": array{obj{"type": "ssl_client_cn", "header": "x-client-cn"}, obj{"type": "ssl_client_verified", "name": "verified"}, obj{"type": 0x20, "name": "raw"}}}),
			says(Listener{ProxyProtocol: ProxyProtocol{TLVs: []TLV{
				{Type: 0x20, Part: TLVSSLClientCN, Name: "ssl_client_cn", Header: "x-client-cn"}, {Type: 0x20, Part: TLVSSLClientVerified, Name: "verified"}, {Type: 0x20, Name: "raw"},
			}}}),
		},
		"upstream":      {pp(obj{"upstream": "v2", "server_speaks_first": "no"}), says(Listener{ProxyProtocol: ProxyProtocol{Upstream: UpstreamV2, ServerSpeaksFirst: No}})},
		"hops":          {ca(obj{"xff": "append", "trusted_hops": 2.0}), says(Listener{ClientAddress: ClientAddress{XFF: XFFAppend, TrustedHops: 2}})},
		"hops as text":  {ca(obj{"trusted_hops": "1"}), says(Listener{ClientAddress: ClientAddress{TrustedHops: 1}})},
		"no hops":       {ca(obj{"trusted_hops": "none"}), says(Listener{ClientAddress: ClientAddress{TrustedHops: NoHops}})},
		"proto by word": {ca(obj{"forwarded_proto": "trust"}), says(Listener{ClientAddress: ClientAddress{ForwardedProto: ForwardedProto{Type: ForwardedProtoTrust}}})},
		"proto by port": {ca(obj{"forwarded_proto": array{obj{"https_ports": array{8443.0, 443}}}}), says(Listener{ClientAddress: ClientAddress{ForwardedProto: ForwardedProto{Type: ForwardedProtoPorts, HTTPSPorts: []uint32{443, 8443}}}})},
		"proto by TLV":  {ca(obj{"forwarded_proto": "proxy_protocol"}), says(Listener{ClientAddress: ClientAddress{ForwardedProto: ForwardedProto{Type: ForwardedProtoTLV}}})},
		"one port":      {ca(obj{"forwarded_proto": obj{"https_ports": int64(443)}}), says(Listener{ClientAddress: ClientAddress{ForwardedProto: ForwardedProto{Type: ForwardedProtoPorts, HTTPSPorts: []uint32{443}}}})},
		"port by word":  {ca(obj{"forwarded_port": "connection"}), says(Listener{ClientAddress: ClientAddress{ForwardedPort: ForwardedPortConnection}})},
		"listeners": {
			obj{"listeners": array{obj{"8080": array{usher("strict")}, "9000": ca(obj{"xff": "append"})}}, "proxy_protocol": obj{"mode": "off"}},
			Settings{
				Listener:  Listener{ProxyProtocol: ProxyProtocol{Mode: Off}},
				Listeners: map[int]Listener{8080: {ProxyProtocol: ProxyProtocol{Mode: Strict}}, 9000: {ClientAddress: ClientAddress{XFF: XFFAppend}}},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, problems := Decode("x", tc.raw)
			if diff := cmp.Diff(tc.want, got, comparePolicies); diff != "" || len(problems) > 0 {
				t.Errorf("%v, settings (-want +got):\n%s", problems, diff)
			}
		})
	}
}

func TestBadSettingsAreProblems(t *testing.T) {
	const networks = `networks and addresses such as "10.0.0.0/8", "192.0.2.7" and "2001:db8::/32"`
	const known = `"alpn", "authority", "unique_id", "ssl_client_cn", "ssl_client_verified", "gcp_psc_id", "aws_vpce_id", "azure_link_id" or a number from 0 to 255 such as "0xE4"`
	for name, tc := range map[string]struct {
		raw  any
		want []string
	}{
		"wrong mode":      {usher("on"), []string{`x: usher.proxy_protocol.mode: "on" is not allowed; use "auto", "off", "permissive" or "strict"`}},
		"HCL's bare true": {usher(true), []string{`x: usher.proxy_protocol.mode: true is not allowed; use "auto", "off", "permissive" or "strict"`}},
		"unknown keys": {
			obj{"proxy_protcol": "strict", "proxy_protocol": obj{"mdoe": "strict"}},
			[]string{
				`x: usher.proxy_protcol: this key is unknown (did you mean "proxy_protocol"?); remove it, or use "proxy_protocol", "client_address", "access_log" or "listeners"`,
				`x: usher.proxy_protocol.mdoe: this key is unknown (did you mean "mode"?); remove it, or use "mode", "versions", "trusted_cidrs", "tlvs", "upstream", "upstream_tlvs" or "server_speaks_first"`,
			},
		},
		"not an object":         {"strict", []string{`x: usher: "strict" is not allowed; use an object with the keys "proxy_protocol", "client_address", "access_log", "listeners"`}},
		"two blocks":            {array{usher("strict"), usher("off")}, []string{`x: usher: a list is not allowed; use an object with the keys "proxy_protocol", "client_address", "access_log", "listeners"`}},
		"a boolean":             {pp(obj{"server_speaks_first": true}), []string{`x: usher.proxy_protocol.server_speaks_first: true is not allowed (did you mean "yes"?); use "yes" or "no"`}},
		"the other boolean":     {pp(obj{"server_speaks_first": false}), []string{`x: usher.proxy_protocol.server_speaks_first: false is not allowed (did you mean "no"?); use "yes" or "no"`}},
		"no versions":           {pp(obj{"versions": array{}}), []string{`x: usher.proxy_protocol.versions: an empty list is not allowed; use a list of "v1", "v2" or both`}},
		"a version of tomorrow": {pp(obj{"versions": array{"v2", "v3"}}), []string{`x: usher.proxy_protocol.versions[1]: "v3" is not allowed; use "v1" or "v2"`}},
		"null":                  {pp(obj{"versions": nil}), []string{`x: usher.proxy_protocol.versions: null is not allowed; use a list of "v1", "v2" or both`}},
		"no network":            {pp(obj{"trusted_cidrs": array{"10.0.0.0/33", 10}}), []string{`x: usher.proxy_protocol.trusted_cidrs[0]: "10.0.0.0/33" is not allowed; use ` + networks, `x: usher.proxy_protocol.trusted_cidrs[1]: 10 is not allowed; use ` + networks}},
		"any among others":      {pp(obj{"trusted_cidrs": array{"any", "10.0.0.0/8"}}), []string{`x: usher.proxy_protocol.trusted_cidrs[0]: "any" is not allowed in a list; write trusted_cidrs = "any", or ` + networks}},
		"a network's host":      {pp(obj{"trusted_cidrs": "10.1.2.3/8"}), []string{`x: usher.proxy_protocol.trusted_cidrs: "10.1.2.3/8" is an address in the network "10.0.0.0/8"; use the network, or the address without a length`}},
		"TLVs that are words":   {pp(obj{"tlvs": array{"aws_vpce_id", "alpn"}}), []string{`x: usher.proxy_protocol.tlvs[0]: "aws_vpce_id" is not allowed; use an object { type, name, header }`, `x: usher.proxy_protocol.tlvs[1]: "alpn" is not allowed; use an object { type, name, header }`}},
		"a TLV without a name":  {pp(obj{"tlvs": obj{"type": 0xE4}}), []string{`x: usher.proxy_protocol.tlvs.name: this key is missing; use a name of lower-case letters, digits and "_" that begins with a letter`}},
		"wrong TLVs": {
			pp(obj{"tlvs": array{obj{"type": 256, "name": "x"}, obj{"type": "vpce", "name": "X", "header": "X"}, obj{"name": "y"}}}),
			[]string{
				`x: usher.proxy_protocol.tlvs[0].type: 256 is not allowed; use ` + known,
				`x: usher.proxy_protocol.tlvs[1].type: "vpce" is not allowed; use ` + known,
				`x: usher.proxy_protocol.tlvs[1].name: "X" is not allowed; use a name of lower-case letters, digits and "_" that begins with a letter`,
				`x: usher.proxy_protocol.tlvs[1].header: "X" is not allowed; use the name of a request header in lower case, or "none"`,
				`x: usher.proxy_protocol.tlvs[2].type: this key is missing; use ` + known,
			},
		},
		"a TLV in a header with a meaning":       {pp(obj{"tlvs": obj{"type": "alpn", "header": "x-forwarded-for"}}), []string{`x: usher.proxy_protocol.tlvs.header: the header "x-forwarded-for" already has a meaning; use another one`}},
		"a TLV in the header of another setting": {pp(obj{"tlvs": obj{"type": "alpn", "header": "x-forwarded-port"}}), []string{`x: usher.proxy_protocol.tlvs.header: the header "x-forwarded-port" already has a meaning; use another one`}},
		"TLVs twice": {
			pp(obj{"tlvs": array{obj{"type": "alpn", "header": "a"}, obj{"type": 1, "name": "x"}, obj{"type": 7, "name": "x"}, obj{"type": 8, "name": "y", "header": "a"}}}),
			[]string{
				`x: usher.proxy_protocol.tlvs: type 0x1 occurs twice; remove one, or use another`,
				`x: usher.proxy_protocol.tlvs: name "x" occurs twice; remove one, or use another`,
				`x: usher.proxy_protocol.tlvs: header "a" occurs twice; remove one, or use another`,
			},
		},
		"no hops as a number": {ca(obj{"trusted_hops": 0.0}), []string{`x: usher.client_address.trusted_hops: 0 is not allowed; use "none" or a number from 1 to 32`}},
		"half a hop":          {ca(obj{"trusted_hops": 1.5}), []string{`x: usher.client_address.trusted_hops: 1.5 is not allowed; use "none" or a number from 1 to 32`}},
		"proto by a port":     {ca(obj{"forwarded_proto": 443}), []string{`x: usher.client_address.forwarded_proto: 443 is not allowed; use "default", "connection", "trust", "proxy_protocol" or an object { https_ports = [443] }`}},
		"proto by ports":      {ca(obj{"forwarded_proto": obj{"https_ports": array{}, "http_ports": 80}}), []string{`x: usher.client_address.forwarded_proto.http_ports: this key is unknown (did you mean "https_ports"?); remove it, or use "https_ports"`, `x: usher.client_address.forwarded_proto.https_ports: an empty list is not allowed; use a list of port numbers, such as [443]`}},
		"a port too high":     {ca(obj{"forwarded_proto": obj{"https_ports": array{443, 65536}}}), []string{`x: usher.client_address.forwarded_proto.https_ports[1]: 65536 is not allowed; use a number from 1 to 65535`}},
		"a port as a boolean": {ca(obj{"forwarded_port": true}), []string{`x: usher.client_address.forwarded_port: true is not allowed; use "default", "connection" or "trust"`}},
		"listeners": {
			obj{"listeners": obj{"http": usher("off"), "8080": obj{"mode": "off"}, "08": usher("off"), "9000": usher("of")}},
			[]string{
				`x: usher.listeners.08: this is not the port of a listener; use a number from 1 to 65535`,
				`x: usher.listeners.8080.mode: this key is unknown; remove it, or use "proxy_protocol", "client_address" or "access_log"`,
				`x: usher.listeners.9000.proxy_protocol.mode: "of" is not allowed (did you mean "off"?); use "auto", "off", "permissive" or "strict"`,
				`x: usher.listeners.http: this is not the port of a listener; use a number from 1 to 65535`,
			},
		},
		"a list of listeners": {obj{"listeners": array{}}, []string{`x: usher.listeners: an empty list is not allowed; use an object with the ports of listeners as keys, such as { "8080" { … } }`}},
	} {
		t.Run(name, func(t *testing.T) {
			got, problems := Decode("x", tc.raw)
			if diff := cmp.Diff(Settings{}, got, comparePolicies); diff != "" {
				t.Errorf("settings:\n%s", diff)
			}
			var lines []string
			for _, p := range problems {
				lines = append(lines, p.String())
			}
			if diff := cmp.Diff(tc.want, lines); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// Consul's merge of proxy-defaults into a registration loses zero values. Only false is
// a setting, where "no" is one: "no" is there for registrations.
func TestNoZeroValueIsASetting(t *testing.T) {
	for _, group := range Groups {
		for _, s := range group.Settings {
			for _, zero := range []any{"", 0, 0.0, false, array{}, obj{}, nil} {
				d := decoder{}
				var l Listener
				s.decode(&d, "x", zero, &l)
				if len(d.problems) == 0 {
					t.Errorf("%s: %#v is accepted", s.Key, zero)
				}
			}
		}
	}
}

func TestEveryFieldOfAPolicyIsInTheSchema(t *testing.T) {
	p, known := Resolve(80)
	if !known {
		t.Fatal("unknown without a layer")
	}
	for _, group := range []any{p.ProxyProtocol, p.ClientAddress, p.AccessLog} {
		v := reflect.ValueOf(group)
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("%s.%s has no initial value", v.Type().Name(), v.Type().Field(i).Name)
			}
		}
	}
	for _, group := range Groups {
		for _, s := range group.Settings {
			if s.Accepts == "" || s.Default == "" || s.Meaning == "" || strings.Contains(s.Meaning, "|") {
				t.Errorf("documentation of %+v", s)
			}
		}
	}
}

func TestLayerKeepsItsLastValidSettings(t *testing.T) {
	var l Layer
	l, problems := l.Update("x", usher("sideways"))
	if !l.NeverValid || len(problems) != 1 {
		t.Fatalf("bad from the start: Unknown = %v with problems %v, want true and one", l.NeverValid, problems)
	}
	l, _ = l.Update("x", usher("strict"))
	if l.NeverValid || l.Settings.ProxyProtocol.Mode != Strict {
		t.Fatalf("corrected: %+v, want strict", l)
	}
	l, problems = l.Update("x", usher("sideways"))
	if l.NeverValid || l.Settings.ProxyProtocol.Mode != Strict || len(problems) != 1 {
		t.Fatalf("bad again: %+v with %v, want strict and one problem", l, problems)
	}
	l, _ = l.Update("x", nil)
	if l.Settings.ProxyProtocol.Mode != "" {
		t.Fatalf("removed: %+v, want no setting", l)
	}
	l, _ = l.Update("x", usher("sideways"))
	if l.NeverValid {
		t.Fatal("bad after it was removed: Unknown, want the last valid content, which says nothing")
	}
}

func TestResolve(t *testing.T) {
	mode := func(m Mode) Layer { return Layer{Settings: says(Listener{ProxyProtocol: ProxyProtocol{Mode: m}})} }
	of := func(port int, p Listener) Layer {
		return Layer{Settings: Settings{Listeners: map[int]Listener{port: p}}}
	}
	strict := Listener{ProxyProtocol: ProxyProtocol{Mode: Strict}}
	nothing, unknown := Layer{}, Layer{NeverValid: true}
	for name, tc := range map[string]struct {
		layers []Layer
		want   Mode
		known  bool
	}{
		"no layer says anything":                   {[]Layer{nothing, nothing, nothing}, Auto, true},
		"the default alone":                        {[]Layer{mode(Strict), nothing, nothing}, Strict, true},
		"the gateway wins over the default":        {[]Layer{mode(Strict), mode(Off), nothing}, Off, true},
		"the config file for the gateway wins":     {[]Layer{mode(Strict), mode(Off), mode(Permissive)}, Permissive, true},
		"a listener wins over all general ones":    {[]Layer{of(80, strict), mode(Off), mode(Permissive)}, Strict, true},
		"a later listener wins over an earlier":    {[]Layer{of(80, strict), of(80, Listener{ProxyProtocol: ProxyProtocol{Mode: Off}}), nothing}, Off, true},
		"another listener does not count":          {[]Layer{of(81, strict), mode(Permissive)}, Permissive, true},
		"a listener that says something else":      {[]Layer{of(80, Listener{ClientAddress: ClientAddress{XFF: XFFAppend}}), mode(Permissive)}, Permissive, true},
		"an unknown layer may speak of a listener": {[]Layer{unknown, mode(Strict), mode(Strict)}, "", false},
		"an unknown operator":                      {[]Layer{mode(Strict), mode(Strict), unknown}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			got, known := Resolve(80, tc.layers...)
			if got.ProxyProtocol.Mode != tc.want || known != tc.known {
				t.Errorf("got %q, %v; want %q, %v", got.ProxyProtocol.Mode, known, tc.want, tc.known)
			}
		})
	}
}

func TestEachSettingIsTakenFromItsOwnLayer(t *testing.T) {
	a := says(Listener{ProxyProtocol: ProxyProtocol{Mode: Strict, TLVs: []TLV{{Type: 1, Name: "alpn"}}}, ClientAddress: ClientAddress{TrustedHops: 2}})
	b := says(Listener{ProxyProtocol: ProxyProtocol{TLVs: []TLV{}}, ClientAddress: ClientAddress{XFF: XFFAppend, TrustedHops: NoHops}})
	got, _ := Resolve(80, Layer{Settings: a}, Layer{Settings: b})
	initial, _ := Resolve(80)
	want := Listener{
		ProxyProtocol: ProxyProtocol{Mode: Strict, Versions: []Version{V1, V2}, TrustedCIDRs: AnyNetwork, TLVs: []TLV{}, Upstream: UpstreamNone, UpstreamTLVs: []uint8{}, ServerSpeaksFirst: No},
		ClientAddress: ClientAddress{
			XFF: XFFAppend, TrustedCIDRs: []netip.Prefix{}, Header: NoHeader, FailClosed: No, TrustedHops: NoHops,
			ForwardedProto: ForwardedProto{Type: ForwardedProtoDefault}, ForwardedPort: ForwardedPortDefault,
		},
		AccessLog: initial.AccessLog,
	}
	if diff := cmp.Diff(want, got, comparePolicies); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestConflictsAreRefused(t *testing.T) {
	tcp, http := ListenerProperties{TCP: true}, ListenerProperties{}
	policy := func(raw obj) Listener {
		s, problems := Decode("x", raw)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		p, _ := Resolve(80, Layer{Settings: s})
		return p
	}
	v2, v2Strict := policy(pp(obj{"mode": "permissive", "versions": "v2"})), policy(pp(obj{"mode": "strict", "versions": "v2"}))
	greets, off := policy(pp(obj{"mode": "strict", "server_speaks_first": "yes"})), policy(pp(obj{"mode": "off", "server_speaks_first": "yes"}))
	listed := policy(pp(obj{"mode": "strict", "trusted_cidrs": "10.0.0.0/8"}))
	overwrite := policy(ca(obj{"xff": "overwrite", "trusted_hops": 1}))
	trustPort, hopPort := policy(ca(obj{"forwarded_port": "trust"})), policy(ca(obj{"forwarded_port": "trust", "trusted_hops": 1}))
	proxies := func(more obj) Listener {
		more["trusted_cidrs"] = "192.0.2.0/24"
		return policy(ca(more))
	}
	protoByTLV := func(proxy, client obj) Listener {
		client["forwarded_proto"] = "proxy_protocol"
		return policy(obj{"proxy_protocol": proxy, "client_address": client})
	}
	for name, tc := range map[string]struct {
		policy  Listener
		traffic ListenerProperties
		refused string
	}{
		"proto by TLV without PROXY headers":    {protoByTLV(obj{"mode": "off"}, obj{}), http, "forwarded_proto"},
		"proto by TLV without them, tcp":        {protoByTLV(obj{"mode": "off"}, obj{}), tcp, ""},
		"proto by TLV, permissive":              {protoByTLV(obj{"mode": "permissive"}, obj{}), http, ""},
		"proto by TLV and proxies":              {protoByTLV(obj{"mode": "strict"}, obj{"trusted_cidrs": "192.0.2.0/24"}), http, ""},
		"proto by TLV, X-Forwarded-For kept":    {protoByTLV(obj{"mode": "strict"}, obj{"xff": "keep"}), http, "xff"},
		"proxies and hops":                      {proxies(obj{"trusted_hops": 1}), http, "trusted_hops"},
		"proxies and hops, tcp":                 {proxies(obj{"trusted_hops": 1}), tcp, ""},
		"everybody is a proxy":                  {policy(ca(obj{"trusted_cidrs": "0.0.0.0/0"})), http, "trusted_cidrs"},
		"everybody may send the header":         {policy(ca(obj{"trusted_cidrs": "::/0", "header": "cf-connecting-ip"})), http, ""},
		"a header without proxies":              {policy(ca(obj{"header": "cf-connecting-ip"})), http, "header"},
		"a header of proxies":                   {proxies(obj{"header": "cf-connecting-ip"}), http, ""},
		"no header to require":                  {proxies(obj{"fail_closed": "yes"}), http, "fail_closed"},
		"a kept X-Forwarded-For and a header":   {proxies(obj{"header": "cf-connecting-ip", "xff": "keep"}), http, ""},
		"a kept X-Forwarded-For, proto trusted": {policy(ca(obj{"xff": "keep", "forwarded_proto": "trust"})), http, "xff"},
		"the same, of proxies":                  {proxies(obj{"xff": "keep", "forwarded_proto": "trust"}), http, ""},
		"the same, of hops":                     {policy(ca(obj{"xff": "keep", "forwarded_proto": "trust", "trusted_hops": 1})), http, ""},
		"the port of proxies":                   {proxies(obj{"forwarded_port": "trust"}), http, ""},
		"TLVs handed on":                        {policy(pp(obj{"mode": "strict", "upstream": "v2", "upstream_tlvs": "aws_vpce_id"})), tcp, ""},
		"TLVs handed on in version 1":           {policy(pp(obj{"mode": "strict", "upstream": "v1", "upstream_tlvs": "aws_vpce_id"})), tcp, "upstream_tlvs"},
		"TLVs of untrusted addresses":           {policy(pp(obj{"mode": "permissive", "upstream": "v2", "upstream_tlvs": 228, "trusted_cidrs": "10.0.0.0/8"})), tcp, "upstream_tlvs"},
		"TLVs handed on, http":                  {policy(pp(obj{"mode": "strict", "upstream_tlvs": 228})), http, ""},
		"permissive with one version, tcp":      {v2, tcp, "versions"},
		"permissive with one version, http":     {v2, http, ""},
		"strict with one version, tcp":          {v2Strict, tcp, ""},
		"server speaks first":                   {greets, tcp, "server_speaks_first"},
		"server speaks first inside TLS":        {greets, ListenerProperties{TCP: true, TLS: true}, ""},
		"server speaks first, http":             {greets, http, ""},
		"server speaks first, no PROXY headers": {off, tcp, ""},
		"the version that is sent":              {v2Strict, ListenerProperties{BalancerVersion: V2}, ""},
		"another version is sent":               {v2Strict, ListenerProperties{BalancerVersion: V1}, "versions"},
		"the header is not looked for":          {policy(pp(obj{"mode": "off", "versions": "v2"})), ListenerProperties{BalancerVersion: V1}, ""},
		"clients' addresses and a list":         {listed, ListenerProperties{PreservesClientIP: true}, "trusted_cidrs"},
		"the balancer's address and a list":     {listed, ListenerProperties{}, ""},
		"clients' addresses and no list":        {policy(pp(obj{"mode": "strict"})), ListenerProperties{PreservesClientIP: true}, ""},
		"overwrite with hops":                   {overwrite, http, "xff"},
		"overwrite with hops, tcp":              {overwrite, tcp, ""},
		"the port of a request without hops":    {trustPort, http, "forwarded_port"},
		"the same on tcp":                       {trustPort, tcp, ""},
		"the port of a hop's request":           {hopPort, http, ""},
		"the port of the connection":            {policy(ca(obj{"forwarded_port": "connection"})), http, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.policy.Check(tc.traffic)
			if (err == nil) != (tc.refused == "") || err != nil && !strings.Contains(err.Error(), "."+tc.refused+": ") {
				t.Errorf("got %v, want it to refuse %q", err, tc.refused)
			}
		})
	}
}

func TestAKeyThatLooksLikeUsherIsReported(t *testing.T) {
	for _, tc := range []struct {
		config, inherited map[string]any
		want              string
	}{
		{map[string]any{"ushr": 1, "protocol": "http", "max_request_headers_kb": 1}, nil, "Config.ushr"},
		{map[string]any{"Usher": 1}, nil, "Config.Usher"},
		{map[string]any{"ushr": 1, "usher": 1}, nil, ""},
		{map[string]any{"ushr": 1}, map[string]any{"ushr": 1}, ""}, // it is reported where it is set
	} {
		got := ""
		for _, p := range CheckKeys("Config", tc.config, tc.inherited) {
			got += p.Where
		}
		if got != tc.want {
			t.Errorf("%v: got %q, want %q", tc.config, got, tc.want)
		}
	}
}
