package consul

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
)

// inspectedConsul is a Consul with the gateway edge, on whose service web and instance the token has the given permissions.
type inspectedConsul struct {
	aclsOff bool
	may     map[string]bool // "service write edge"; nil: the token is unknown
	status  int             // of every answer; 0: they are as they should be
}

const inspectedSecret = "the-secret-of-the-token"

// RoundTrip implements http.RoundTripper.
func (c *inspectedConsul) RoundTrip(r *http.Request) (*http.Response, error) {
	res := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r}
	answer := func(status int, body string) (*http.Response, error) {
		res.StatusCode, res.Body = status, io.NopCloser(strings.NewReader(body))
		return res, nil
	}
	filtered := func(body string, may bool) (*http.Response, error) {
		if !may && !c.aclsOff {
			res.Header.Set("X-Consul-Results-Filtered-By-Acls", "true")
			body = "[]"
		}
		return answer(http.StatusOK, body)
	}
	switch {
	case c.status != 0:
		return answer(c.status, "No cluster leader")
	case r.URL.Path == "/v1/internal/acl/authorize" && c.aclsOff:
		return answer(http.StatusUnauthorized, "ACL support disabled")
	case !c.aclsOff && c.may == nil:
		return answer(http.StatusForbidden, "ACL not found")
	}
	switch r.URL.Path {
	case "/v1/internal/acl/authorize":
		var checks []aclCheck
		if err := json.NewDecoder(r.Body).Decode(&checks); err != nil {
			return nil, err
		}
		for i, check := range checks {
			checks[i].Allow = c.may[strings.TrimSpace(check.Resource+" "+check.Access+" "+check.Segment)]
		}
		body, err := json.Marshal(checks)
		if err != nil {
			return nil, err
		}
		return answer(http.StatusOK, string(body))
	case "/v1/acl/token/self":
		return answer(http.StatusOK, `{"AccessorID": "1234", "SecretID": "`+inspectedSecret+`"}`)
	case "/v1/agent/self":
		if !c.aclsOff {
			return answer(http.StatusForbidden, "Permission denied")
		}
		return answer(http.StatusOK, `{"Config": {"Version": "1.22.0"}}`)
	case "/v1/config/ingress-gateway":
		return filtered(`[{"Kind": "ingress-gateway", "Name": "edge", "Listeners": [{"Port": 8080, "Services": [{"Name": "web"}, {"Name": "*"}]}]}]`, c.may["service read edge"])
	case "/v1/health/service/edge":
		return filtered(`[
			{"Node": {"Node": "n2"}, "Service": {"ID": "edge-2", "Kind": "ingress-gateway"}, "Checks": [{"Name": "listening", "Status": "critical"}]},
			{"Node": {"Node": "n1"}, "Service": {"ID": "edge-1", "Kind": "ingress-gateway"}, "Checks": [{"Name": "listening", "Status": "passing"}]},
			{"Node": {"Node": "n1"}, "Service": {"ID": "edge", "Kind": ""}}
		]`, c.may["service read edge"] && c.may["node read n1"])
	}
	return answer(http.StatusOK, "[]") // another gateway has no instances
}

func TestInspect(t *testing.T) {
	allowed := func(list ...string) map[string]bool {
		may := map[string]bool{}
		for _, p := range list {
			may[p] = true
		}
		return may
	}
	type missing struct {
		Rule     string
		Optional bool
	}
	writeEdge := missing{Rule: "service \"edge\" {\n  policy = \"write\"\n}\n"}
	readServices, readNodes := missing{Rule: "service_prefix \"\" {\n  policy = \"read\"\n}\n"}, missing{Rule: "node_prefix \"\" {\n  policy = \"read\"\n}\n"}
	optional := func(m missing) missing { m.Optional = true; return m }
	for _, tc := range []struct {
		name      string
		consul    inspectedConsul
		token     string
		gateway   string
		want      TokenState
		missing   []missing
		entry     bool
		hidden    bool
		instances int
	}{
		{name: "ACLs are off", consul: inspectedConsul{aclsOff: true}, gateway: "edge", want: TokenUnchecked, entry: true, instances: 2},
		{name: "the only gateway", consul: inspectedConsul{aclsOff: true}, want: TokenUnchecked, entry: true, instances: 2},
		{name: "another gateway", consul: inspectedConsul{aclsOff: true}, gateway: "other", want: TokenUnchecked},
		{name: "unknown", token: inspectedSecret, gateway: "edge", want: TokenUnknown},
		{
			name: "no token", consul: inspectedConsul{may: allowed()}, gateway: "edge", want: TokenMissing, hidden: true,
			missing: []missing{writeEdge, readServices, readNodes},
		},
		{
			name: "everything", token: inspectedSecret, gateway: "edge", want: TokenKnown, entry: true, instances: 2,
			consul: inspectedConsul{may: allowed("service write edge", "service read edge", "service read web", "service read", "node read", "node read n1")},
		},
		{
			name: "names", token: inspectedSecret, gateway: "edge", want: TokenKnown, entry: true, instances: 2,
			consul:  inspectedConsul{may: allowed("service write edge", "service read edge", "service read web", "node read n1")},
			missing: []missing{optional(readServices), optional(readNodes)},
		},
		{
			name: "no write, and not the service", token: inspectedSecret, gateway: "edge", want: TokenKnown, entry: true, instances: 2,
			consul:  inspectedConsul{may: allowed("service read edge", "node read n1")},
			missing: []missing{writeEdge, readServices, optional(readNodes)},
		},
		{
			name: "no node", token: inspectedSecret, gateway: "edge", want: TokenKnown, entry: true,
			consul:  inspectedConsul{may: allowed("service write edge", "service read edge", "service read web", "service read")},
			missing: []missing{readNodes},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newTestClient(t, Config{Logger: slog.New(slog.DiscardHandler), Getenv: func(name string) string {
				return map[string]string{"CONSUL_HTTP_TOKEN": tc.token}[name]
			}})
			c.watchHTTP.Transport, c.aclHTTP.Transport = &tc.consul, &tc.consul
			got, err := c.Inspect(t.Context(), gateway.ID{Name: tc.gateway})
			if err != nil {
				t.Fatal(err)
			}
			if got.Token != tc.want || (got.Entry != nil) != tc.entry || got.Hidden != tc.hidden || len(got.Instances) != tc.instances {
				t.Errorf("got %+v", got)
			}
			var lacks []missing
			for _, m := range got.Missing {
				lacks = append(lacks, missing{m.Rule, m.Optional})
			}
			if diff := cmp.Diff(tc.missing, lacks); diff != "" {
				t.Errorf("missing: -want +got\n%s", diff)
			}
			if wantAccessor := map[bool]string{true: "1234"}[tc.want == TokenKnown]; got.Accessor != wantAccessor {
				t.Errorf("got the accessor ID %q, want %q", got.Accessor, wantAccessor)
			}
			if text, _ := json.Marshal(got); strings.Contains(string(text), inspectedSecret) {
				t.Errorf("it has the token: %s", text)
			}
			if tc.instances == 2 {
				want := []RegisteredInstance{{Node: "n1", ServiceID: "edge-1"}, {Node: "n2", ServiceID: "edge-2", Critical: []string{"listening"}}}
				if diff := cmp.Diff(want, got.Instances); diff != "" {
					t.Errorf("instances: -want +got\n%s", diff)
				}
			}
		})
	}
}

