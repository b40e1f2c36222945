//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// readOnlyRules let a token read everything about the gateway, and no more.
const readOnlyRules = `
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
`

// unknownToken is a token that no Consul knows.
const unknownToken = "00000000-1111-2222-3333-444444444444"

// reauthorizeInterval is the story's --reauthorize-interval.
const reauthorizeInterval = time.Second

// TestWhoMayConnect is about the private key on the stream. Consul denies by
// default: only a token with service:write on the gateway gets resources of that
// gateway, even while the gateway's own Envoy is connected. A token that loses
// the right loses its stream. While Consul is unreachable, streams live on.
// Nothing that Usher logs or serves contains a secret.
func TestWhoMayConnect(t *testing.T) {
	t.Parallel()
	for _, version := range []string{lab.ConsulNew, lab.ConsulOld} {
		t.Run("consul "+version, func(t *testing.T) {
			t.Parallel()
			s := startGuardedLab(t, version)
			s.wantServed(t)
			for _, protocol := range fakeenvoy.Protocols {
				s.wantOthersRefused(t, protocol)
			}
			s.wantSilenceSurvived(t)
			s.wantLostTokensNoticed(t)
			s.wantRejectionLogged(t)
			s.wantOwnTokenLossSurvived(t)
			s.wantNothingSecret(t)
			s.wantOutageSurvived(t)
			s.wantNothingSecret(t)
		})
	}
}

// guardedLab is the lab, secure, with Usher and an authorised Envoy.
type guardedLab struct {
	*lab.Lab
	Usher *lab.Usher
	Envoy *lab.Envoy
	// Token is the Envoy's own.
	Token string

	usherToken string
	xds        *grpc.ClientConn
	key        string            // the gateway's private key
	secrets    map[string]string // what it is, by text
	refusals   []string          // the errors that refused callers got
}

// startGuardedLab has PROXY protocol on; Usher has the policy of the docs.
func startGuardedLab(t *testing.T, consulVersion string) *guardedLab {
	t.Helper()
	s := &guardedLab{Lab: lab.Start(t, consulVersion, lab.EnvoyNew, true), secrets: make(map[string]string)}
	s.keep("the management token", lab.ManagementToken)
	s.keep("the gossip key", s.Consul.Security.GossipKey)
	s.SetMode(t, "strict")
	s.HAProxy.SetHeader(t, lab.SendV2)
	s.usherToken = s.token(t, "usher", testprocess.ReadFile(t, "../docs/usher-policy.hcl"))
	s.Usher = lab.StartUsher(t, lab.UsherOptions{
		Host: s.Gateway, Consul: s.Consul,
		Token: s.usherToken,
		Args:  []string{"--log-level", "debug", "--reauthorize-interval", reauthorizeInterval.String()},
	})
	s.Token = s.token(t, "ingress-gateway", gatewayRules)
	s.Envoy = lab.StartGateway(t, lab.GatewayOptions{
		Host: s.Gateway, Consul: s.Consul, Envoy: lab.EnvoyNew, GRPCAddr: s.Usher.GRPCAddr, Token: s.Token,
	})
	s.Envoy.WaitListener(t, 8080)
	s.xds = lab.XDSPort{From: s.Gateway}.Dial(t)
	first := lab.ConnectFakeEnvoy(t, s.xds, fakeenvoy.Delta, s.Token)
	s.key = lab.FetchPrivateKey(t, first)
	first.Disconnect()
	for line := range strings.Lines(s.key) {
		if !strings.HasPrefix(line, "-----") {
			s.keep("the gateway's private key", strings.TrimSpace(line))
		}
	}
	return s
}

// token makes a token with the rules, which is one more secret.
func (s *guardedLab) token(t *testing.T, name, rules string) string {
	t.Helper()
	token := s.Consul.NewToken(t, name, rules)
	s.keep("the token "+name, token)
	return token
}

func (s *guardedLab) keep(what, secret string) { s.secrets[secret] = what }

// wantServed wants the lab's request answered, and the client's own address in
// the access log and at the service.
func (s *guardedLab) wantServed(t *testing.T) {
	t.Helper()
	s.WantClientAddress(t, s.Envoy)
}

