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
		"a %REMOTE_ADDRESS% b":                                                                   "%REMOTE_ADDRESS%: there is no operator REMOTE_ADDRESS (did you mean %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% or %DOWNSTREAM_REMOTE_ADDRESS% or %UPSTREAM_REMOTE_ADDRESS%?)",
		"%DURATION(3)%":                                                                          "%DURATION(3)%: the operator takes no parameter; use %DURATION%",
		"%REQ%":                                                                                  "%REQ%: the operator needs a parameter; use %REQ(…)%",
		"%REQ( )%":                                                                               "%REQ( )%: the operator needs a parameter; use %REQ(…)%",
		"%REQ(a?b?c)%":                                                                           "%REQ(a?b?c)%: the parameter is not the name of a header",
		"%REQ(x)y)%":                                                                             "%REQ(x)y)%: the parameter is not the name of a header",
		"%REQ(::a)%":                                                                             "%REQ(::a)%: the parameter is not the name of a header",
		"%RESP(a?x@y)%":                                                                          "%RESP(a?x@y)%: the parameter is not the name of a header",
		"%REQ(:path?x_y.z!)%":                                                                    "",
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

// listedOperators are lists of operators, and why Envoy 1.38 refuses them; "" if it does not.
var listedOperators = map[string]string{
	`{"operators":["PROTOCOL",{"command":"REQ","param":"a?b","max_length":7,"other":1}],"other":1}`: "",
	`{"operators":[{"command":"PROTOCOL","param":""}]}`:                                             "",
	`{"operators":[{"command":"COALESCE","param":"{\"operators\":[\"PROTOCOL\"]}"}]}`:               "",
	`{"operators":[{"command":"CEL","param":"int(request.size\u0029"}]}`:                            "",
	`{"operators":[{"command":"START_TIME","param":"%Y-%m"}]}`:                                      "",
	`{"operators":["REQUESTED_SERVER_NAM"]}`:                                                        "operators[0]: %REQUESTED_SERVER_NAM%: there is no operator REQUESTED_SERVER_NAM (did you mean %REQUESTED_SERVER_NAME%?)",
	`{"operators":["PROTOCOL","REQEUSTED_SERVER_NAME"]}`:                                            `operators[1]: %REQEUSTED_SERVER_NAME%: there is no operator REQEUSTED_SERVER_NAME (did you mean %REQUESTED_SERVER_NAME%?); see https://www.envoyproxy.io/`,
	`{"operators":["protocol"]}`:                                                                    `operators[0]: %protocol%: there is no operator protocol (did you mean %PROTOCOL%?)`,
	`{"operators":[{"command":"COALESCE","param":"{\"operators\":[\"NOPE\"]}"}]}`:                   "there is no operator NOPE",
	`{"operators":["DOWNSTREAM_CX_RTT"]}`:                                                           "operators[0]: %DOWNSTREAM_CX_RTT%: the operator needs Envoy 1.40 or later; upgrade Envoy, or leave it out",
	`{"operators":["REQ"]}`:                                                                         "operators[0]: %REQ%: the operator needs a parameter",
	`{"operators":[{"command":"PROTOCOL","param":"x"}]}`:                                            "operators[0]: %PROTOCOL(x)%: the operator takes no parameter",
	`{"operators":[{"command":"PROTOCOL","max_length":3}]}`:                                         `operators[0]: %PROTOCOL:3%: the operator takes no length; leave ":3" out`,
	`{"operators":[{"command":"REQ","param":"a?b?c"}]}`:                                             "operators[0]: %REQ(a?b?c)%: the parameter is not the name of a header",
	`{"operators":[{"command":"CEL","param":"requst.path"}]}`:                                       `operators[0]: the expression "requst.path": there is no attribute "requst"`,
	`{"operators":[{"command":"REQ_WITHOUT_QUERY","param":":path"}]}`:                               "operators[0]: %REQ_WITHOUT_QUERY(:path)%: the operator works only in log formats",
	`{"operators":["REQ(x)"]}`:                                                                      "operators[0] is not an operator; write",
	`{"operators":["PROTOCOL",5]}`:                                                                  "operators[1] is not an operator; write",
	`{"operators":[null]}`:                                                                          "operators[0] is not an operator; write",
	`{"operators":[{"Command":"PROTOCOL"}]}`:                                                        "operators[0] is not an operator; write",
	`{"operators":[{"command":"REQ","param":null}]}`:                                                "operators[0] is not an operator; write",
	`{"operators":[{"command":"REQ","param":"x","max_length":0}]}`:                                  "operators[0] is not an operator; write",
	`{"operators":[{"command":"REQ","param":"x","max_length":"3"}]}`:                                "operators[0] is not an operator; write",
	`{"operators":[{"command":"REQ","param":"x","max_length":3.5}]}`:                                "operators[0] is not an operator; write",
	`{"operators":[]}`:           "the parameter has no list of operators; write",
	`{"operators":"PROTOCOL"}`:   "the parameter has no list of operators; write",
	`{"Operators":["PROTOCOL"]}`: "the parameter has no list of operators; write",
	`["PROTOCOL"]`:               "the parameter has no list of operators; write",
	`x`:                          "the parameter is not JSON; write",
}

