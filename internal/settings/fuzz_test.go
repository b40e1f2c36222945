package settings

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode"
)

// FuzzSettings checks that no value under the key usher makes Usher panic. Each mistake
// is a problem of one line, a layer keeps its last valid settings, and Own separates
// inherited settings from the others.
func FuzzSettings(f *testing.F) {
	for _, text := range []string{
		"null", "[]", "{}", `[null]`, `"x"`, "1e999", `{"": 1}`, `{"a\u000db\u000a": {"c\u0000": 1}}`, `{"proxy_protocol": [{"mode": ["strict"]}]}`,
		`{"proxy_protocol": {"mode": "strict", "versions": ["v1", null], "trusted_cidrs": ["10.0.0.0/8", "::/0", "x"], "upstream": "v2", "server_speaks_first": "no"}}`,
		`{"proxy_protocol": {"tlvs": [{"type": "0xE4", "name": "tenant", "header": "x-tenant"}, {"type": -1}, {"type": 1e9}, null]}}`,
		`{"client_address": {"xff": "append", "trusted_hops": 2.5, "forwarded_port": "trust", "forwarded_proto": {"https_ports": [443, -1, 1e30, "443"]}}}`,
		`{"listeners": {"8080": {"proxy_protocol": {"mode": "off"}}, "x": {}, "-1": null, "99999999999999999999": {}}}`,
		`{"access_log": {"sinks": [{"file": {"path": "/x"}}, {"otlp": {"address": "a:1", "tls": {"ca": "x"}}}, {"stdout": {}}], "format": {"json": {"a": [1, {"b": null}]}}}}`,
		`{"access_log": {"status_at_least": "500", "duration_at_least": "-5s", "response_flags": ["UH", 1], "header": {"name": "a"}, "expression": "x", "sample_per_mille": 1001, "redact_headers": "none"}}`,
		`{"access_log": {"redact_headers": ["none", "a"], "response_flags": [["any"], "any"]}, "proxy_protocol": {"trusted_cidrs": [["any", "any"], "any"]}}`,
	} {
		f.Add(text, "null")
		f.Add(text, text)
		f.Add(`{"proxy_protocol": {"mode": "off"}}`, text)
	}
	good, _ := Layer{}.Update("before", map[string]any{"proxy_protocol": map[string]any{"mode": "strict"}})
	f.Fuzz(func(t *testing.T, text, inherited string) {
		var raw, base any
		if json.Unmarshal([]byte(text), &raw) != nil || json.Unmarshal([]byte(inherited), &base) != nil {
			return
		}
		next, problems := good.Update("here", raw)
		for _, p := range problems {
			if !strings.HasPrefix(p.Where, "here") || strings.ContainsFunc(p.String(), unicode.IsControl) {
				t.Errorf("problem %q", p)
			}
		}
		if len(problems) > 0 && !reflect.DeepEqual(next, good) {
			t.Error("the last valid settings did not stay")
		}
		_, _ = Layer{}.Update("here", StripInherited(raw, base))
		if rest := StripInherited(raw, raw); rest != nil {
			t.Errorf("what is inherited as a whole leaves %v", rest)
		}
		for port := range next.Settings.Listeners {
			if _, known := Resolve(port, Layer{}, next); !known {
				t.Errorf("listener %d is not known", port)
			}
		}
	})
}
