package consul

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/gateway"
)

// acl is a Consul that answers one thing about ACLs.
type acl struct {
	status int
	body   string

	token []string // what the last request had
	asked string
	path  string
}

// ServeHTTP implements http.Handler.
func (a *acl) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	a.token, a.asked, a.path = r.Header["X-Consul-Token"], string(body), r.Method+" "+r.URL.RequestURI()
	if a.status/100 == 3 {
		w.Header().Set("Location", "http://"+r.Host+"/elsewhere")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write([]byte(strings.ReplaceAll(a.body, "TOKEN", r.Header.Get("X-Consul-Token")))) // the client may have gone
}

const callersToken = "5ec4e7a1-0000-4000-8000-000000000001"

// Every answer but the last six is what Consul 1.22.0 and 1.15.1 write.
func TestConsulsACLsDecideWhoMayHaveAGateway(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		body   string
		want   string // allowed, denied, unknown, or a part of the error
	}{
		"service:write":     {200, `[{"Resource":"service","Segment":"gateway","Access":"write","Allow":true}]`, "allowed"},
		"service:read only": {200, `[{"Resource":"service","Segment":"gateway","Access":"write","Allow":false}]`, "denied"},
		"unknown token":     {403, "ACL not found", "unknown"},
		"ACLs are off":      {401, "ACL support disabled", "allowed"},
		"no server":         {500, "No known Consul servers", "500: No known Consul servers"},
		"too many requests": {429, "Your IP is issuing too many concurrent connections, please rate limit your calls", "429"},

		"another service":   {200, `[{"Resource":"service","Segment":"other","Access":"write","Allow":true}]`, "another check"},
		"another access":    {200, `[{"Resource":"service","Segment":"gateway","Access":"read","Allow":true}]`, "another check"},
		"no answer":         {200, `[]`, "0 results"},
		"two answers":       {200, `[{"Allow":true},{"Allow":true}]`, "2 results"},
		"a page of a proxy": {200, `<html>`, "unexpected answer"},
		"denied otherwise":  {403, "Permission denied for TOKEN", "403"},
	} {
		t.Run(name, func(t *testing.T) {
			fake := &acl{status: test.status, body: test.body}
			err := authorizeWith(t, fake, callersToken)
			switch {
			case test.want == "allowed":
				if err != nil {
					t.Fatalf("error %v, want none", err)
				}
			case test.want == "denied":
				if !errors.Is(err, ErrDenied) {
					t.Fatalf("error %v, want ErrDenied", err)
				}
			case test.want == "unknown":
				if !errors.Is(err, ErrUnknownToken) {
					t.Fatalf("error %v, want ErrUnknownToken", err)
				}
			case err == nil || isDecision(err) || !strings.Contains(err.Error(), test.want):
				t.Fatalf("error %v, want %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), callersToken) {
				t.Errorf("the error prints the token: %v", err)
			}
			if got := strings.Join(fake.token, " "); got != callersToken {
				t.Errorf("Consul was asked about token %q, want the caller's", got)
			}
			if want := `[{"Resource":"service","Access":"write","Segment":"gateway"}]`; fake.asked != want {
				t.Errorf("asked %s, want %s", fake.asked, want)
			}
			if want := "POST /v1/internal/acl/authorize"; fake.path != want {
				t.Errorf("asked at %s, want %s", fake.path, want)
			}
		})
	}
}

// isDecision reports whether an error of Authorize is an answer.
func isDecision(err error) bool { return errors.Is(err, ErrDenied) || errors.Is(err, ErrUnknownToken) }

