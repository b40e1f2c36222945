//go:build e2e

package e2e

import (
	"regexp"
	"strings"
	"testing"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestSmallestPolicy gives Usher less than the policy in the docs: without any
// one of its rules, an Envoy gets nothing, and the log names what is missing.
// Names in place of the prefixes are enough.
func TestSmallestPolicy(t *testing.T) {
	t.Parallel()
	for _, version := range []string{lab.ConsulNew, lab.ConsulOld} {
		t.Run("consul "+version, func(t *testing.T) {
			t.Parallel()
			s := startPolicyStory(t, version)
			for i, without := range s.rules {
				name, _, _ := strings.Cut(without, " {")
				t.Run("without "+name, func(t *testing.T) {
					rest := append(append([]string(nil), s.rules[:i]...), s.rules[i+1:]...)
					s.wantTooLittle(t, strings.Join(rest, "\n"))
				})
			}
			s.wantEnough(t, strings.Join(s.rules, "\n"))
			s.wantEnough(t, namedRules)
			s.wantUnknown(t)
		})
	}
}

// namedRules name everything in place of the prefixes.
const namedRules = `
service "ingress-gateway" { policy = "write" }
service "static-server" { policy = "read" }
service "static-server-sidecar-proxy" { policy = "read" }
node "gateway" { policy = "read" }
node "service" { policy = "read" }
`

// policyStory is a secure Consul with a registered gateway and its service.
type policyStory struct {
	*lab.Network
	consul *lab.Consul
	rules  []string // of docs/usher-policy.hcl
	token  string   // the gateway's
}

var policyRule = regexp.MustCompile(`(?ms)^\w+ "[^"]*" \{\n.*?^\}\n`)

func startPolicyStory(t *testing.T, consulVersion string) *policyStory {
	t.Helper()
	s := &policyStory{Network: lab.NewNetwork(t), rules: policyRule.FindAllString(testprocess.ReadFile(t, "../docs/usher-policy.hcl"), -1)}
	if len(s.rules) < 2 {
		t.Fatalf("docs/usher-policy.hcl has the rules %q", s.rules)
	}
	s.consul = lab.StartConsul(t, lab.ConsulOptions{Version: consulVersion, Host: s.Control, Secure: true})
	s.RegisterCatalog(t, s.consul)
	s.token = s.consul.NewToken(t, "ingress-gateway", gatewayRules)
	return s
}

// wantUnknown has a token that Consul does not know: the start check does not say that Consul signs.
func (s *policyStory) wantUnknown(t *testing.T) {
	t.Helper()
	u := lab.LaunchUsher(t, lab.UsherOptions{Host: s.Gateway, Consul: s.consul, Token: "99999999-9999-9999-9999-999999999999"})
	defer u.Stop(t)
	u.WaitOutput(t, `msg="start check" check="consul's gRPC port: certificates for clients" result="consul does not know Usher's token`)
}

// start starts Usher with a token, and waits until it serves. It may not be ready.
func (s *policyStory) start(t *testing.T, rules string) *lab.Usher {
	t.Helper()
	name := "usher" + strings.ReplaceAll(lab.NewPath(), "/", "-")
	u := lab.LaunchUsher(t, lab.UsherOptions{Host: s.Gateway, Consul: s.consul, Token: s.consul.NewToken(t, name, rules)})
	u.WaitOutput(t, "msg=serving")
	return u
}

func (s *policyStory) wantEnough(t *testing.T, rules string) {
	t.Helper()
	u := s.start(t, rules)
	defer u.Stop(t)
	u.WaitReady(t)
	u.WaitOutput(t, `msg="start check" check="consul at `+s.consul.HTTPAddr+`: usher's token" result=`)
	u.WaitOutput(t, `msg="start check" check="consul's gRPC port: certificates for clients" result="ok, at `)
	e := lab.ConnectFakeEnvoy(t, lab.XDSPort{From: s.Gateway}.Dial(t), fakeenvoy.Delta, s.token)
	lab.FetchPrivateKey(t, e)
	e.Subscribe(resource.ClusterType)
	clusters := e.Next()
	e.Ack(clusters)
	e.Subscribe(resource.EndpointType, clusters.Names...)
	if endpoints := e.Next(); len(endpoints.Bodies) != 1 || !strings.Contains(string(endpoints.Bodies[0]), lab.ServiceIP) {
		t.Errorf("the endpoints are %q, want the service's", endpoints.Bodies)
	}
	if log := u.Output(t); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
		t.Errorf("usher warns: %s", log)
	}
}

func (s *policyStory) wantTooLittle(t *testing.T, rules string) {
	t.Helper()
	u := s.start(t, rules)
	defer u.Stop(t)
	lab.SubscribeToAll(lab.ConnectFakeEnvoy(t, lab.XDSPort{From: s.Gateway}.Dial(t), fakeenvoy.Delta, s.token))
	const line = "the gateway's configuration in consul is incomplete; Envoys keep what they have"
	u.WaitOutput(t, line)
	for text := range strings.Lines(u.Output(t)) {
		if strings.Contains(text, line) {
			t.Log(text)
		}
	}
	if sent := regexp.MustCompile(`usher_xds_responses_total\{.*\} [1-9].*`).FindAllString(u.Metrics(t), -1); len(sent) > 0 {
		t.Errorf("usher has sent something: %q", sent)
	}
}
