//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// nomadStory is the lab with a gateway that Nomad runs.
type nomadStory struct {
	*lab.Lab
	reader *pages.Reader
}

// TestQuickstartForNomad follows the page with a real Nomad and with Consul's ACLs: an ingress gateway of a job moves to
// Usher, its balancer begins to send PROXY headers, and all of it is undone. Before that, the gateway is Consul's own, and
// answers 400 to headers.
func TestQuickstartForNomad(t *testing.T) {
	t.Parallel()
	network := lab.NewNetwork(t)
	server := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: network.Control, ACLs: true})
	s := &nomadStory{Lab: network.StartLabOf(t, server, lab.EnvoyNew)}
	agent := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: s.Gateway, ACLs: true, Join: server})
	nomad := lab.StartNomad(t, agent, lab.EnvoyNew)
	s.reader = pages.NewReader(t, pages.Options{
		Shell:   testprocess.Command{Host: s.Gateway, Env: nomad.Env},
		Replace: []string{"<the load balancer>", lab.BalancerIP},
	})

	s.reader.Follow(t, pages.Section(t, "docs/quickstart-nomad.md", "Before you begin"))
	s.reader.Type(t, "sed '/CONSUL_GRPC_ADDR/d' gateway.nomad.hcl >before.nomad.hcl; nomad job run before.nomad.hcl")
	s.WaitMode(t, s.Gateway, "off")
	s.reader.Follow(t, pages.Section(t, "docs/quickstart-nomad.md", "Give Usher a token"))
	s.reader.Follow(t, pages.Section(t, "docs/quickstart-nomad.md", "Start Usher"))
	s.WaitMode(t, s.Gateway, "off")
	s.reader.Follow(t, pages.Find(t, "docs/quickstart-nomad.md", "nomad job run gateway.nomad.hcl"))
	s.WaitMode(t, s.Gateway, "permissive")
	s.reader.Follow(t, pages.Find(t, "docs/quickstart-nomad.md", "$ usher status"))

	s.HAProxy.SetHeader(t, lab.SendV2)
	s.reader.Follow(t, pages.Section(t, "docs/quickstart-nomad.md", "Switch on PROXY protocol"))
	s.WaitMode(t, s.Gateway, "strict")
	s.wantClientAddress(t)

	s.reader.Follow(t, pages.Find(t, "docs/quickstart-nomad.md", `sed --in-place 's/"strict"/"permissive"/' usher.nomad.hcl`))
	s.WaitMode(t, s.Gateway, "permissive")
	s.HAProxy.SetHeader(t, lab.SendNone)
	s.reader.Follow(t, pages.Find(t, "docs/quickstart-nomad.md", "sed --in-place '/CONSUL_GRPC_ADDR/d' gateway.nomad.hcl"))
	s.WaitMode(t, s.Gateway, "off")
	s.reader.Follow(t, pages.Section(t, "docs/quickstart-nomad.md", "Uninstall"))
	s.wantNothingLeft(t)
}

// wantClientAddress wants the client's address in the log that Nomad has of the gateway, and at the service.
func (s *nomadStory) wantClientAddress(t *testing.T) {
	t.Helper()
	path := lab.NewPath()
	s.Request(path).MustDo(t).WantHello(t)
	if got := s.ForwardedFor(t, path); got != lab.ClientIP {
		t.Errorf("the service got X-Forwarded-For %q, want %q", got, lab.ClientIP)
	}
	testprocess.Eventually(t, "the access log has the request", testprocess.ChangeDeadline, func() error {
		log := s.reader.Type(t, "nomad alloc logs -job ingress")
		for line := range strings.Lines(log) {
			if strings.Contains(line, path) {
				if want := fmt.Sprintf(`"downstream_remote_address":"%s:`, lab.ClientIP); !strings.Contains(line, want) {
					return testprocess.Permanent(fmt.Errorf("the entry has not %s: %s", want, line))
				}
				return nil
			}
		}
		return fmt.Errorf("not in %d bytes", len(log))
	})
}

// wantNothingLeft wants that Consul and Nomad know nothing about Usher, and that the gateway answers.
func (s *nomadStory) wantNothingLeft(t *testing.T) {
	t.Helper()
	lab.WaitStatus(t, s.Request("/"), http.StatusOK)
	left := s.reader.Type(t, "nomad job status; nomad var list 2>&1; consul acl policy list; consul acl token list")
	if strings.Contains(left, "usher") || !strings.Contains(left, "ingress") {
		t.Errorf("left is\n%s", left)
	}
}
