package resourcediff

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/usherproxy/usher/internal/redaction"
)

// TestNothingSecretIsLeft has a secret in each place where a resource may have one.
func TestNothingSecretIsLeft(t *testing.T) {
	const secret = "s3cret"
	data := &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: secret}}
	bytes := &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte(secret)}}
	header := func(name string) []*corev3.HeaderValueOption {
		return []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: name, Value: secret}}}
	}
	matching := func(m *routev3.HeaderMatcher) *routev3.Route {
		m.Name = "X-Token"
		return &routev3.Route{Match: &routev3.RouteMatch{Headers: []*routev3.HeaderMatcher{m}}}
	}
	exactly := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: secret}}
	call := &corev3.GrpcService{InitialMetadata: []*corev3.HeaderValue{{Key: "x-name", Value: secret}}}
	for name, m := range map[string]proto.Message{
		"key":         &tlsv3.Secret{Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{PrivateKey: data, Password: bytes}}},
		"pkcs12":      &tlsv3.Secret{Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{Pkcs12: bytes}}},
		"ticket keys": &tlsv3.Secret{Type: &tlsv3.Secret_SessionTicketKeys{SessionTicketKeys: &tlsv3.TlsSessionTicketKeys{Keys: []*corev3.DataSource{data}}}},
		"generic":     &tlsv3.Secret{Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{Secret: data}}},
		"in a context": &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsCertificates: []*tlsv3.TlsCertificate{{PrivateKey: data}},
		}},
		"provider": &tlsv3.PrivateKeyProvider{ConfigType: &tlsv3.PrivateKeyProvider_TypedConfig{TypedConfig: &anypb.Any{}}},
		"header":   &routev3.RouteConfiguration{RequestHeadersToAdd: header("Authorization")},
		"cookie":   &routev3.RouteConfiguration{ResponseHeadersToAdd: header("set-cookie")},
		"api key":  &routev3.RouteConfiguration{RequestHeadersToAdd: header("X-Api-Key")},
		"metadata": call,
		"matcher":  matching(&routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exactly}}),
		"exact":    matching(&routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_ExactMatch{ExactMatch: secret}}),       //nolint:staticcheck // Consul's own xDS has it
		"prefix":   matching(&routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_PrefixMatch{PrefixMatch: secret}}),     //nolint:staticcheck // as above
		"suffix":   matching(&routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_SuffixMatch{SuffixMatch: secret}}),     //nolint:staticcheck // as above
		"contains": matching(&routev3.HeaderMatcher{HeaderMatchSpecifier: &routev3.HeaderMatcher_ContainsMatch{ContainsMatch: secret}}), //nolint:staticcheck // as above
		"regex": matching(&routev3.HeaderMatcher{
			HeaderMatchSpecifier: &routev3.HeaderMatcher_SafeRegexMatch{SafeRegexMatch: &matcherv3.RegexMatcher{Regex: secret}}, //nolint:staticcheck // as above
		}),
		"query parameter": &routev3.Route{Match: &routev3.RouteMatch{QueryParameters: []*routev3.QueryParameterMatcher{{
			Name: "api_key", QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: exactly},
		}}}},
		"log filter": &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_HeaderFilter{HeaderFilter: &accesslogv3.HeaderFilter{
			Header: &routev3.HeaderMatcher{Name: "authorization", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exactly}},
		}}},
	} {
		packed, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		r := Resources{}
		if err := r.Add("resource", packed); err != nil {
			t.Fatal(err)
		}
		got := Text(r.Redact()[packed.TypeUrl])
		if strings.Contains(got, secret) || strings.Contains(got, "czNjcmV0") || name != "provider" && !strings.Contains(got, redaction.Redacted) {
			t.Errorf("%s: %s", name, got)
		}
		redacted, err := RedactMessage(packed)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if value := string(redacted.Value); strings.Contains(value, secret) || name != "provider" && name != "ticket keys" && !strings.Contains(value, redaction.Redacted) {
			t.Errorf("the message of %s: %q", name, value)
		}
	}
	harmless := &routev3.HeaderMatcher{Name: "x-client", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exactly}}
	for _, m := range []proto.Message{&routev3.RouteConfiguration{RequestHeadersToAdd: header("x-client")}, harmless} {
		packed, _ := anypb.New(m)
		r := Resources{}
		if err := r.Add("resource", packed); err != nil {
			t.Fatal(err)
		}
		if got := Text(r.Redact()); !strings.Contains(got, secret) {
			t.Errorf("a header without a secret is redacted: %s", got)
		}
	}
}

