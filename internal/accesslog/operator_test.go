package accesslog

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/envoy"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/settings"
)

func capabilitiesOfMinor(minor uint32) envoy.Capabilities {
	return envoy.CapabilitiesOf(gateway.EnvoyVersion{Major: 1, Minor: minor})
}

func TestAnOperatorThatEnvoyWouldRefuseIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"%PROTOCOL% %REQ(:PATH):20% %START_TIME(%d/%b/%Y:%H:%M:%S %z)% 100%%":                    "",
		"%CEL(request.path.startsWith('/a') ? 'x' : re.extract(request.path, r'^(.)', r'\\1'))%": "",
		"%CEL(int(request.size) % 2 == 0)%":                                                      "",
		"%CEL(has(request.headers.cookie))%":                                                     "",
		"%FILTER_STATE(usher.tlv.vpce:PLAIN)%":                                                   "",
		"%NOPE%":                                                                                 "%NOPE%: there is no operator NOPE",
		"a %REMOTE_ADDRESS% b":                                                                   "%REMOTE_ADDRESS%: there is no operator REMOTE_ADDRESS; did you mean %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% or %DOWNSTREAM_REMOTE_ADDRESS% or %UPSTREAM_REMOTE_ADDRESS%",
		"%DURATION(3)%":                                                                          "%DURATION(3)%: the operator takes no parameter; use %DURATION%",
		"%REQ%":                                                                                  "%REQ%: the operator needs a parameter; use %REQ(…)%",
		"%REQ( )%":                                                                               "%REQ( )%: the operator needs a parameter; use %REQ(…)%",
		"%REQ(a?b?c)%":                                                                           "%REQ(a?b?c)%: Envoy does not know the parameter",
		"%PROTOCOL:3%":                                                                           `%PROTOCOL:3%: the operator takes no length; leave ":3" out`,
		"%GRPC_STATUS(X)%":                                                                       "%GRPC_STATUS(X)%: Envoy does not know the parameter; it takes (CAMEL_STRING|SNAKE_STRING|NUMBER)",
		"100%":                                                                                   `"100%" has a % that begins no operator`,
		"%req(a)%":                                                                               `"%req(a)%" has a % that begins no operator`,
		"%REQ(a":                                                                                 `"%REQ(a" has a % that begins no operator`,
		"%DOWNSTREAM_CX_RTT%":                                                                    "%DOWNSTREAM_CX_RTT%: the operator needs Envoy 1.40 or later; upgrade Envoy, or leave it out",
		"%REQUESTED_SERVER_NAME(SNI_ONLY)%":                                                      "%REQUESTED_SERVER_NAME(SNI_ONLY)%: the operator takes a parameter from Envoy 1.37 on",
		"%DYNAMIC_METADATA(a:b):3%":                                                              "%DYNAMIC_METADATA(a:b):3%: the operator takes a length from Envoy 1.37 on",
		"%CEL(1 +)%":                                                                             `the expression "1 +" ends too early (character 4); complete it`,
		"%CEL(request.path.split('/')[1])%":                                                      "the expression \"request.path.split('/')[1]\": Envoy has no function split with 2 arguments",
		"%CEL(['a'].filter(c, c == 'a'))%":                                                       "Envoy has no function filter",
		"%CEL(requst.path)%":                                                                     `the expression "requst.path": there is no attribute "requst"`,
		"%CEL(request.path.matches(r'^(.*){16}$'))%":                                             "is too large for Envoy",
		"%CEL(request.path.matches(r'(a'))%":                                                     "the regular expression \"(a\" cannot be understood",
		"%CEL(re.extract(request.path, r'^/([^/]*)/(.*)$', r'\\1'))%": "",
		"%COALESCE(x)%": "needs Envoy 1.37",
	} {
		err := checkText(capabilitiesOfMinor(36), text)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	if err := checkText(capabilitiesOfMinor(40), "%DOWNSTREAM_CX_RTT% %COALESCE({\"operators\":[\"PROTOCOL\"]})%"); err != nil {
		t.Errorf("on Envoy 1.40: %v", err)
	}
}

func TestReleasesWithTheSameOperatorsHaveTheSameCapabilities(t *testing.T) {
	seen := map[uint32]bool{}
	for minor := uint32(22); minor <= 45; minor++ {
		d := capabilitiesOfMinor(minor)
		seen[d.LogOperators] = true
		for name, o := range operators {
			if known := o.since <= d.LogOperators; known != (o.since <= minor) {
				t.Errorf("Envoy 1.%d: %s is known: %v, and came with 1.%d", minor, name, known, o.since)
			}
		}
	}
	if got, want := slices.Sorted(maps.Keys(seen)), []uint32{22, 32, 36, 37, 38, 39, 40}; !slices.Equal(got, want) {
		t.Errorf("kinds of releases: %d, want %d", got, want)
	}
}

// Presets are not checked when they are compiled.
func TestPresetsHaveOperatorsOfEveryRelease(t *testing.T) {
	presets := []settings.LogFormat{{Type: settings.FormatConsul}, {Type: settings.FormatECS}, {Type: settings.FormatCombined}, {Type: settings.FormatFields, Fields: settings.LogFieldNames}}
	for minor := uint32(22); minor <= 40; minor++ {
		for _, preset := range presets {
			for _, http := range []bool{true, false} {
				k := Params{HTTP: http, TLS: true, ProxyProtocol: true, ClientAddressKnown: true, Envoy: capabilitiesOfMinor(minor)}
				f, err := k.formatOf(preset)
				if err != nil {
					if k.Envoy.Expressions {
						t.Errorf("%s on Envoy 1.%d: %v", preset.Type, minor, err)
					}
					continue
				}
				f.each(func(text string) string {
					if err := checkText(k.Envoy, text); err != nil {
						t.Errorf("%s on Envoy 1.%d: %v", preset.Type, minor, err)
					}
					return text
				})
			}
		}
	}
}

func TestEveryFieldWithANameHasAnOperator(t *testing.T) {
	names := slices.Concat(settings.LogFieldNames, consulFields)
	for name, text := range (Params{}).fields(names) {
		if err := checkText(capabilitiesOfMinor(22), text.(string)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name := range fieldOperators {
		if !slices.Contains(names, name) {
			t.Errorf("%s is no field", name)
		}
	}
}