func TestAnOperatorInsideAnOperatorIsChecked(t *testing.T) {
	for list, want := range listedOperators {
		text := "%COALESCE(" + list + ")%"
		err := checkText(capabilitiesOfMinor(38), text)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestAHeaderThatEnvoyWouldRefuseIsNamed(t *testing.T) {
	for value, want := range map[string]string{
		"%DOWNSTREAM_LOCAL_PORT% 100%% %REQ(a?b):3%":                                              "",
		`%DYNAMIC_METADATA(["a", "b"])%%UPSTREAM_METADATA( ["a", "b"] )%%PER_REQUEST_STATE(a.b)%`: "",
		"%CEL({'a': request.time.getHours()}['a'])%":                                              "",
		"%DOWNSTREAM_LOCAL_PRT%":                                                                  `%DOWNSTREAM_LOCAL_PRT%: there is no operator DOWNSTREAM_LOCAL_PRT (did you mean %DOWNSTREAM_LOCAL_PORT%?)`,
		"a %DOWNSTREAM_CX_RTT%":                                                                   "%DOWNSTREAM_CX_RTT%: the operator needs Envoy 1.40 or later",
		"%CEL%":                                                                                   "%CEL%: the operator needs a parameter",
		"%PER_REQUEST_STATE%":                                                                     "%PER_REQUEST_STATE%: there is no operator PER_REQUEST_STATE",
		"%REQ_WITHOUT_QUERY(a)%":                                                                  "%REQ_WITHOUT_QUERY(a)%: the operator works only in log formats",
		`%COALESCE({"operators":["PROTOCOLL"]})%`:                                                 `operators[0]: %PROTOCOLL%: there is no operator PROTOCOLL`,
		"100%": `"100%" has a % that begins no operator`,
	} {
		err := CheckHeader(value, capabilitiesOfMinor(38))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", value, err, want)
		}
		if err := CheckHeader(value, capabilitiesOfMinor(35)); err != nil {
			t.Errorf("on Envoy 1.35, %s: %v", value, err)
		}
	}
	if err := CheckHeader("%DOWNSTREAM_NEWS%", capabilitiesOfMinor(41)); err != nil {
		t.Errorf("on an Envoy that may know it: %v", err)
	}
}

// FuzzOperators checks and rewrites texts with operators. What untrusted downstreams get shows no claim, and Envoy takes
// it if it takes the text.
func FuzzOperators(f *testing.F) {
	for list := range listedOperators {
		f.Add("%COALESCE(" + list + ")%")
	}
	for _, text := range []string{
		"a %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(24)%:%DOWNSTREAM_LOCAL_PORT% 100%%", "%CEL(source.address)%", "%REQ(a?b):3%", "%NOPE%", "%",
		`%COALESCE({"operators":["DOWNSTREAM_REMOTE\u005fADDRESS",{"command":"COALESCE","param":"{\"operators\":[\"DOWNSTREAM_LOCAL_PORT\"]}"}]})%`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		can := capabilitiesOfMinor(40)
		safe := hideClaims(text, can, noValue)
		if again := hideClaims(safe, can, noValue); again != safe {
			t.Errorf("%q becomes %q, and this becomes %q", text, safe, again)
		}
		replaceOperators(safe, func(o operator) string {
			wantNoClaim(t, text, o)
			return ""
		})
		if header := HeaderWithoutClaims(text, can); CheckHeader(text, can) == nil && CheckHeader(header, can) != nil {
			t.Errorf("the header %q becomes %q: %v", text, header, CheckHeader(header, can))
		}
		if checkText(can, text) == nil {
			if err := checkText(can, safe); err != nil {
				t.Errorf("%q becomes %q: %v", text, safe, err)
			}
		}
	})
}

// wantNoClaim wants an operator, and those inside it, to show nothing that a PROXY header claims.
func wantNoClaim(t *testing.T, text string, o operator) {
	t.Helper()
	row, known := operators[o.name]
	if !known || row.proxyClaim == claimUseDirect || row.proxyClaim == claimIfExpression && addressWord.MatchString(o.params) {
		t.Errorf("%q becomes a text with %s", text, o)
	}
	if row.proxyClaim == claimIfListed {
		list, err := operatorsIn(o.params)
		if err != nil {
			t.Errorf("%q becomes a text with %s: %v", text, o, err)
		}
		for _, inner := range list {
			wantNoClaim(t, text, inner)
		}
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