func TestInspectSaysWhyConsulDoesNotAnswer(t *testing.T) {
	c := newTestClient(t, Config{})
	c.aclHTTP.Transport = &inspectedConsul{status: http.StatusInternalServerError}
	if _, err := c.Inspect(t.Context(), gateway.ID{Name: "edge"}); err == nil || err.Error() != "consul answered 500: No cluster leader" {
		t.Errorf("got the error %v", err)
	}
}

// askedConsul records what it is asked with which tenancy, and denies everything.
type askedConsul struct {
	inspectedConsul
	asked map[string]bool // "/v1/config/ingress-gateway team west"
}

// RoundTrip implements http.RoundTripper.
func (c *askedConsul) RoundTrip(r *http.Request) (*http.Response, error) {
	c.asked[strings.TrimSpace(r.URL.Path+" "+r.URL.Query().Get("ns")+" "+r.URL.Query().Get("partition"))] = true
	switch r.URL.Path {
	case "/v1/internal/acl/authorize":
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		var checks []aclCheck
		if err := json.Unmarshal(body, &checks); err != nil {
			return nil, err
		}
		for _, k := range checks {
			c.asked[strings.Join(strings.Fields(strings.Join([]string{k.Resource, k.Access, k.Segment, k.Namespace, k.Partition}, " ")), " ")] = true
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
	case "/v1/config/ingress-gateway":
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Request: r, Body: io.NopCloser(strings.NewReader(
			`[{"Kind": "ingress-gateway", "Name": "edge", "Listeners": [{"Port": 8080, "Services": [{"Name": "web"}, {"Name": "web", "Namespace": "other"}]}]}]`,
		))}, nil
	}
	return c.inspectedConsul.RoundTrip(r)
}

// TestInspectAsksInTheNamespaceOfTheGateway inspects a gateway in a namespace and partition of Consul Enterprise.
func TestInspectAsksInTheNamespaceOfTheGateway(t *testing.T) {
	c := newTestClient(t, Config{Getenv: vars{"CONSUL_HTTP_TOKEN": inspectedSecret}.get})
	consul := &askedConsul{inspectedConsul{may: map[string]bool{}}, map[string]bool{}}
	c.watchHTTP.Transport, c.aclHTTP.Transport = consul, consul
	got, err := c.Inspect(t.Context(), gateway.ID{Name: "edge", Namespace: "team", Partition: "west"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"/v1/config/ingress-gateway team west", "/v1/health/service/edge team west",
		"service write edge team west", "service read team west", "node read team west",
		"service read web team west", "service read web other west",
	} {
		if !consul.asked[want] {
			t.Errorf("it did not ask %q, but %v", want, consul.asked)
		}
	}
	rules := ""
	for _, m := range got.Missing {
		rules += m.Rule
	}
	block := func(head, access string) string {
		return "partition \"west\" {\n  namespace \"team\" {\n    " + head + " {\n      policy = \"" + access + "\"\n    }\n  }\n}\n"
	}
	if want := block(`service "edge"`, "write") + block(`service_prefix ""`, "read") + block(`node_prefix ""`, "read"); rules != want {
		t.Errorf("got the rules\n%swant\n%s", rules, want)
	}
}
