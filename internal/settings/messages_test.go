package settings

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/messages"
)

// TestMessages provokes every problem that a setting can have.
func TestMessages(t *testing.T) {
	var lines []string
	for _, text := range []string{
		`"strict"`, `[{}, {}]`, `{"proxy_protcol": {}, "logs": {}, "proxy_protocol": "strict"}`,
		`{"listeners": []}`, `{"listeners": {"http": {}, "8080": {"mode": "off"}}}`,
		`{"proxy_protocol": {"mode": "stict", "versions": ["v2", "v3"], "upstream": 1, "server_speaks_first": "perhaps"}}`,
		`{"proxy_protocol": {"mode": null, "versions": [], "trusted_cidrs": ["any", "10.1.2.3/8", "10.0.0.0/33"]}}`,
		`{"proxy_protocol": {"trusted_cidrs": [], "tlvs": []}}`,
		`{"proxy_protocol": {"tlvs": ["alpn", {"type": "alnp"}, {"type": 256, "name": "X", "header": "X"}, {"name": "x"}, {"type": 228}]}}`,
		`{"proxy_protocol": {"tlvs": {"type": "alpn", "header": "x-forwarded-for"}}}`,
		`{"proxy_protocol": {"tlvs": [{"type": "alpn", "header": "a"}, {"type": 1, "name": "alpn", "header": "a"}]}}`,
		`{"proxy_protocol": {"tlvs": [{"type": "ssl_client_cn"}, {"type": "ssl_client_verified"}, {"type": "ssl_client_cn", "name": "cn"}]}}`,
		`{"proxy_protocol": {"upstream_tlvs": ["alnp", 256]}}`, `{"proxy_protocol": {"upstream_tlvs": []}}`,
		`{"client_address": {"xff": "add", "trusted_hops": 33, "forwarded_proto": "https", "forwarded_port": 443}}`,
		`{"client_address": {"trusted_cidrs": ["none", "10.0.0.0/33"], "header": "CF-Connecting-IP", "fail_closed": true}}`,
		`{"client_address": {"trusted_cidrs": "any", "header": "authorization"}}`,
		`{"client_address": {"forwarded_proto": {"http_ports": 80, "https_ports": [0, 443]}}}`,
		`{"client_address": {"forwarded_proto": {}}}`, `{"client_address": {"forwarded_proto": {"https_ports": []}}}`,
		`{"access_log": {"sinks": "syslog", "format": "apache", "status_at_least": 99, "duration_at_least": "1us"}}`,
		`{"access_log": {"sinks": ["stdout", {"type": "fiel"}, {"path": "/x"}, {"type": "stdout", "path": "/x"}, {"type": "file", "path": "x"}]}}`,
		`{"access_log": {"sinks": [{"type": "file"}, {"type": "otlp", "address": "collector", "tls": true, "request_headers": "x"}]}}`,
		`{"access_log": {"sinks": [{"type": "grpc", "address": "a:1", "tls": {"ca": "/ca.pem", "sni": "-"}, "request_headers": ["X"]}]}}`,
		`{"access_log": {"sinks": {"type": "grpc", "address": "a:1", "tls": {}, "format": "xml"}}}`,
		`{"access_log": {"response_flags": ["XX"], "request_header": {"value": "\n"}, "expression": " ", "sample_per_mille": 1000}}`,
		`{"access_log": {"request_header": "x", "health_checks": "on", "rejected": 0, "rejected_per_second": 0, "redact_query": "x"}}`,
		`{"access_log": {"redact_headers": ["none", "Cookie"], "redact_cookies": ["a b"], "client_address": "none"}}`,
		`{"access_log": {"format": {"text": "{\"path\": \"%PROTOCOL%\"}"}}}`, `{"access_log": {"format": {"text": "a\nb"}}}`,
		`{"access_log": {"format": {"text": ""}}}`, `{"access_log": {"format": {"json": {}}}}`, `{"access_log": {"format": {"xml": ""}}}`,
		`{"access_log": {"format": {"json": {"a": ["x", "y"], "b": {}}}}}`,
		`{"access_log": {"format": {"fields": ["pth", "path", "path"]}}}`,
	} {
		var raw any
		if err := json.Unmarshal([]byte(text), &raw); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		_, problems := Decode(`gateway "edge"`, raw)
		if len(problems) == 0 {
			t.Errorf("no problem: %s", text)
		}
		for _, p := range problems {
			lines = append(lines, p.String())
		}
	}
	for _, p := range CheckKeys(`proxy-defaults "global": Config`, map[string]any{"ushr": 1, "protocol": "http"}, nil) {
		lines = append(lines, p.String())
	}
	for _, c := range Conflicts {
		lines = append(lines, strings.ReplaceAll((&RefusedError{Setting: c.Setting, Reason: c.Reason}).Error(), "VERSION", "v1"))
	}
	messages.Check(t, lines, "refuse", "problem")
}
