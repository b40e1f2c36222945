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
	s := startNomadStory(t, lab.ConsulOptions{ACLs: true})
	s.reader.Follow(t, pages.Section(t, "docs/quickstart-nomad.md", "Before you begin"))
	s.reader.Type(t, "nomad job run gateway.nomad.hcl")
	s.WaitMode(t, s.Gateway, "off")
	s.reader.Follow(t, pages.Section(t, "docs/quickstart-nomad.md", "Give Usher a token"))
	s.reader.Follow(t, pages.Section(t, "docs/quickstart-nomad.md", "Start Usher"))
	s.WaitMode(t, s.Gateway, "off")
	s.reader.Type(t, "nomad alloc fs "+allocationOfUsher+" usher/local/usher.hcl >usher.hcl && usher validate usher.hcl") // as in docs/troubleshooting.md
	s.moveGateway(t)
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

// TestGatewayOfNomadWithTLS moves a gateway to Usher where all ports of Consul have TLS. The mode is in the gateway's job.
func TestGatewayOfNomadWithTLS(t *testing.T) {
	t.Parallel()
	s := startNomadStory(t, lab.ConsulOptions{Secure: true})
	s.reader.Follow(t, pages.Section(t, "docs/quickstart-nomad.md", "Before you begin"))
	s.reader.Follow(t, pages.Section(t, "docs/quickstart-nomad.md", "Give Usher a token"))
	s.reader.Follow(t, pages.Find(t, "docs/quickstart-nomad.md", `job "usher"`))
	s.writeBlock(t, "tls.hcl", pages.Find(t, "docs/quickstart-nomad.md", `CONSUL_HTTP_ADDR   = "https://127.0.0.1:8501"`))
	s.reader.Type(t, "sed --in-place -e '/CONSUL_HTTP_ADDR/ {r tls.hcl' -e 'd}' -e '/proxy_protocol/d' usher.nomad.hcl && nomad job run usher.nomad.hcl")
	s.writeBlock(t, "proxy.hcl", pages.Find(t, "docs/quickstart-nomad.md", "proxy {"))
	s.reader.Type(t, "sed --in-place '/^ *gateway {/r proxy.hcl' gateway.nomad.hcl")
	s.moveGateway(t)
	s.HAProxy.SetHeader(t, lab.SendV2)
	s.WaitMode(t, s.Gateway, "permissive")
	s.wantClientAddress(t)
}

// moveGateway adds what the page says to the gateway's job, and runs it.
func (s *nomadStory) moveGateway(t *testing.T) {
	t.Helper()
	s.writeBlock(t, "env.hcl", pages.Find(t, "docs/quickstart-nomad.md", "env {"))
	s.reader.Type(t, "sed --in-place '/sidecar_task {/r env.hcl' gateway.nomad.hcl")
	s.reader.Follow(t, pages.Find(t, "docs/quickstart-nomad.md", "nomad job run gateway.nomad.hcl"))
}

// writeBlock writes a block that is a part of a file.
func (s *nomadStory) writeBlock(t *testing.T, name string, block []pages.Block) {
	t.Helper()
	s.reader.Follow(t, []pages.Block{{Lang: block[0].Lang, Lead: "Write `" + name + "`", Text: block[0].Text}})
}

// allocationOfUsher is a shell's word for the ID of the allocation of the job usher.
const allocationOfUsher = "$(nomad job allocs -t '{{ (index . 0).ID }}' usher)"

// startNomadStory starts the lab with agents of Consul and Nomad on the gateway's host.
func startNomadStory(t *testing.T, o lab.ConsulOptions) *nomadStory {
	t.Helper()
	network := lab.NewNetwork(t)
	o.Version, o.Host = lab.ConsulNew, network.Control
	server := lab.StartConsul(t, o)
	s := &nomadStory{Lab: network.StartLabOf(t, server, lab.EnvoyNew)}
	o.Host, o.Join = s.Gateway, server
	agent := lab.StartConsul(t, o)
	nomad := lab.StartNomad(t, agent, lab.EnvoyNew)
	replace := []string{
		"<the load balancer>", lab.BalancerIP, "https://127.0.0.1:8501", agent.HTTPAddr,
		"<allocation>", allocationOfUsher,
		"203.0.113.7", lab.GatewayIP, // where the reader types
		"sleep 10", `until nomad alloc logs -job ingress | grep --quiet '"downstream_remote_address":"` + lab.GatewayIP + `:'; do :; done`,
	}
	if agent.Security != nil {
		replace = append(replace, "/etc/consul.d/ca.pem", agent.Security.CAFile)
	}
	s.reader = pages.NewReader(t, pages.Options{Shell: testprocess.Command{Host: s.Gateway, Env: nomad.Env}, Replace: replace})
	return s
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
