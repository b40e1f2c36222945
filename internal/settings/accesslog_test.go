package settings

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func al(settings obj) obj { return obj{"access_log": settings} }

func TestAccessLogSettings(t *testing.T) {
	got, problems := Decode("x", al(obj{
		"sinks":             array{obj{"type": "stdout"}, obj{"type": "otlp", "address": "[2001:db8::7]:4317", "format": "ecs"}},
		"format":            obj{"json": obj{"a": "%PROTOCOL%", "b": array{obj{"c": 1}}}},
		"status_at_least":   500.0,
		"duration_at_least": "250ms",
		"response_flags":    array{"UH", "UF"},
		"request_header":    obj{"name": "x-debug"},
		"sample_per_mille":  "all",
		"rejected":          "none",
		"redact_cookies":    "sid",
	}))
	want := says(Listener{AccessLog: AccessLog{
		Sinks:         Sinks{Type: SinksCustom, Custom: []Sink{{Type: SinkStdout}, {Type: SinkOTLP, Address: HostPort{"2001:db8::7", 4317}, Format: LogFormat{Type: FormatECS}}}},
		Format:        LogFormat{Type: FormatJSON, JSON: map[string]any{"a": "%PROTOCOL%", "b": map[string]any{"c": 1.0}}},
		StatusAtLeast: 500, DurationAtLeast: 250 * time.Millisecond, ResponseFlags: []string{"UF", "UH"}, RequestHeader: HeaderFilter{Name: "x-debug"},
		SamplePerMille: SampleAll, Rejected: SampleNone, RedactCookies: []string{"sid"},
	}})
	if diff := cmp.Diff(want, got, comparePolicies); diff != "" || len(problems) > 0 {
		t.Errorf("%v, settings (-want +got):\n%s", problems, diff)
	}
}

func TestBadAccessLogSettingsAreProblems(t *testing.T) {
	for want, settings := range map[string]obj{
		`access_log.sinks.type: "syslog" is not allowed`:                                    {"sinks": obj{"type": "syslog"}},
		`access_log.sinks.path: this key is missing; use an absolute path`:                  {"sinks": obj{"type": "file"}},
		`access_log.sinks.path: a sink of type "stdout" does not have this key`:             {"sinks": obj{"type": "stdout", "path": "/x"}},
		`access_log.sinks.address: "collector" is not allowed; use a host and a port`:       {"sinks": obj{"type": "otlp", "address": "collector"}},
		`access_log.sinks.address: "::1:4317" is not allowed`:                               {"sinks": obj{"type": "otlp", "address": "::1:4317"}},
		`access_log.sinks.tls.ca: "/etc/ca.pem" is not allowed; use the certificates`:       {"sinks": obj{"type": "grpc", "address": "a:1", "tls": obj{"ca": "/etc/ca.pem"}}},
		`access_log.format: "apache" is not allowed`:                                        {"format": "apache"},
		`access_log.format.text: this looks like JSON`:                                      {"format": obj{"text": `{"path": "%REQ(:PATH)%"}`}},
		`access_log.format.text: this looks like JSON, where`:                               {"format": obj{"text": `x "path":"%REQ(:PATH)%"`}},
		`access_log.format.text: a log entry is one line`:                                   {"format": obj{"text": "a\nb"}},
		`access_log.format.json.a: a list is not allowed`:                                   {"format": obj{"json": obj{"a": array{"x", "y"}}}},
		`access_log.format.fields: "client" is not allowed`:                                 {"format": obj{"fields": array{"client"}}},
		`access_log.status_at_least: 99 is not allowed; use "any" or a number from 100`:     {"status_at_least": 99},
		`access_log.duration_at_least: "1us" is not allowed`:                                {"duration_at_least": "1us"},
		`access_log.response_flags: "XX" is not allowed`:                                    {"response_flags": array{"XX"}},
		`access_log.sample_per_mille: 1000 is not allowed; use "all" or a number from 1 to`: {"sample_per_mille": 1000},
		`access_log.redact_headers: "Authorization" is not allowed`:                         {"redact_headers": array{"Authorization"}},
	} {
		_, problems := Decode("x", al(settings))
		if len(problems) == 0 || !strings.Contains(problems[0].String(), want) {
			t.Errorf("%v: got %v, want %q", settings, problems, want)
		}
	}
}

func TestWhatFormatsMention(t *testing.T) {
	json := LogFormat{Type: FormatJSON, JSON: map[string]any{"n": 1, "tls": map[string]any{"name": "%SNI%"}}}
	for name, c := range map[string]struct {
		log  AccessLog
		want bool
	}{
		"a preset":          {AccessLog{Format: LogFormat{Type: FormatECS}}, false},
		"a field":           {AccessLog{Format: LogFormat{Type: FormatFields, Fields: []string{"path", "name"}}}, true},
		"other fields":      {AccessLog{Format: LogFormat{Type: FormatFields, Fields: []string{"path"}}}, false},
		"a text":            {AccessLog{Format: LogFormat{Type: FormatText, Text: "a %SNI%"}}, true},
		"deep in an object": {AccessLog{Format: json}, true},
		"a sink's own":      {AccessLog{Sinks: Sinks{Type: SinksCustom, Custom: []Sink{{Type: SinkStdout}, {Type: SinkStdout, Format: json}}}}, true},
		"an expression":     {AccessLog{Expression: "connection.sni == ''"}, true},
		"nothing":           {AccessLog{Expression: AnyExpression}, false},
	} {
		if got := c.log.References("name", "SNI", "connection.sni"); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