func TestARedactedCertificateIsCanonical(t *testing.T) {
	r := Resources{"type": {"a": map[string]any{"tls_certificates": []any{map[string]any{
		"certificate_chain": map[string]any{"inline_string": "no PEM"}, "private_key": map[string]any{"inline_string": "key"},
	}}}}}
	if _, err := r.Canonical(); err == nil {
		t.Error("a certificate and key that do not fit are accepted")
	}
	if _, err := r.Redact().Canonical(); err != nil {
		t.Errorf("a redacted key: %v", err)
	}
}

func TestAMessageWithoutSecretsStaysTheSame(t *testing.T) {
	pack := func(m proto.Message) *anypb.Any {
		t.Helper()
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	metadata, err := structpb.NewStruct(map[string]any{"a": []any{"b", 1, true, nil}, "c": map[string]any{"d": 0.5}})
	if err != nil {
		t.Fatal(err)
	}
	listener := &listenerv3.Listener{
		Name: "http:0.0.0.0:8080", TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(1), ListenerFiltersTimeout: durationpb.New(time.Second),
		Metadata: &corev3.Metadata{
			FilterMetadata:      map[string]*structpb.Struct{"x": metadata},
			TypedFilterMetadata: map[string]*anypb.Any{"y": pack(durationpb.New(time.Minute)), "z": pack(metadata), "w": pack(wrapperspb.String("text"))},
		},
		FilterChains: []*listenerv3.FilterChain{{
			FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: []string{"a.example", "b.example"}},
			Filters:          []*listenerv3.Filter{{Name: "f", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(&listenerv3.Listener{Name: "inside"})}}},
		}},
	}
	got, err := RedactMessage(pack(listener))
	if err != nil {
		t.Fatal(err)
	}
	var after listenerv3.Listener
	if err := got.UnmarshalTo(&after); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(listener, &after, protocmp.Transform()); diff != "" {
		t.Errorf("want -, got +\n%s", diff)
	}
}

func TestRedactMessageLeavesItsArgument(t *testing.T) {
	secret := &tlsv3.Secret{Name: "leaf", Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
		Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "s3cret"}},
	}}}
	packed, err := anypb.New(secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := RedactMessage(packed); err != nil {
		t.Fatal(err)
	}
	var after tlsv3.Secret
	if err := packed.UnmarshalTo(&after); err != nil || !proto.Equal(secret, &after) {
		t.Errorf("the resource itself became %v (%v)", &after, err)
	}
}

