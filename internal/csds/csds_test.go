package csds_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/internal/csds"
	"github.com/usherproxy/usher/internal/testing/messages"
	"github.com/usherproxy/usher/xds"
)

const key = "-----BEGIN PRIVATE KEY-----"

var since = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// collection returns a collection of messages with names.
func collection(t *testing.T, typ xds.Type, messages map[string]proto.Message) *xds.Collection {
	t.Helper()
	resources := map[string]*xds.Resource{}
	for name, m := range messages {
		r, err := xds.NewResource(typ, name, m)
		if err != nil {
			t.Fatal(err)
		}
		resources[name] = r
	}
	return xds.NewCollection(resources, nil)
}

func listener(name, prefix string) proto.Message {
	return &listenerv3.Listener{Name: name, StatPrefix: prefix}
}

// client is an Envoy whose listeners one and two are in the given state. It had them in other versions, one in the same.
func client(t *testing.T, id string, sync xds.Sync) *xds.Client {
	t.Helper()
	c := &xds.Client{Node: xds.Node{ID: id, Cluster: "edge", Metadata: map[string]string{"node_name": "node-of-" + id}, Major: 1, Minor: 36, Patch: 2}}
	current := collection(t, xds.Listener, map[string]proto.Message{"one": listener("one", "x"), "two": listener("two", "x")})
	c.Types[xds.Listener] = xds.ClientType{
		Sync: sync, Since: since, Current: current,
		Accepted: collection(t, xds.Listener, map[string]proto.Message{"one": listener("one", "old"), "two": listener("two", "x")}),
	}
	switch sync {
	case xds.Synced:
		c.Types[xds.Listener].Accepted = current
	case xds.Pending, xds.Stale, xds.Waiting:
		c.Types[xds.Listener].Unsettled = &map[string]xds.Sync{"one": sync}
	case xds.Refused:
		c.Types[xds.Listener].Rejection = &xds.Rejection{Version: "v", Resources: []string{"one"}, Message: "address in use"}
	}
	return c
}

