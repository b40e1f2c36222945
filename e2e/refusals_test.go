//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// decision is what happens to a new stream.
type decision string

const (
	isServed  decision = "served"  // it gets the gateway's private key
	isRefused decision = "refused" // it ends with PermissionDenied or Unauthenticated
	hasToWait decision = "waits"   // it ends with Unavailable, and Envoy tries again
)

// situation is a column of the table: the state of Consul and Usher.
type situation int

const (
	consulAnswers situation = iota
	consulAway
	restarted
	restartedWithoutState
	tooLong
)

var situations = [...]string{
	consulAnswers:         "Consul answers",
	consulAway:            "Consul does not answer",
	restarted:             "… and Usher has restarted, with `--state-dir`",
	restartedWithoutState: "… and Usher has restarted, without it",
	tooLong:               "… for longer than `--authorization-stale-if-error`",
}

// refusalRow is a row of the table.
type refusalRow struct {
	caller string
	// envoy returns the caller. It is called for each situation.
	envoy     func(t *testing.T, s *refusalLab, in situation) fakeenvoy.Options
	decisions [len(situations)]decision
}

var (
	alwaysRefused = [...]decision{isRefused, isRefused, isRefused, isRefused, isRefused}
	neverServed   = [...]decision{isRefused, hasToWait, hasToWait, hasToWait, hasToWait}
	remembered    = [...]decision{isServed, isServed, isServed, hasToWait, hasToWait}
	notSeen       = [...]decision{isServed, hasToWait, hasToWait, hasToWait, hasToWait}
)

// refusalRows are the table in SECURITY.md.
var refusalRows = []refusalRow{
	{"no token", withToken(func(*testing.T, *refusalLab, situation) string { return "" }), neverServed},
	{"a token that Consul does not know", withToken(func(*testing.T, *refusalLab, situation) string { return unknownToken }), neverServed},
	{"a token that may only read", ownToken("read-only"), neverServed},
	{"another gateway's token", ownToken("other-gateway"), neverServed},
	{"a token that Consul deleted, and refused, before", ownToken("deleted-before"), neverServed},
	{"a token that is deleted while Consul does not answer", ownToken("deleted-meanwhile"), [...]decision{isRefused, isServed, isServed, hasToWait, hasToWait}},
	{"the gateway's token", ownToken("gateway"), remembered},
	{"the gateway's token, from an Envoy that has never connected", func(t *testing.T, s *refusalLab, in situation) fakeenvoy.Options {
		o := ownToken("gateway")(t, s, in)
		o.Node = s.newInstance(in)
		return o
	}, remembered},
	{"the gateway's token, for another gateway", func(t *testing.T, s *refusalLab, in situation) fakeenvoy.Options {
		o := ownToken("gateway")(t, s, in)
		o.Node = &corev3.Node{Id: "other-gateway", Cluster: "other-gateway"}
		return o
	}, neverServed},
	{"a token for the gateway that Usher has not seen before", withToken(func(_ *testing.T, s *refusalLab, in situation) string {
		return s.tokens[fmt.Sprint("unseen-", in)]
	}), notSeen},
	{"the service account token of the gateway's pod", withBearer(func(_ *testing.T, s *refusalLab, _ situation) string { return s.ofPod }), remembered},
	{"a newer service account token of this pod, which Usher has not seen before", withBearer(func(t *testing.T, s *refusalLab, _ situation) string { return s.podToken(t) }), notSeen},
	{"another gateway's service account token", withBearer(func(_ *testing.T, s *refusalLab, _ situation) string { return s.ofOther }), neverServed},
	{"a service account token without a binding rule", withBearer(func(_ *testing.T, s *refusalLab, _ situation) string { return s.unbound }), neverServed},
	{"a service account token that has expired", withBearer(func(*testing.T, *refusalLab, situation) string { return expiredJWT }), alwaysRefused},
}

// expiredJWT expired in 2020. Its claims are {"exp":1577836800}.
const expiredJWT = "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjE1Nzc4MzY4MDB9.c2lnbmF0dXJl"