// wantOthersRefused tries every token that is not the gateway's, while the
// gateway's own Envoy is connected.
func (s *guardedLab) wantOthersRefused(t *testing.T, protocol fakeenvoy.Protocol) {
	t.Helper()
	s.keep("a token that Consul does not know", unknownToken)
	streams := s.Envoy.XDSStreams(t)
	for _, other := range []struct {
		what, token string
		code        codes.Code
	}{
		{"no token", "", codes.PermissionDenied},
		{"a read-only token", s.token(t, "read-only-"+string(protocol), readOnlyRules), codes.PermissionDenied},
		{"an unknown token", unknownToken, codes.Unauthenticated},
		{
			"another gateway's token",
			s.token(t, "other-"+string(protocol), strings.ReplaceAll(gatewayRules, "ingress-gateway", "other-gateway")),
			codes.PermissionDenied,
		},
	} {
		t.Run(fmt.Sprintf("%s over %s is refused", other.what, protocol), func(t *testing.T) {
			e := lab.ConnectFakeEnvoy(t, s.xds, protocol, other.token)
			lab.SubscribeToAll(e)
			refusal := e.ExpectEnd(other.code).Error()
			if !strings.Contains(refusal, `service:write on the gateway "ingress-gateway"`) {
				t.Errorf("the caller got %q, which does not say what its token needs", refusal)
			}
			s.refusals = append(s.refusals, refusal)
		})
	}
	s.wantStreamUntouched(t, streams)
}

// wantLostTokensNoticed deletes tokens and takes the right from others while
// their streams are open.
func (s *guardedLab) wantLostTokensNoticed(t *testing.T) {
	t.Helper()
	type stream struct {
		what, token string
		lose        func(t *testing.T, token string)
		code        codes.Code
		envoy       *fakeenvoy.Envoy
	}
	var open []stream
	for _, protocol := range fakeenvoy.Protocols {
		for _, o := range []stream{
			{what: "deleted-", lose: s.deleteToken, code: codes.Unauthenticated},
			{what: "weakened-", lose: s.weakenToken, code: codes.PermissionDenied},
		} {
			o.what += string(protocol)
			o.token = s.token(t, o.what, gatewayRules)
			o.envoy = lab.ConnectFakeEnvoy(t, s.xds, protocol, o.token)
			open = append(open, o)
		}
	}
	before := s.Envoy.XDSStreams(t)
	for _, o := range open {
		lab.FetchPrivateKey(t, o.envoy)
	}
	start := time.Now()
	for _, o := range open {
		o.lose(t, o.token)
	}
	for _, o := range open {
		s.refusals = append(s.refusals, o.envoy.ExpectEnd(o.code).Error())
		took := time.Since(start).Round(time.Millisecond)
		t.Logf("%s: the stream had ended %v after the change; asked every %v", o.what, took, reauthorizeInterval)
		if took > reauthorizeInterval+time.Second {
			t.Errorf("%s: the stream lived on for %v, want at most about %v", o.what, took, reauthorizeInterval)
		}
	}
	s.wantStreamUntouched(t, before)
}

func (s *guardedLab) deleteToken(t *testing.T, token string) {
	t.Helper()
	if _, err := s.Consul.Client.ACL().TokenDelete(s.self(t, token).AccessorID, nil); err != nil {
		t.Fatal(err)
	}
}

func (s *guardedLab) weakenToken(t *testing.T, token string) {
	t.Helper()
	s.setRules(t, token, readOnlyRules)
}