func fetch(t *testing.T, clients []*xds.Client, r *statusv3.ClientStatusRequest) []*statusv3.ClientConfig {
	t.Helper()
	answer, err := csds.Server{Clients: func() []*xds.Client { return slices.Clone(clients) }}.FetchClientStatus(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Config
}

func TestEachTypeHasItsStatus(t *testing.T) {
	for sync, want := range map[xds.Sync]statusv3.ConfigStatus{
		xds.Synced: statusv3.ConfigStatus_SYNCED, xds.Pending: statusv3.ConfigStatus_NOT_SENT,
		xds.Stale: statusv3.ConfigStatus_STALE, xds.Refused: statusv3.ConfigStatus_ERROR,
		xds.Waiting: statusv3.ConfigStatus_NOT_SENT,
	} {
		c := client(t, "edge-1", sync)
		configs := fetch(t, []*xds.Client{c}, &statusv3.ClientStatusRequest{ExcludeResourceContents: true})
		if n := configs[0].Node; n.Id != "edge-1" || n.Cluster != "edge" || n.Metadata.Fields["node_name"].GetStringValue() != "node-of-edge-1" ||
			n.GetUserAgentBuildVersion().GetVersion().GetMinorNumber() != 36 {
			t.Errorf("the node is %v", n)
		}
		generics := configs[0].GenericXdsConfigs
		if len(generics) != 1 {
			t.Fatalf("%d types, want the one that it has asked for", len(generics))
		}
		g := generics[0]
		if g.TypeUrl != xds.Listener.URL() || g.Name != "" || g.XdsConfig != nil || g.ConfigStatus != want ||
			g.VersionInfo != c.Types[xds.Listener].Accepted.Version() || !g.LastUpdated.AsTime().Equal(since) {
			t.Errorf("%v: %v", want, g)
		}
		if failed := g.ErrorState; (failed != nil) != (sync == xds.Refused) || failed != nil && (failed.Details != "address in use" || failed.VersionInfo != "v") {
			t.Errorf("%v: the error is %v", want, failed)
		}
	}
}

func TestEachResourceHasItsStatusAndContent(t *testing.T) {
	for sync, want := range map[xds.Sync]statusv3.ConfigStatus{
		xds.Synced: statusv3.ConfigStatus_SYNCED, xds.Pending: statusv3.ConfigStatus_NOT_SENT,
		xds.Stale: statusv3.ConfigStatus_STALE, xds.Refused: statusv3.ConfigStatus_ERROR,
		xds.Waiting: statusv3.ConfigStatus_NOT_SENT,
	} {
		c := client(t, "edge-1", sync)
		generics := fetch(t, []*xds.Client{c}, &statusv3.ClientStatusRequest{})[0].GenericXdsConfigs
		if len(generics) != 2 {
			t.Fatalf("%d resources, want 2", len(generics))
		}
		for i, name := range []string{"one", "two"} {
			g, wantStatus := generics[i], want
			if name == "two" {
				wantStatus = statusv3.ConfigStatus_SYNCED // it has not changed
			}
			var content listenerv3.Listener
			if err := g.XdsConfig.UnmarshalTo(&content); err != nil || content.Name != name || content.StatPrefix != "x" {
				t.Errorf("the content of %s is %v (%v)", name, &content, err)
			}
			if g.Name != name || g.ConfigStatus != wantStatus || g.VersionInfo != c.Types[xds.Listener].Current.Get(name).Version() ||
				(g.ErrorState != nil) != (wantStatus == statusv3.ConfigStatus_ERROR) {
				t.Errorf("%v: %s is %v", sync, name, g)
			}
		}
	}
	// Nothing is known yet.
	waits := &xds.Client{}
	waits.Types[xds.Cluster] = xds.ClientType{Sync: xds.Pending}
	if g := fetch(t, []*xds.Client{waits}, &statusv3.ClientStatusRequest{})[0].GenericXdsConfigs; len(g) != 1 || g[0].ConfigStatus != statusv3.ConfigStatus_NOT_SENT {
		t.Errorf("without resources: %v", g)
	}
}

// A type with an error has other resources, which are not sent or not answered.
func TestAResourceBesideARefusedOneHasItsOwnStatus(t *testing.T) {
	for sync, want := range map[xds.Sync]statusv3.ConfigStatus{xds.Pending: statusv3.ConfigStatus_NOT_SENT, xds.Stale: statusv3.ConfigStatus_STALE} {
		c := client(t, "edge-1", xds.Refused)
		c.Types[xds.Listener].Unsettled = &map[string]xds.Sync{"two": sync}
		generics := fetch(t, []*xds.Client{c}, &statusv3.ClientStatusRequest{})[0].GenericXdsConfigs
		if generics[0].ConfigStatus != statusv3.ConfigStatus_ERROR || generics[1].ConfigStatus != want {
			t.Errorf("%v, want an error and %v", generics, want)
		}
	}
}

func TestKeysAreNotInTheAnswer(t *testing.T) {
	c := &xds.Client{}
	secret := &tlsv3.Secret{Name: "leaf", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "chain"}},
		PrivateKey:       &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: key}},
	}}}
	secrets := collection(t, xds.Secret, map[string]proto.Message{"leaf": secret})
	c.Types[xds.Secret] = xds.ClientType{Sync: xds.Synced, Accepted: secrets, Current: secrets}
	got := fetch(t, []*xds.Client{c}, &statusv3.ClientStatusRequest{})[0].GenericXdsConfigs[0].XdsConfig
	if text := string(got.Value); strings.Contains(text, key) || !strings.Contains(text, "chain") || !strings.Contains(text, "[redacted]") {
		t.Errorf("the secret is %q", text)
	}
}

// tooLarge returns the error of an answer that is too large.
func tooLarge(t *testing.T) error {
	t.Helper()
	large := collection(t, xds.Cluster, map[string]proto.Message{"c": &clusterv3.Cluster{Name: "c", AltStatName: strings.Repeat("x", 1<<20)}})
	clients := make([]*xds.Client, 70)
	for i := range clients {
		clients[i] = &xds.Client{}
		clients[i].Types[xds.Cluster] = xds.ClientType{Sync: xds.Synced, Accepted: large, Current: large}
	}
	s := csds.Server{Clients: func() []*xds.Client { return slices.Clone(clients) }}
	if _, err := s.FetchClientStatus(t.Context(), &statusv3.ClientStatusRequest{ExcludeResourceContents: true}); err != nil {
		t.Errorf("without contents: %v", err)
	}
	_, err := s.FetchClientStatus(t.Context(), &statusv3.ClientStatusRequest{})
	return err
}

func TestALargeAnswerIsRefused(t *testing.T) {
	if err := tooLarge(t); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("70 MiB: %v", err)
	}
}