// ownToken is a caller with one of the lab's tokens.
func ownToken(name string) func(*testing.T, *refusalLab, situation) fakeenvoy.Options {
	return withToken(func(_ *testing.T, s *refusalLab, _ situation) string { return s.tokens[name] })
}

func withToken(token func(*testing.T, *refusalLab, situation) string) func(*testing.T, *refusalLab, situation) fakeenvoy.Options {
	return func(t *testing.T, s *refusalLab, in situation) fakeenvoy.Options {
		return fakeenvoy.Options{Token: token(t, s, in)}
	}
}

func withBearer(token func(*testing.T, *refusalLab, situation) string) func(*testing.T, *refusalLab, situation) fakeenvoy.Options {
	return func(t *testing.T, s *refusalLab, in situation) fakeenvoy.Options {
		return fakeenvoy.Options{Bearer: token(t, s, in)}
	}
}

// TestSecurityHasTheTableOfWhoIsRefused compares the table in SECURITY.md with the rows that TestWhoIsRefused runs.
func TestSecurityHasTheTableOfWhoIsRefused(t *testing.T) {
	t.Parallel()
	table := "| a new stream with | " + strings.Join(situations[:], " | ") + " |\n" + strings.Repeat("|---", len(situations)+1) + "|\n"
	for _, r := range refusalRows {
		table += "| " + r.caller
		for _, o := range r.decisions {
			table += " | " + string(o)
		}
		table += " |\n"
	}
	if !strings.Contains(testprocess.ReadFile(t, "../SECURITY.md"), table) {
		t.Errorf("SECURITY.md does not have this table:\n%s", table)
	}
}

// TestWhoIsRefused opens streams with each credential in each situation. Consul denies by default.
func TestWhoIsRefused(t *testing.T) {
	t.Parallel()
	s := startRefusalLab(t)
	state := []string{"--state-dir", testprocess.NewDir(t), "--state-key-file", lab.WriteFile(t, testprocess.NewDir(t), "key", "0123456789abcdef0123456789abcdef")}
	s.launch(t, state...)
	s.usher.WaitReady(t)
	s.letIn(t, s.tokens["deleted-before"])
	s.letIn(t, s.tokens["deleted-meanwhile"])
	s.deleteSecret(t, "deleted-before")
	s.check(t, consulAnswers, "a token that is deleted while Consul does not answer")

	// To Usher, Consul is gone; an administrator still reaches it.
	unreachable := "unreachable " + lab.ControlIP + "/32"
	s.Gateway.RunIP(t, "route add "+unreachable)
	s.deleteSecret(t, "deleted-meanwhile")
	waitMetric(t, s.usher, "usher_consul_up", "0")
	s.check(t, consulAway)
	s.usher.Kill()
	s.launch(t, state...)
	s.check(t, restarted)
	s.usher.Kill()
	s.launch(t)
	s.check(t, restartedWithoutState)
	s.usher.Kill()
	s.launch(t, append(state, "--authorization-stale-if-error", "1s")...)
	s.check(t, tooLong)

	s.Gateway.RunIP(t, "route del "+unreachable)
	waitMetric(t, s.usher, "usher_consul_up", "1")
	s.check(t, consulAnswers)
}

// refusalLab is an accountsLab with tokens of Consul, too.
type refusalLab struct {
	*accountsLab
	tokens                  map[string]string // by name
	ofPod, ofOther, unbound string            // service account tokens
}

