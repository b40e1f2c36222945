//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestSymptomsAreConfirmedAsThePageSays makes symptoms of docs/troubleshooting.md on the lab, and types the command that the
// page has for each of them on the gateway's host.
func TestSymptomsAreConfirmedAsThePageSays(t *testing.T) {
	t.Parallel()
	s := &symptoms{modesStory: startModesStory(t)}
	s.reader = pages.NewReader(t, pages.Options{Shell: s.shell(t)})

	s.HAProxy.SetHeader(t, lab.SendV2)
	lab.WaitStatus(t, s.Request("/"), http.StatusBadRequest)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "Every request gets 400"), `does not look for PROXY headers: its\s+mode\s+is off`)

	s.HAProxy.SetHeader(t, lab.SendNone)
	lab.WaitStatus(t, s.Request("/"), http.StatusOK)
	s.switchMode(t, "strict", func() { s.writeFile(t, "strict") })
	s.WantPlainRefused(t)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "Connections close at once"), `not_found_disallowed: [1-9]`, `no_filter_chain_match: 0`)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "Only health checks get 400 or fail"), `not_found_disallowed: [1-9]`)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "A tcp service reads garbage"), `proxy_protocol\.mode +"strict"`)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "Access logs are missing"), `every other setting of Usher has its default`)

	s.switchMode(t, "permissive", func() { s.writeFile(t, "permissive") })
	s.Request("/").MustDo(t).WantHello(t)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "The log shows the balancer's address"), `not_found_allowed: [1-9]`, `v2.found: [1-9]`)

	s.want(t, pages.Find(t, "docs/migration.md", "usher probe --expect permissive"), `its\s+mode is permissive`)
	s.want(t, pages.Section(t, "docs/migration.md", "Before the first step"), `8080 +permissive +permissive`)
	s.want(t, pages.Section(t, "docs/problems.md", "Find them before Usher does"))
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "A tcp connection hangs"), `8080 +permissive +permissive`)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "The port refuses connections"), fmt.Sprintf(`%s:8080`, regexp.QuoteMeta(lab.GatewayIP)))
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "The gateway does not start"), `"state": "LIVE"`)
	s.want(t, pages.Find(t, "docs/troubleshooting.md", "curl -sS http://127.0.0.1:18001/envoys"), `ingress-gateway`)
	s.want(t, pages.Find(t, "docs/troubleshooting.md", "curl -sS 'http://127.0.0.1:19000/stats?filter=cluster.local_agent'"), `cluster.local_agent.upstream_cx_connect_fail: 0`)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "Envoy is connected and gets nothing"), `RESOURCES`, `synced`)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "Envoy rejects an update"), `RESOURCES`)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "A listener does not follow its Service"), `IN FORCE`)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "`/readyz` returns 503"), `ready`)
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "Changes arrive late"), `ready`)

	s.path = lab.NewPath()
	s.want(t, pages.Section(t, "docs/troubleshooting.md", "X-Forwarded-For is wrong"), `hello`)
	if got, want := s.ForwardedFor(t, s.path), "192.0.2.99,"+lab.BalancerIP; got != want {
		t.Errorf("the service gets the X-Forwarded-For %q, want %q", got, want)
	}

	s.usher.WriteConfig(t, "# no settings\n")
	s.switchMode(t, "strict", func() {
		s.Consul.WriteEntry(t, pages.Find(t, "docs/settings.md", `Kind = "proxy-defaults"`)[0].Text)
	})
}

type symptoms struct {
	*modesStory
	reader *pages.Reader
	path   string // of a request that a command sends
}

// shell is a shell of the administrator on the gateway's host.
func (s *symptoms) shell(t *testing.T) testprocess.Command {
	t.Helper()
	return testprocess.Command{Path: testprocess.Debian(t, "bash", "bash"), Host: s.Gateway, Env: append(s.Consul.Env(""), lab.Path(testprocess.Usher(t)))}
}

// want types the command of a block, and wants patterns in what it prints.
func (s *symptoms) want(t *testing.T, blocks []pages.Block, patterns ...string) {
	t.Helper()
	block := pages.Only(t, blocks)
	command := strings.NewReplacer(
		"<the gateway>", lab.GatewayIP, "/etc/usher/usher.hcl", s.usher.ConfigFile,
		"http://<the load balancer>/", fmt.Sprintf("--silent --header 'Host: %s' http://%s:8080%s", lab.ServiceHost, lab.BalancerIP, s.path),
	).Replace(block.Text)
	printed := s.reader.Type(t, command)
	for _, pattern := range patterns {
		if !regexp.MustCompile(pattern).MatchString(printed) {
			t.Errorf("%s prints no %q:\n%s", block, pattern, printed)
		}
	}
}