// TestMessages selects Envoys by matchers, of which some are wrong.
func TestMessages(t *testing.T) {
	var errs []string
	clients := []*xds.Client{client(t, "edge-2", xds.Synced), client(t, "edge-1", xds.Synced), client(t, "other", xds.Synced), {Node: xds.Node{ID: "bare", Cluster: "x"}}}
	exact := func(text string) *matcherv3.StringMatcher {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: text}}
	}
	regex := func(text string) *matcherv3.StringMatcher {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: text}}}
	}
	id := func(m *matcherv3.StringMatcher) *matcherv3.NodeMatcher { return &matcherv3.NodeMatcher{NodeId: m} }
	metadata := func(value *matcherv3.ValueMatcher, path ...string) *matcherv3.NodeMatcher {
		m := &matcherv3.StructMatcher{Value: value}
		for _, key := range path {
			m.Path = append(m.Path, &matcherv3.StructMatcher_PathSegment{Segment: &matcherv3.StructMatcher_PathSegment_Key{Key: key}})
		}
		return &matcherv3.NodeMatcher{NodeMetadatas: []*matcherv3.StructMatcher{m}}
	}
	text := func(m *matcherv3.StringMatcher) *matcherv3.ValueMatcher {
		return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_StringMatch{StringMatch: m}}
	}
	present := func(is bool) *matcherv3.ValueMatcher {
		return &matcherv3.ValueMatcher{MatchPattern: &matcherv3.ValueMatcher_PresentMatch{PresentMatch: is}}
	}
	both := metadata(text(exact("node-of-edge-1")), "node_name")
	both.NodeId = exact("edge-2")
	for _, tc := range []struct {
		name     string
		matchers []*matcherv3.NodeMatcher
		want     string // "invalid": an error
	}{
		{"none", nil, "edge-1 edge-2 other bare"},
		{"exact", []*matcherv3.NodeMatcher{id(exact("edge-1"))}, "edge-1"},
		{"ignoring case", []*matcherv3.NodeMatcher{id(&matcherv3.StringMatcher{IgnoreCase: true, MatchPattern: &matcherv3.StringMatcher_Exact{Exact: "EDGE-1"}})}, "edge-1"},
		{"with case", []*matcherv3.NodeMatcher{id(exact("EDGE-1"))}, ""},
		{"prefix", []*matcherv3.NodeMatcher{id(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "edge"}})}, "edge-1 edge-2"},
		{"suffix", []*matcherv3.NodeMatcher{id(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: "e"}})}, "bare"},
		{"contains", []*matcherv3.NodeMatcher{id(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: "ge-2"}})}, "edge-2"},
		{"the whole text", []*matcherv3.NodeMatcher{id(regex("edge|[a-z]+-2"))}, "edge-2"},
		{"one or the other", []*matcherv3.NodeMatcher{id(exact("edge-1")), id(exact("other"))}, "edge-1 other"},
		{"metadata", []*matcherv3.NodeMatcher{metadata(text(exact("node-of-edge-2")), "node_name")}, "edge-2"},
		{"metadata with any text", []*matcherv3.NodeMatcher{metadata(text(regex(".*")), "node_name")}, "edge-1 edge-2 other"},
		{"metadata that is there", []*matcherv3.NodeMatcher{metadata(present(true), "node_name")}, "edge-1 edge-2 other"},
		{"metadata that is not", []*matcherv3.NodeMatcher{metadata(present(false), "node_name")}, "bare"},
		{"both conditions", []*matcherv3.NodeMatcher{both}, ""},
		{"an empty one", []*matcherv3.NodeMatcher{{}}, "edge-1 edge-2 other bare"},
		{"no pattern", []*matcherv3.NodeMatcher{id(&matcherv3.StringMatcher{})}, "invalid"},
		{"a bad expression", []*matcherv3.NodeMatcher{id(regex("("))}, "invalid"},
		{"a number", []*matcherv3.NodeMatcher{metadata(&matcherv3.ValueMatcher{}, "node_name")}, "invalid"},
		{"a path of two keys", []*matcherv3.NodeMatcher{metadata(present(true), "a", "b")}, "invalid"},
		{"a bad pattern of metadata", []*matcherv3.NodeMatcher{metadata(text(regex("(")), "node_name")}, "invalid"},
	} {
		s := csds.Server{Clients: func() []*xds.Client { return slices.Clone(clients) }}
		answer, err := s.FetchClientStatus(t.Context(), &statusv3.ClientStatusRequest{NodeMatchers: tc.matchers, ExcludeResourceContents: true})
		if tc.want == "invalid" {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s: %v, want InvalidArgument", tc.name, err)
			}
			errs = append(errs, status.Convert(err).Message())
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		var got []string
		for _, c := range answer.Config {
			got = append(got, c.Node.Id)
		}
		if text := strings.Join(got, " "); text != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, text, tc.want)
		}
	}
	errs = append(errs, status.Convert(tooLarge(t)).Message())
	messages.Check(t, errs, "errors.New", "status.Errorf")
}