func startRefusalLab(t *testing.T) *refusalLab {
	t.Helper()
	s := &refusalLab{accountsLab: newAccountsLab(t, lab.ConsulNew), tokens: map[string]string{}}
	rules := map[string]string{
		"read-only": readOnlyRules, "other-gateway": strings.ReplaceAll(gatewayRules, "ingress-gateway", "other-gateway"),
		"gateway": gatewayRules, "deleted-before": gatewayRules, "deleted-meanwhile": gatewayRules,
	}
	for in := range situations {
		rules[fmt.Sprint("unseen-", in)] = gatewayRules
		_, err := s.consul.Client.Catalog().Register(&api.CatalogRegistration{Node: "gateway", Address: lab.GatewayIP, Service: &api.AgentService{
			Kind: api.ServiceKindIngressGateway, ID: s.newInstance(situation(in)).Id, Service: "ingress-gateway", Address: lab.GatewayIP, Port: 8443,
		}}, nil)
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, r := range rules {
		s.tokens[name] = s.consul.NewToken(t, name, r)
	}
	s.kubernetes.CreatePod(t, gatewayPod, lab.GatewayAccount)
	s.ofPod = s.podToken(t)
	s.ofOther = s.token(t, otherGatewayAccount, apiserver.TokenOptions{})
	s.unbound = s.token(t, unboundAccount, apiserver.TokenOptions{})
	return s
}

// newInstance is an instance whose Envoy connects in one situation only.
func (s *refusalLab) newInstance(in situation) *corev3.Node {
	return &corev3.Node{Id: fmt.Sprint("ingress-gateway-new-", in), Cluster: "ingress-gateway"}
}

// launch starts Usher, and waits until its port is open.
func (s *refusalLab) launch(t *testing.T, args ...string) {
	t.Helper()
	s.usher = lab.LaunchUsher(t, lab.UsherOptions{
		Host: s.Gateway, Consul: s.consul, Args: append([]string{"--envoy-login-auth-method", lab.ComponentAuthMethod}, args...),
	})
	testprocess.Eventually(t, "usher runs", testprocess.StartDeadline, func() error {
		_, err := s.usher.Admin("/healthz")
		return err
	})
	s.xds = lab.XDSPort{From: s.Gateway}.Dial(t)
}

func (s *refusalLab) letIn(t *testing.T, token string) {
	t.Helper()
	e := lab.ConnectFakeEnvoy(t, s.xds, fakeenvoy.Delta, token)
	lab.FetchPrivateKey(t, e)
	e.Disconnect()
}

func (s *refusalLab) deleteSecret(t *testing.T, name string) {
	t.Helper()
	self, _, err := s.consul.Client.ACL().TokenReadSelf(&api.QueryOptions{Token: s.tokens[name]})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.consul.Client.ACL().TokenDelete(self.AccessorID, nil); err != nil {
		t.Fatal(err)
	}
}

// check opens a stream of each protocol for each row, but for those that are left out.
func (s *refusalLab) check(t *testing.T, in situation, without ...string) {
	t.Helper()
	start := time.Now()
	for _, r := range refusalRows {
		if len(without) > 0 && without[0] == r.caller {
			continue
		}
		o := r.envoy(t, s, in)
		if o.Node == nil {
			o.Node = &corev3.Node{Id: "ingress-gateway", Cluster: "ingress-gateway"}
		}
		for _, protocol := range fakeenvoy.Protocols {
			s.want(t, fmt.Sprintf("%s; %s; %s", r.caller, situations[in], protocol), protocol, o, r.decisions[in])
		}
	}
	t.Logf("%s: %v", situations[in], time.Since(start).Round(time.Millisecond))
}

// want wants a stream to have an decision. Usher remembers a refusal for ten seconds: so long, a caller that is to wait may be
// refused.
func (s *refusalLab) want(t *testing.T, what string, p fakeenvoy.Protocol, o fakeenvoy.Options, want decision) {
	t.Helper()
	testprocess.Eventually(t, what, testprocess.ChangeDeadline, func() error {
		got := decisionOn(t, s.xds, p, o)
		switch {
		case got == want:
			return nil
		case got == isRefused && want == hasToWait:
			return errors.New("it is refused")
		}
		return testprocess.Permanent(fmt.Errorf("it is %s, want %s", got, want))
	})
}

// decisionOn opens a stream and asks for the private key.
func decisionOn(t *testing.T, conn grpc.ClientConnInterface, p fakeenvoy.Protocol, o fakeenvoy.Options) decision {
	t.Helper()
	e := fakeenvoy.Connect(t, conn, p, o)
	defer e.Disconnect()
	e.Subscribe(resource.SecretType, lab.LeafSecret)
	err := e.ServedOrEnded()
	switch status.Code(err) {
	case codes.OK:
		return isServed
	case codes.PermissionDenied, codes.Unauthenticated:
		return isRefused
	case codes.Unavailable:
		return hasToWait
	}
	t.Fatalf("the stream ended with %v", err)
	return ""
}
