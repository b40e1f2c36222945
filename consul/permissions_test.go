package consul

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usherproxy/usher/internal/problem"
)

// permissionConsul has ingress-gateway entries, and answers what a token may do.
type permissionConsul struct {
	mu       sync.Mutex
	gateways []string
	hidden   bool            // there are others that the token may not read
	may      map[string]bool // "service write edge"
	requests [][]aclCheck
}

// RoundTrip implements http.RoundTripper.
func (c *permissionConsul) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var answer any
	header := http.Header{}
	switch {
	case r.Header.Get("X-Consul-Token") != "usher's":
		return &http.Response{StatusCode: http.StatusForbidden, Body: io.NopCloser(strings.NewReader("ACL not found")), Request: r}, nil
	case strings.HasPrefix(r.URL.Path, "/v1/config/"):
		list := []any{}
		for _, name := range c.gateways {
			list = append(list, map[string]any{"Kind": "ingress-gateway", "Name": name})
		}
		answer = list
		if c.hidden {
			header.Set("X-Consul-Results-Filtered-By-Acls", "true")
		}
	default:
		var checks []aclCheck
		if err := json.NewDecoder(r.Body).Decode(&checks); err != nil {
			return nil, err
		}
		c.requests = append(c.requests, checks)
		for i, check := range checks {
			checks[i].Allow = c.may[strings.TrimSpace(check.Resource+" "+check.Access+" "+check.Segment)]
		}
		answer = checks
	}
	text, err := json.Marshal(answer)
	return &http.Response{StatusCode: http.StatusOK, Header: header, Body: io.NopCloser(strings.NewReader(string(text))), Request: r}, err
}

// everything is what the policy in the docs allows, with its optional rules.
func everything() map[string]bool {
	return map[string]bool{"service read": true, "node read": true, "agent read": true, "peering read": true, "service write edge": true, "service write other": true}
}

func TestMissingPermissionsAreNamed(t *testing.T) {
	for _, tc := range []struct {
		name     string
		gateways []string
		hidden   bool
		missing  []string // of everything
		info     []string // lines of the log
		warn     []string
	}{
		{name: "nothing", gateways: []string{"edge", "other"}},
		{name: "no gateway yet", missing: []string{"service write edge"}},
		{
			name: "no gateway yet, and permissions by name", missing: []string{"service read", "service write other"},
			info: []string{"service:read on every service"},
		},
		{
			name: "no gateway that it may read", hidden: true, missing: []string{"service read", "service write edge"},
			info: []string{"service:read on every service"}, warn: []string{"service:write on any ingress gateway"},
		},
		{
			name: "prefixes", gateways: []string{"edge"}, missing: []string{"service read", "node read", "agent read", "peering read"},
			info: []string{`service:read on every service`, `node:read on every node`, "agent:read", "peering:read"},
		},
		{name: "one of two gateways", gateways: []string{"edge", "other"}, missing: []string{"service write other"}, info: []string{`service:write on "other"`}},
		{
			name: "every gateway", gateways: []string{"edge", "other"}, missing: []string{"service write edge", "service write other"},
			warn: []string{`service:write on "edge"`, `service:write on "other"`},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &permissionConsul{gateways: tc.gateways, hidden: tc.hidden, may: everything()}
			for _, m := range tc.missing {
				delete(c.may, m)
			}
			runPermissions(t, c, func(p *permissionChecker, log *attrRecorder) {
				time.Sleep(10 * time.Minute)
				lines := log.take()
				if len(lines) != len(tc.info)+len(tc.warn) {
					t.Errorf("the log has %d lines: %q", len(lines), lines)
				}
				wantLines(t, lines, "INFO usher's token lacks a permission that not every installation needs", tc.info)
				wantLines(t, lines, "WARN usher's token lacks a permission; add it to the token's policy", tc.warn)
				for _, name := range tc.warn {
					if !strings.Contains(statusOf(p), name) {
						t.Errorf("the status says %q, and not %s", statusOf(p), name)
					}
				}
				if len(tc.warn) == 0 && statusOf(p) != "" {
					t.Errorf("the status says %q", statusOf(p))
				}
				tried, err := p.client.TryToken(context.Background())
				if err != nil || len(tried.Missing) != len(tc.warn) || len(tried.Optional) != len(tc.info) {
					t.Errorf("the check at the start finds %+v (%v)", tried, err)
				}
				// Once it has them, and loses them again.
				c.mu.Lock()
				before := c.may
				c.may = everything()
				c.mu.Unlock()
				time.Sleep(2 * permissionInterval)
				if statusOf(p) != "" {
					t.Errorf("the status says %q", statusOf(p))
				}
				c.mu.Lock()
				c.may = before
				c.mu.Unlock()
				time.Sleep(2 * permissionInterval)
				if again := log.take(); len(again) != len(lines) {
					t.Errorf("when they are missing again, the log has %q", again)
				}
			})
		})
	}
}

