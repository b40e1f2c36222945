package accesslog

import (
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

func TestUntrustedDownstreamsCannotForgeALogEntry(t *testing.T) {
	newest := envoy.CapabilitiesOf(gateway.EnvoyVersion{})
	old := envoy.CapabilitiesOf(gateway.EnvoyVersion{Major: 1, Minor: 32})
	for text, want := range map[string]string{
		"%DOWNSTREAM_REMOTE_ADDRESS%": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
		"a %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(24)%:%DOWNSTREAM_REMOTE_PORT%":                                           "a %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(24)%:%DOWNSTREAM_DIRECT_REMOTE_PORT%",
		"%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%":                                                                                "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
		"%DOWNSTREAM_LOCAL_ADDRESS%":                                                                                        "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%",
		"%DOWNSTREAM_LOCAL_URI_SAN%":                                                                                        "%DOWNSTREAM_LOCAL_URI_SAN%",
		`%COALESCE({"operators":[{"command":"REQ","param":"x"},"DOWNSTREAM_REMOTE_ADDRESS"]}):9%`:                           `%COALESCE({"operators":[{"command":"REQ","param":"x"},"DOWNSTREAM_DIRECT_REMOTE_ADDRESS"]}):9%`,
		`%COALESCE({"operators":[{"command":"REQ","param":"DOWNSTREAM_REMOTE_ADDRESS", "max_length": 7}]})%`:                `%COALESCE({"operators":[{"command":"REQ","param":"DOWNSTREAM_REMOTE_ADDRESS", "max_length": 7}]})%`,
		`%COALESCE({"operators":["DOWNSTREAM_REMOTE\u005fADDRESS"]})%`:                                                      `%COALESCE({"operators":["DOWNSTREAM_DIRECT_REMOTE_ADDRESS"]})%`,
		`%COALESCE({"operators":["NOPE"],"operators":["DOWNSTREAM_LOCAL_PORT"]})%`:                                          `%COALESCE({"operators":["DOWNSTREAM_DIRECT_LOCAL_PORT"]})%`,
		`%COALESCE({"operators":[{"command":"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT","param":"24"}]})%`:                      `%COALESCE({"operators":[{"command":"DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT","param":"24"}]})%`,
		`%COALESCE({"operators":[{"command":"COALESCE","param":"{\"operators\":[\"DOWNSTREAM_LOCAL_PORT\"]}"}]})%`:          `%COALESCE({"operators":[{"command":"COALESCE","param":"{\"operators\":[\"DOWNSTREAM_DIRECT_LOCAL_PORT\"]}"}]})%`,
		`%COALESCE({"operators":[{"command":"REQ","param":"a\u0029%"},"DOWNSTREAM_LOCAL_PORT"]})%`:                          `%COALESCE({"operators":[{"command":"REQ","param":"a\u0029%"},"DOWNSTREAM_DIRECT_LOCAL_PORT"]})%`,
		`%COALESCE({"operators":[{"command":"CEL","param":"source.address"}]})%`:                                            "-",
		`%COALESCE({"operators":[{"command":"DYNAMIC_METADATA","param":"envoy.filters.listener.proxy\u005fprotocol:a"}]})%`: "-",
		"%CEL(source.address)% %CEL(request.path)%":                                                                         "- %CEL(request.path)%",
		"%CEL(request.path):5% from source %PROTOCOL%":                                                                      "%CEL(request.path):5% from source %PROTOCOL%",
		"%CEL(int(source.port) % 2)%":                                                                                       "-",
		"%REQ(source)% %START_TIME(%s)%":                                                                                    "%REQ(source)% %START_TIME(%s)%",
		"%DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:vpce):9%":                                                  "-",
		"%FILTER_STATE(envoy.network.proxy_protocol.tlv:PLAIN)%":                                                            "-",
	} {
		if got := hideClaims(text, newest, noValue); got != want {
			t.Errorf("%s becomes %q, want %q", text, got, want)
		}
	}
	if got, want := hideClaims("%PROTOCOL% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_PORT%", old, noValue), "%PROTOCOL% - %DOWNSTREAM_DIRECT_REMOTE_PORT%"; got != want {
		t.Errorf("on an old Envoy: %q, want %q", got, want)
	}
}

// An Envoy may have operators that the table does not have yet.
func TestAnOperatorWithoutARowIsHidden(t *testing.T) {
	newest := envoy.CapabilitiesOf(gateway.EnvoyVersion{})
	for text, want := range map[string]string{
		"%DOWNSTREAM_CLAIMED_ADDRESS% %PROTOCOL%":                   "- %PROTOCOL%",
		"%DOWNSTREAM_CLAIMED_ADDRESS(24):9%":                        "-",
		`%COALESCE({"operators":["PROTOCOL","DOWNSTREAM_CLAIM"]})%`: "-",
		`%COALESCE({"operators":["PROTOCOL"]})%`:                    `%COALESCE({"operators":["PROTOCOL"]})%`,
		`%COALESCE({"operators":`:                                   `%COALESCE({"operators":`,
		`%COALESCE({})%`:                                            "-",
	} {
		if got := hideClaims(text, newest, noValue); got != want {
			t.Errorf("an untrusted downstream: %s becomes %q, want %q", text, got, want)
		}
	}
	p := Params{Settings: settings.AccessLog{RedactQuery: settings.Yes}, Envoy: newest}
	format := p.redacted(logEntry{format: lineFormat("%DOWNSTREAM_CLAIMED_ADDRESS% %PROTOCOL%")})
	if want := "[redacted] %PROTOCOL%\n"; format.text != want {
		t.Errorf("redacted: %q, want %q", format.text, want)
	}
}

// The preset reads headers in expressions, in which nothing can be redacted afterwards.
func TestTheCombinedPresetShowsNoRedactedHeader(t *testing.T) {
	for _, name := range []string{"referer", "user-agent", "x-envoy-original-path"} {
		p := Params{
			HTTP: true, Envoy: envoy.CapabilitiesOf(gateway.EnvoyVersion{}),
			Settings: settings.AccessLog{RedactHeaders: []string{name}},
		}
		format, err := p.combinedFormat()
		if err != nil {
			t.Fatal(err)
		}
		text := p.redacted(logEntry{format: format}).text
		if strings.Contains(text, name) || !strings.Contains(text, redactedText) {
			t.Errorf("with %s redacted, the format is %s", name, text)
		}
	}
}

// What each row of the table keeps out, with everything redacted that settings can redact.
func TestARowKeepsOutWhatIsRedacted(t *testing.T) {
	network := envoy.CEL(networkOf("source.address"))
	p := Params{
		HTTP: true, Envoy: envoy.CapabilitiesOf(gateway.EnvoyVersion{}),
		Settings: settings.AccessLog{
			RedactQuery: settings.Yes, RedactHeaders: []string{"x-secret"}, RedactCookies: []string{"session"},
			ClientAddress: settings.ClientTruncated,
		},
	}
	for text, want := range map[string]string{
		"%DOWNSTREAM_REMOTE_ADDRESS%":                     network,
		"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%":        network,
		"%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%":              "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(24)%",
		"%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT(24)%",
		"%REQ(X-FORWARDED-FOR)%":                          "[redacted]",
		"%REQ(X-SECRET)%":                                 "[redacted]",
		"%RESP(X-SECRET)%":                                "[redacted]",
		"%TRAILER(X-SECRET)%":                             "[redacted]",
		"%RESP(SET-COOKIE)%":                              "[redacted]",
		"%REQ(COOKIE)%":                                   envoy.CEL(cookiesWithout([]string{"session"})),
		"%REQ(:PATH)%":                                    "%REQ_WITHOUT_QUERY(:PATH)%",
		"%PATH(WQ)%":                                      "%REQ_WITHOUT_QUERY(X-ENVOY-ORIGINAL-PATH?:PATH)%",
		"%QUERY_PARAM(a)%":                                "[redacted]",
		"%QUERY_PARAMS%":                                  "[redacted]",
	} {
		format := p.redacted(logEntry{format: lineFormat(text)})
		if format.text != want+"\n" {
			t.Errorf("%s is logged as %s, want %s", text, format.text, want)
		}
	}
}
