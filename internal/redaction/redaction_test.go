package redaction

import (
	"strings"
	"testing"
)

func TestNothingSecretIsLeft(t *testing.T) {
	for _, secret := range []string{
		"-----BEGIN EC PRIVATE KEY-----\ns3cret\n-----END EC PRIVATE KEY-----\n",
		"a -----BEGIN PRIVATE KEY-----\ns3cret",
		`-----BEGIN PRIVATE KEY-----\ns3cret\n`,
		"error: Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2hlciJ9.s3cret",
		"https://admin:s3cret@consul.example.com:8501", "https://s3cret@consul.example.com:8501",
		"http://admin:s3c%ret@h", "http://admin:x's3cret@h", "http://admin:x/s3cret@h:1/a", "http://admin:/s3cret@h",
		"http://admin:x s3cret@h", "http://admin:12s3cret@h", "http://admin:x@s3cret@h", "http://admin:1x/y@s3cret@h", "http://a@b:s3cret@h",
		"--admin-addr admin:s3cret@127.0.0.1:1", "usher\x00--admin-addr=admin:s3cret@h:18001\x00x", "admin:s3cret@[::1]:1",
	} {
		if got := Text(secret); strings.Contains(got, "s3c") || !strings.Contains(got, Redacted) {
			t.Errorf("%q: %q", secret, got)
		}
	}
	if got := Text("error at http://admin:x/y@h:1/a?b and http://u@i/c"); got != "error at http://[redacted]@h:1/a?b and http://[redacted]@i/c" {
		t.Errorf("got %q", got)
	}
}

func TestTheRestStays(t *testing.T) {
	for _, harmless := range []string{
		"mailto:s3cret@example.com http://127.0.0.1:8500/v1/s3cret@1 eyJ.s3cret",
		"http://h:1 and a@b", `url="http://[::1]:8500/x" user=a@b`, "spiffe://x.consul/ns/default",
		"envoyproxy/envoy:v1.36@sha256:0123456789abcdef", "-----BEGIN CERTIFICATE-----\nMII", "",
	} {
		if got := Text(harmless); got != harmless {
			t.Errorf("%q: %q", harmless, got)
		}
	}
}
