//go:build e2e

package conformance

import (
	"fmt"
	"testing"

	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc/codes"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

// TestSameRefusalsAsConsul plays, in front of either Consul that denies by
// default, the scripts of the tokens that a stream can have.
func TestSameRefusalsAsConsul(t *testing.T) {
	for _, version := range []string{lab.ConsulNew, lab.ConsulOld} {
		t.Run(version, func(t *testing.T) {
			st := startScriptSuiteOn(t, startConsulWithACLs(t, loopback(), version), "--reauthorize-interval", "1s")
			for _, r := range tokenRules {
				t.Run(r.name, func(t *testing.T) { st.run(t, r) })
			}
		})
	}
}

var tokenRules = []rule{
	{name: "token-of-the-gateway", run: tokenOfTheGateway},
	{name: "token-missing", run: refused(codes.PermissionDenied, func(*script) string { return "" })},
	{name: "token-unknown", run: refused(codes.Unauthenticated, func(*script) string { return unknownToken })},
	{name: "token-not-a-uuid", run: refused(codes.Unauthenticated, func(*script) string { return "sesame" })},
	{name: "token-powerless", run: refused(codes.PermissionDenied, func(s *script) string { return s.newToken("") })},
	{name: "token-reads-only", run: refused(codes.PermissionDenied, func(s *script) string { return s.newToken(readRules) })},
	{name: "token-of-another-gateway", run: refused(codes.PermissionDenied, func(s *script) string {
		return s.newToken(readRules + writeRule(s.gateway+"-other"))
	})},
	{
		name:   "token-deleted",
		better: "Consul is asked at an interval, and not only when something is said on the stream",
		run:    lost(codes.Unauthenticated, (*script).deleteToken),
	},
	{
		name:   "token-weakened",
		better: "Consul is asked at an interval, and not only when something is said on the stream",
		run:    lost(codes.PermissionDenied, (*script).weakenToken),
	},
	{
		name:   "token-that-cannot-read",
		better: "a stream that may not have the gateway ends and says why, instead of waiting for ever",
		run:    tokenThatCannotRead,
	},
}

// unknownToken is a token that no Consul knows.
const unknownToken = "00000000-1111-2222-3333-444444444444"

// readRules let a token read what a gateway needs.
const readRules = `
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
`

// writeRule lets a token have a gateway.
func writeRule(gateway string) string {
	return fmt.Sprintf("service %q { policy = \"write\" }\n", gateway)
}

// serveAtAgent makes a gateway that is registered at the agent which is asked:
// its own token reads what the gateway needs, whatever the stream's may.
func (s *script) serveAtAgent() {
	s.t.Helper()
	s.home = serverNode
	s.write("/v1/agent/service/register", map[string]any{
		"Kind": "ingress-gateway", "ID": s.gateway, "Name": s.gateway, "Address": "10.0.1.1", "Port": 8443,
	})
	s.supply("a")
}

func (s *script) connectWithToken(token string) *fakeenvoy.Envoy {
	s.t.Helper()
	return s.connectWith(fakeenvoy.Options{Node: s.node(), Token: token})
}

func tokenOfTheGateway(s *script) {
	s.serveAtAgent()
	s.warm(s.connectWithToken(s.newToken(writeRule(s.gateway))), "a")
}

// refused wants a stream with a token to end before anything is sent, while the
// gateway's own Envoy is served.
func refused(code codes.Code, token func(*script) string) func(*script) {
	return func(s *script) {
		s.serveAtAgent()
		e := s.connectWithToken(token(s))
		e.Subscribe(cds)
		e.ExpectEnd(code)
	}
}

// lost takes the right from a token while its stream is open.
func lost(code codes.Code, lose func(s *script, token string)) func(*script) {
	return func(s *script) {
		s.serveAtAgent()
		token := s.newToken(writeRule(s.gateway))
		e := s.connectWithToken(token)
		s.warm(e, "a")
		lose(s, token)
		if s.onConsul() {
			e.Subscribe(eds, s.cluster("a"))
		}
		e.ExpectEnd(code)
	}
}

// tokenThatCannotRead has a gateway whose registration the token may not read: Consul reads
// what it needs with the stream's token.
func tokenThatCannotRead(s *script) {
	s.serve("a")
	e := s.connectWithToken(s.newToken(""))
	e.Subscribe(cds)
	if !s.onConsul() {
		e.ExpectEnd(codes.PermissionDenied)
		return
	}
	s.warm(s.connectWithToken(s.newToken(readRules+writeRule(s.gateway))), "a")
	e.Subscribe("")
	e.ExpectEnd(codes.InvalidArgument)
}

// newToken makes a token with the rules, "" for none. A script has one with
// rules.
func (s *script) newToken(rules string) string {
	s.t.Helper()
	acl, token := s.suite.consul.client.ACL(), &api.ACLToken{}
	if rules != "" {
		policy, _, err := acl.PolicyCreate(&api.ACLPolicy{Name: s.gateway, Rules: rules}, nil)
		if err != nil {
			s.t.Fatal(err)
		}
		token.Policies = []*api.ACLLink{{ID: policy.ID}}
	}
	made, _, err := acl.TokenCreate(token, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return made.SecretID
}

func (s *script) readToken(token string) *api.ACLToken {
	s.t.Helper()
	self, _, err := s.suite.consul.client.ACL().TokenReadSelf(&api.QueryOptions{Token: token})
	if err != nil {
		s.t.Fatal(err)
	}
	return self
}

func (s *script) deleteToken(token string) {
	s.t.Helper()
	if _, err := s.suite.consul.client.ACL().TokenDelete(s.readToken(token).AccessorID, nil); err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) weakenToken(token string) {
	s.t.Helper()
	acl := s.suite.consul.client.ACL()
	policy, _, err := acl.PolicyRead(s.readToken(token).Policies[0].ID, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	policy.Rules = readRules
	if _, _, err := acl.PolicyUpdate(policy, nil); err != nil {
		s.t.Fatal(err)
	}
}