// authorizeWith asks fake about a token for the gateway "gateway". Usher itself
// has a token of its own.
func authorizeWith(t *testing.T, fake *acl, token string) error {
	t.Helper()
	server := httptest.NewServer(fake)
	defer server.Close()
	logged := &strings.Builder{}
	c := newTestClient(t, Config{
		HTTPAddr: server.URL,
		Getenv:   vars{"CONSUL_HTTP_TOKEN": "usher's own"}.get,
		Logger:   slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	err := NewAuthorizer(c, AuthorizerOptions{}).Authorize(t.Context(), Caller{Token: token}, gateway.ID{Name: "gateway"})
	if token != "" && strings.Contains(logged.String(), token) {
		t.Errorf("the log has the token: %s", logged)
	}
	return err
}

func TestAnEnvoyWithoutATokenDoesNotGetUshersOwn(t *testing.T) {
	fake := &acl{status: 200, body: `[{"Resource":"service","Segment":"gateway","Access":"write","Allow":false}]`}
	if err := authorizeWith(t, fake, ""); !errors.Is(err, ErrDenied) {
		t.Errorf("error %v, want ErrDenied", err)
	}
	if len(fake.token) != 0 {
		t.Errorf("Consul was asked about token %q, want none", fake.token)
	}
}

func TestARedirectDoesNotCarryTheTokenAway(t *testing.T) {
	fake := &acl{status: http.StatusTemporaryRedirect}
	if err := authorizeWith(t, fake, callersToken); err == nil || isDecision(err) {
		t.Errorf("error %v, want one that is no decision", err)
	}
	if fake.path != "POST /v1/internal/acl/authorize" {
		t.Errorf("the redirect was followed to %s", fake.path)
	}
}

func TestATokenThatCannotBeSentIsUnknown(t *testing.T) {
	for _, token := range []string{"a\r\nX-Consul-Token: b", "a\x00", "ünknown"} {
		if err := authorizeWith(t, &acl{status: 200}, token); !errors.Is(err, ErrUnknownToken) {
			t.Errorf("%q: error %v, want ErrUnknownToken", token, err)
		}
	}
}

func TestAnUnreachableConsulIsNoDecision(t *testing.T) {
	server := httptest.NewServer(&acl{})
	server.Close()
	metrics := NewMetrics(prometheus.NewRegistry())
	c := newTestClient(t, Config{HTTPAddr: server.URL, Metrics: metrics})
	err := NewAuthorizer(c, AuthorizerOptions{}).Authorize(t.Context(), Caller{Token: callersToken}, gateway.ID{Name: "gateway"})
	if err == nil || isDecision(err) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v, want that the connection was refused", err)
	}
	if strings.Contains(err.Error(), callersToken) {
		t.Errorf("the error prints the token: %v", err)
	}
	if n := testutil.ToFloat64(metrics.authorizations.WithLabelValues("failed")); n != 1 {
		t.Errorf("%v failed authorizations are counted, want 1", n)
	}
}

func TestNamespacesAreAskedWith(t *testing.T) {
	fake := &acl{status: 200, body: `[{"Resource":"service","Segment":"gateway","Access":"write","Allow":true}]`}
	server := httptest.NewServer(fake)
	defer server.Close()
	for _, test := range []struct {
		env  vars
		id   gateway.ID
		want string
	}{
		{id: gateway.ID{Namespace: "default", Partition: "default"}},
		{id: gateway.ID{Namespace: "team", Partition: "part"}, want: `,"Namespace":"team","Partition":"part"`},
		{env: vars{"CONSUL_NAMESPACE": "own", "CONSUL_PARTITION": "default"}, want: `,"Namespace":"default","Partition":"default"`},
		{env: vars{"CONSUL_NAMESPACE": "own"}, id: gateway.ID{Namespace: "default"}, want: `,"Namespace":"default","Partition":"default"`},
	} {
		test.id.Name = "gateway"
		c := newTestClient(t, Config{HTTPAddr: server.URL, Getenv: test.env.get})
		if err := NewAuthorizer(c, AuthorizerOptions{}).Authorize(t.Context(), Caller{Token: callersToken}, test.id); err != nil {
			t.Error(err)
		}
		if want := `[{"Resource":"service","Access":"write","Segment":"gateway"` + test.want + `}]`; fake.asked != want {
			t.Errorf("%v with %v: asked %s, want %s", test.id, test.env, fake.asked, want)
		}
	}
}
