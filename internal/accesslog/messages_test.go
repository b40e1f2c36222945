package accesslog

import (
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/messages"
)

// oneSpace makes messages one line. The protobuf library varies its space on purpose.
var oneSpace = strings.NewReplacer("\n", " ", "\u00a0", " ")

// placeOf has each setting in one file.
func placeOf(setting string) settings.Place {
	group, key, _ := strings.Cut(setting, ".")
	key, _, _ = strings.Cut(key, "[")
	layer, _ := settings.Layer{}.Update("usher.hcl:1", map[string]any{group: map[string]any{key: settable[key]}})
	layer.Places = map[string]problem.Position{setting: {File: "usher.hcl", Line: 7}}
	return settings.PlaceOf(setting, 8080, layer)
}

// settable are values of the settings that problems belong to.
var settable = map[string]any{"format": "ecs", "expression": "true", "redact_query": "yes", "sinks": "none"}

func TestMessages(t *testing.T) {
	var all []string
	add := func(minor uint32, consul gateway.AccessLogs, s settings.AccessLog) {
		consul.Enabled = true
		if s.Sinks.Type == "" {
			s.Sinks.Type = settings.SinksDefault
		}
		if s.Format.Type == "" {
			s.Format.Type = settings.FormatDefault
		}
		_, problems := Build(Params{Where: "listener 8080", Place: placeOf, HTTP: true, Consul: consul, Settings: s, Envoy: capabilitiesOfMinor(minor)})
		for _, p := range problems {
			all = append(all, oneSpace.Replace(p.String()))
		}
	}
	for _, text := range []string{
		"%NOPE%", "%REMOTE_ADDRESS%", "%CLIENT_ADDR%", "%DOWNSTREAM_CX_RTT%", "%REQ%", "%DURATION(3)%", "%REQUESTED_SERVER_NAME(SNI_ONLY)%",
		"%PROTOCOL:3%", "%DYNAMIC_METADATA(a:b):3%", "%REQ(a):1234567%", "%REQ(a@b)%", "%START_TIME(\n)%", "%GRPC_STATUS(X)%", "100%",
		"%CEL(1 +)%", "%CEL(1 1)%", "%CEL(request.path.split('/'))%", "%CEL(path)%", "%CEL(google.Message{})%",
		"%CEL(request.path.matches('(a'))%", "%CEL(request.path.matches('^(.*){16}$'))%",
	} {
		add(36, gateway.AccessLogs{TextFormat: text}, settings.AccessLog{})
	}
	for _, list := range []string{"x", "{}", `{"operators": ["REQ(x)"]}`, `{"operators": ["REQUESTED_SERVER_NAM"]}`, `{"operators": ["REQEUST_HEADER"]}`, `{"operators": ["REQ_WITHOUT_QUERY"]}`} {
		add(40, gateway.AccessLogs{TextFormat: "%COALESCE(" + list + ")%"}, settings.AccessLog{})
	}
	add(40, gateway.AccessLogs{TextFormat: "%CEL(request.path)%"}, settings.AccessLog{RedactQuery: settings.Yes})
	add(36, gateway.AccessLogs{Type: "syslog"}, settings.AccessLog{})
	add(36, gateway.AccessLogs{Type: "file"}, settings.AccessLog{})
	add(36, gateway.AccessLogs{JSONFormat: "["}, settings.AccessLog{})
	add(22, gateway.AccessLogs{}, settings.AccessLog{RedactQuery: settings.Yes})
	for _, preset := range []settings.LogFormatType{settings.FormatECS, settings.FormatCombined} {
		add(22, gateway.AccessLogs{}, settings.AccessLog{Format: settings.LogFormat{Type: preset}})
	}
	add(22, gateway.AccessLogs{}, settings.AccessLog{Expression: "true"})
	add(36, gateway.AccessLogs{}, settings.AccessLog{
		Format: settings.LogFormat{Type: settings.FormatJSON, JSON: map[string]any{"a": "\xff"}},
	})
	add(36, gateway.AccessLogs{}, settings.AccessLog{RedactQuery: settings.Yes, Sinks: settings.Sinks{
		Type: settings.SinksCustom, Custom: []settings.Sink{{Type: settings.SinkGRPC}},
	}})
	_, problems := Build(Params{Where: "listener 8080", Report: Report{Cluster: "local_agent", Metadata: []*corev3.HeaderValue{{}}}})
	for _, p := range problems {
		all = append(all, oneSpace.Replace(p.String()))
	}
	messages.Check(t, all, "fmt.Errorf", "errors.New", "refuse", "problem.Problem", "report")
}