// setRules changes what a token may.
func (s *guardedLab) setRules(t *testing.T, token, rules string) {
	t.Helper()
	policy, _, err := s.Consul.Client.ACL().PolicyRead(s.self(t, token).Policies[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	policy.Rules = rules
	if _, _, err := s.Consul.Client.ACL().PolicyUpdate(policy, nil); err != nil {
		t.Fatal(err)
	}
}

func (s *guardedLab) self(t *testing.T, token string) *api.ACLToken {
	t.Helper()
	self, _, err := s.Consul.Client.ACL().TokenReadSelf(&api.QueryOptions{Token: token})
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// wantRejectionLogged rejects the certificate as an Envoy does that quotes what
// it rejects: the log has the rejection, and not the key.
func (s *guardedLab) wantRejectionLogged(t *testing.T) {
	t.Helper()
	for _, protocol := range fakeenvoy.Protocols {
		e := lab.ConnectFakeEnvoy(t, s.xds, protocol, s.Token)
		e.Subscribe(resource.SecretType, lab.LeafSecret)
		reason := "cannot load the certificate of " + string(protocol)
		e.Nack(e.Expect(resource.SecretType, lab.LeafSecret), reason+": "+s.key)
		s.Usher.WaitOutput(t, reason)
		e.Disconnect()
	}
}

// wantSilenceSurvived makes Consul fall silent, as behind a broken network, and
// speak again: whether a token is still good cannot be asked meanwhile, and that
// is no reason to cut a stream.
func (s *guardedLab) wantSilenceSurvived(t *testing.T) {
	t.Helper()
	streams := s.Envoy.XDSStreams(t)
	s.Consul.Signal(t, syscall.SIGSTOP)
	waitSilence(t, s.Usher)
	s.Usher.WaitOutput(t, checkFailed)
	s.wantStreamUntouched(t, streams)
	s.Consul.Signal(t, syscall.SIGCONT)
	waitAnswers(t, s.Usher)
	lab.FetchPrivateKey(t, lab.ConnectFakeEnvoy(t, s.xds, fakeenvoy.Delta, s.Token))
	s.wantStreamUntouched(t, streams)
}

// wantOwnTokenLossSurvived takes everything from Usher's own token and then
// changes what it watches: the Envoy keeps what it has, and the log says what is
// missing. With the right comes the change.
func (s *guardedLab) wantOwnTokenLossSurvived(t *testing.T) {
	t.Helper()
	streams := s.Envoy.XDSStreams(t)
	s.setRules(t, s.usherToken, "")
	s.Consul.WriteEntry(t, `
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [
  { Port = 8080, Protocol = "http", Services = [{ Name = "static-server" }] },
  { Port = 9090, Protocol = "http", Services = [{ Name = "static-server" }] },
]
`)
	s.Usher.WaitOutput(t, "query=gateway-services:ingress-gateway outcome=denied")
	s.wantStreamUntouched(t, streams)
	s.setRules(t, s.usherToken, testprocess.ReadFile(t, "../docs/usher-policy.hcl"))
	s.Envoy.WaitListener(t, 9090)
	s.wantStreamUntouched(t, streams)
}

// checkFailed is what the log says when Consul could not be asked.
const checkFailed = "consul does not answer ACL checks"

// wantOutageSurvived ends Consul. The streams live on, and an Envoy that was let
// in before is let in; one that Consul was never asked about is not.
func (s *guardedLab) wantOutageSurvived(t *testing.T) {
	t.Helper()
	streams := s.Envoy.XDSStreams(t)
	other := s.token(t, "never-seen", gatewayRules)
	s.Consul.Kill()
	s.Usher.WaitOutput(t, checkFailed)
	for _, protocol := range fakeenvoy.Protocols {
		e := lab.ConnectFakeEnvoy(t, s.xds, protocol, other)
		lab.SubscribeToAll(e)
		s.refusals = append(s.refusals, e.ExpectEnd(codes.Unavailable).Error())
		e = lab.ConnectFakeEnvoy(t, s.xds, protocol, s.Token)
		if key := lab.FetchPrivateKey(t, e); key != s.key {
			t.Error("an Envoy that comes back while Consul is gone does not get what it had")
		}
		e.Disconnect()
	}
	s.wantStreamUntouched(t, streams)
	s.refusals = append(s.refusals, s.Usher.WantReadyWithoutConsul(t, s.Consul.HTTPAddr))
}

// wantNothingSecret looks for every secret in everything that Usher printed and
// served.
func (s *guardedLab) wantNothingSecret(t *testing.T) {
	t.Helper()
	log := s.Usher.Output(t)
	if !strings.Contains(log, "level=DEBUG") {
		t.Error("the log has no debug lines: it proves nothing")
	}
	ready, _ := s.Usher.Admin("/readyz") // its error is among the refusals
	places := map[string]string{
		"the log":                   log,
		"/metrics":                  s.Usher.Metrics(t),
		"/readyz":                   ready,
		"what refused callers got":  strings.Join(s.refusals, "\n"),
		"the command line of usher": testprocess.ReadFile(t, fmt.Sprintf("/proc/%d/cmdline", s.Usher.Pid())),
	}
	for place, text := range places {
		for secret, what := range s.secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %s", place, what)
			}
		}
	}
}

// wantStreamUntouched wants the Envoy on the stream that it had before.
func (s *guardedLab) wantStreamUntouched(t *testing.T, before lab.XDSStreams) {
	t.Helper()
	if before.Open != 1 {
		t.Errorf("before: the authorised Envoy has no open stream: %+v", before)
	}
	if now := s.Envoy.XDSStreams(t); now != before {
		t.Errorf("the authorised Envoy's streams: %+v, before: %+v", now, before)
	}
	for range 10 {
		s.Request(lab.NewPath()).MustDo(t).WantHello(t)
	}
}