// TestNothingSecretIsLeftInATree has a secret in each place where settings, config entries, a snapshot or an answer of Envoy
// may have one.
func TestNothingSecretIsLeftInATree(t *testing.T) {
	for _, secret := range []string{
		`{"RequestHeaders": {"Add": {"Authorization": "s3cret"}}}`,
		`{"request_headers": {"set": {"x-api-key": "s3cret"}}}`,
		`{"Match": {"HTTP": {"Header": [{"Name": "cookie", "Exact": "s3cret"}]}}}`,
		`{"Match": {"HTTP": {"QueryParam": [{"Name": "token", "Regex": "s3cret"}]}}}`,
		`{"access_log": {"request_header": {"name": "X-Token", "value": "s3cret"}}}`,
		`{"metadata": {"x-consul-token": "s3cret"}}`,
		`{"command_line_options": {"config_yaml": "token: s3cret"}}`,
		`{"initial_metadata": [{"key": "usher-signature", "value": "s3cret"}]}`,
		`{"text": "-----BEGIN EC PRIVATE KEY-----\ns3cret\n-----END EC PRIVATE KEY-----\n"}`,
		`["a", "-----BEGIN PRIVATE KEY-----\ns3cret"]`,
		`"error: Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2hlciJ9.s3cret"`,
		`{"headers_to_add": [{"key": "authorization", "value": "s3cret"}]}`,
		`{"entries": [{"key": "api_key", "value": "s3cret"}]}`,
		`{"Header": {"Authorization": ["Bearer s3cret"]}}`,
		`{"Name": "authorization", "Match": {"Exact": "s3cret"}}`,
		`{"token": {"inline_string": "s3cret"}}`,
		`{"oauth_token": {"any": {"key": ["s3cret"]}}}`,
		`{"token": 53}`, `{"Cookies": {"session": "s3cret", "n": 53}}`,
		`{"header_name": "authorization", "string_match": {"exact": "s3cret"}}`,
		`{"header_name": "authorization", "header_value": "s3cret"}`,
		`{"cookie": {"name": "session", "value": "s3cret"}}`,
		`{"address": "https://admin:s3cret@consul.example.com:8501"}`,
		`{"address": "https://s3cret@consul.example.com:8501"}`,
	} {
		if got := redactJSON(t, secret); strings.Contains(got, "s3cret") || strings.Contains(got, "53") || !strings.Contains(got, redaction.Redacted) {
			t.Errorf("%s: %s", secret, got)
		}
	}
	for _, harmless := range []string{
		`{"RequestHeaders":{"Add":{"X-Client":"s3cret"},"Remove":["Authorization"]}}`,
		`{"Header":[{"Exact":"s3cret","Name":"x-client"}]}`,
		`{"Exact":"","Name":"cookie"}`,
		`{"CONSUL_HTTP_TOKEN_FILE":"/run/s3cret","cookie_path":"/s3cret","redact_cookies":["s3cret"],"secret_name":"s3cret"}`,
		`{"token_bucket":{"fill_interval":"1s","max_tokens":53,"tokens_per_fill":{"value":53}}}`,
		`{"cookie":{"name":"session","path":"/","ttl":"60s"}}`,
		`{"tls_certificate_sds_secret_configs":[{"name":"s3cret","sds_config":{"ads":{}}}]}`,
		`{"CookieConfig":{"Path":"/"},"Targets":{"token.default.dc1":{"Name":"s3cret"}},"require_token":true}`,
		`"mailto:s3cret@example.com http://127.0.0.1:8500/v1/s3cret@1 eyJ.s3cret"`,
	} {
		if got := redactJSON(t, harmless); got != harmless {
			t.Errorf("got %s, want %s", got, harmless)
		}
	}
}

func redactJSON(t *testing.T, text string) string {
	t.Helper()
	var tree Tree
	if err := json.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatal(err)
	}
	return Text(RedactTree(tree))
}

// TestNothingSecretIsLeftInWellKnownTypes has a token in each message that has a special form in JSON.
func TestNothingSecretIsLeftInWellKnownTypes(t *testing.T) {
	const token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ1c2hlciJ9.s3cret"
	list, err := structpb.NewList([]any{"a " + token, 1, []any{token}})
	if err != nil {
		t.Fatal(err)
	}
	pack := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	of := &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewListValue(list), "token": structpb.NewNumberValue(1)}}
	for name, m := range map[string]proto.Message{
		"value": structpb.NewStringValue("a " + token), "list": list, "struct": of, "wrapper": wrapperspb.String("a " + token),
		"metadata": &corev3.Metadata{
			FilterMetadata:      map[string]*structpb.Struct{"x": of},
			TypedFilterMetadata: map[string]*anypb.Any{"y": pack(list), "z": pack(wrapperspb.String("a " + token))},
		},
		"field":  &corev3.KeyValuePair{Key: "k", Value: structpb.NewListValue(list)},
		"format": &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: of}},
	} {
		redacted, err := RedactMessage(pack(m))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if value := string(redacted.Value); strings.Contains(value, "s3cret") || !strings.Contains(value, redaction.Redacted) {
			t.Errorf("%s: %q", name, value)
		}
	}
}