func wantLines(t *testing.T, lines []string, begin string, permissions []string) {
	t.Helper()
	for _, permission := range permissions {
		found := false
		for _, line := range lines {
			found = found || strings.HasPrefix(line, begin) && strings.Contains(line, permission)
		}
		if !found {
			t.Errorf("no line begins with %q and names %s: %q", begin, permission, lines)
		}
	}
}

// runPermissions runs a checker in a bubble until the scenario ends.
func runPermissions(t *testing.T, c *permissionConsul, scenario func(*permissionChecker, *attrRecorder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log := &attrRecorder{}
		client := newTestClient(t, Config{HTTPAddr: "https://consul:8501", Getenv: vars{"CONSUL_HTTP_TOKEN": "usher's"}.get, Logger: slog.New(log)})
		client.aclHTTP.Transport = c
		p := &permissionChecker{client: client, serves: func() bool { return false }}
		client.report = func(_ string, problems []problem.Problem) {
			if len(problems) > 1 || (len(problems) == 1) != (statusOf(p) != "") || len(problems) == 1 && problems[0].Severity != problem.Outage {
				t.Errorf("the status says %q, and the problems are %v", statusOf(p), problems)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.run(ctx)
		}()
		scenario(p, log)
		cancel()
		<-done
	})
}

// Consul takes 64 checks in one request.
func TestManyGatewaysAreCheckedInParts(t *testing.T) {
	c := &permissionConsul{may: everything()}
	for i := range 100 {
		c.gateways = append(c.gateways, "edge-"+strings.Repeat("x", i))
	}
	runPermissions(t, c, func(*permissionChecker, *attrRecorder) { synctest.Wait() })
	total := 0
	for _, checks := range c.requests {
		if total += len(checks); len(checks) > maxChecks {
			t.Errorf("a request has %d checks", len(checks))
		}
	}
	if total != 100+len(basePermissions) {
		t.Errorf("%d checks", total)
	}
}

func TestAnUnknownTokenLacksNothing(t *testing.T) {
	c := &permissionConsul{may: everything()}
	runPermissions(t, c, func(p *permissionChecker, log *attrRecorder) {
		p.client.tokens.mu.Lock()
		p.client.tokens.last = "another"
		p.client.tokens.mu.Unlock()
		time.Sleep(time.Minute)
		if lines := log.take(); len(lines) > 0 || statusOf(p) != "" {
			t.Errorf("%q, %q", lines, statusOf(p))
		}
	})
}

// statusOf returns why Usher is not ready; "" if it is.
func statusOf(p *permissionChecker) string {
	if err := p.failure(); err != nil {
		return err.Error()
	}
	return ""
}

// TestALostPermissionIsNoOutageWhileEnvoysHaveAConfiguration takes service:write from Usher's token while Usher runs.
func TestALostPermissionIsNoOutageWhileEnvoysHaveAConfiguration(t *testing.T) {
	w := newFakeGateway(t).watcher(t)
	w.permissions.missing = map[string]permission{`service:write on "gateway"`: {}}
	var reported []string
	w.client.report = func(_ string, problems []problem.Problem) {
		for _, p := range problems {
			reported = append(reported, p.Severity.String()+": "+p.What[strings.LastIndex(p.What, ";"):])
		}
	}
	const outage = "outage: ; until then Usher serves no gateway"
	w.permissions.report()
	watch := start(t, w, "gateway")
	watch.next(t, anyOne)
	w.permissions.report()
	watch.stop()
	w.permissions.report()
	want := []string{outage, "degraded: ; until then Envoys keep what they have, and their certificates are not renewed", outage}
	wantEqual(t, want, reported)
}
