package settings

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestNoProblemQuotesASecret has a secret in each wrong value where one is likely.
func TestNoProblemQuotesASecret(t *testing.T) {
	for _, text := range []string{
		`{"access_log": {"request_header": "Authorization: Bearer s3cret"}}`,
		`{"access_log": {"request_header": "s3cret"}}`,
		`{"access_log": {"request_header": {"name": "s3cret X"}}}`,
		`{"access_log": {"request_header": {"name": "authorization", "value": "s3cret\n"}}}`,
		`{"access_log": {"sinks": [{"type": "otlp", "address": "http://u:s3cret@h:1"}]}}`,
		`{"access_log": {"sinks": [{"type": "otlp", "address": "u:s3cret@h:1"}]}}`,
		`{"access_log": {"sinks": [{"type": "grpc", "address": "h:1", "request_headers": ["Authorization:s3cret"]}]}}`,
		`{"access_log": {"sinks": ["https://u:s3cret@h"]}}`,
		`{"access_log": {"redact_headers": "X-Token: s3cret"}}`,
		`{"access_log": {"redact_headers": ["X-Key:1 s3cret", "a"]}}`,
		`{"access_log": {"redact_cookies": ["session=s3cret"]}}`,
		`{"access_log": "Authorization: s3cret"}`,
		`{"proxy_protocol": {"tlvs": [{"type": 228, "name": "a", "header": "Cookie:s3cret"}]}}`,
		`{"proxy_protocol": {"trusted_cidrs": "https://u:s3cret@h"}}`,
	} {
		var raw any
		if err := json.Unmarshal([]byte(text), &raw); err != nil {
			t.Fatal(err)
		}
		_, problems := Decode("gateway", raw)
		if len(problems) == 0 {
			t.Errorf("no problem: %s", text)
		}
		for _, p := range problems {
			if strings.Contains(p.String(), "s3cret") || !strings.Contains(p.What, "a string of ") {
				t.Errorf("%s: %s", text, p)
			}
		}
	}
}

// TestAProblemQuotesWhatIsNoSecret has wrong values that an administrator finds faster with their text.
func TestAProblemQuotesWhatIsNoSecret(t *testing.T) {
	for _, wrong := range []string{"10.0.0.0/33", "2001:db8::/129", "fd00:beef::/129", "collector:99999", "X-Token", "a b"} {
		if got := describe(wrong); got != `"`+wrong+`"` {
			t.Errorf("%s: %s", wrong, got)
		}
	}
}
