//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestServiceAccounts is about Envoys that have no Consul token. They send the token of their pod's service account, which
// Usher exchanges at Consul's auth method. Consul denies by default. Only the gateway's account gets the gateway's
// resources, there is one login for each token, and none is left at the end.
func TestServiceAccounts(t *testing.T) {
	t.Parallel()
	for _, version := range []string{lab.ConsulNew, lab.ConsulOld} {
		t.Run("consul "+version, func(t *testing.T) {
			t.Parallel()
			s := startAccountsLab(t, version, "--reauthorize-interval", reauthorizeInterval.String())
			s.wantOneLogin(t)
			for _, protocol := range fakeenvoy.Protocols {
				s.wantOthersRefused(t, protocol)
			}
			s.wantSilenceSurvived(t)
			s.wantDeletedLoginMadeAgain(t)
			s.wantLostRoleNoticed(t)
			s.wantNoSecrets(t)
			s.wantNoLoginLeft(t)
		})
	}
}

// accountsLab is a secure Consul with an auth method for a real API server, and an Usher without a Consul token for its
// gateway's Envoys.
type accountsLab struct {
	*lab.Network
	consul     *lab.Consul
	kubernetes *apiserver.Server
	usher      *lab.Usher
	xds        *grpc.ClientConn
	role       *api.ACLRole // of the gateway's account
	rule       *api.ACLBindingRule
	secrets    []string
}

// gatewayPod is the pod of the gateway. Its name is the gateway's service ID.
const gatewayPod = "ingress-gateway"

// The other accounts.
const (
	otherGatewayAccount = "consul-other-gateway"
	unboundAccount      = "static-server"
	usherAccount        = "usher"
)

// newAccountsLab starts everything but Usher.
func newAccountsLab(t *testing.T, consulVersion string) *accountsLab {
	t.Helper()
	s := &accountsLab{Network: lab.NewNetwork(t)}
	s.kubernetes = apiserver.Start(t, apiserver.Options{Host: s.Service, IP: lab.ServiceIP, Dial: s.Service.Dial})
	s.consul = lab.StartConsul(t, lab.ConsulOptions{Version: consulVersion, Host: s.Control, Secure: true})
	s.RegisterCatalog(t, s.consul)
	s.consul.CreateAuthMethod(t, s.kubernetes)
	for _, account := range []string{lab.GatewayAccount, otherGatewayAccount, unboundAccount, usherAccount} {
		s.kubernetes.CreateServiceAccount(t, account)
	}
	s.role, s.rule = s.consul.BindAccount(t, lab.GatewayAccount, gatewayRules)
	s.consul.BindAccount(t, otherGatewayAccount, strings.ReplaceAll(gatewayRules, "ingress-gateway", "other-gateway"))
	return s
}

func startAccountsLab(t *testing.T, consulVersion string, args ...string) *accountsLab {
	t.Helper()
	s := newAccountsLab(t, consulVersion)
	s.kubernetes.CreatePod(t, gatewayPod, lab.GatewayAccount)
	s.startUsher(t, args...)
	return s
}

func (s *accountsLab) startUsher(t *testing.T, args ...string) {
	t.Helper()
	s.usher = lab.StartUsher(t, lab.UsherOptions{
		Host: s.Gateway, Consul: s.consul,
		Args: append([]string{"--log-level", "debug", "--envoy-login-auth-method", lab.ComponentAuthMethod}, args...),
	})
	s.xds = lab.XDSPort{From: s.Gateway}.Dial(t)
}

// token returns a token of an account, as the kubelet requests it for a pod.
func (s *accountsLab) token(t *testing.T, account string, o apiserver.TokenOptions) string {
	t.Helper()
	token := s.kubernetes.Token(t, account, o)
	s.secrets = append(s.secrets, token)
	return token
}

// podToken returns a new token of the gateway's pod.
func (s *accountsLab) podToken(t *testing.T) string {
	t.Helper()
	return s.token(t, lab.GatewayAccount, apiserver.TokenOptions{Pod: gatewayPod})
}

// connect opens a stream as the gateway's Envoy.
func (s *accountsLab) connect(t *testing.T, p fakeenvoy.Protocol, bearer string) *fakeenvoy.Envoy {
	t.Helper()
	return fakeenvoy.Connect(t, s.xds, p, fakeenvoy.Options{Node: &corev3.Node{Id: gatewayPod, Cluster: "ingress-gateway"}, Bearer: bearer})
}

// wantOneLogin opens streams with the same token, and wants Consul to have one login, for the pod.
func (s *accountsLab) wantOneLogin(t *testing.T) {
	t.Helper()
	token := s.podToken(t)
	var envoys []*fakeenvoy.Envoy
	for _, protocol := range append(fakeenvoy.Protocols, fakeenvoy.Protocols...) {
		e := s.connect(t, protocol, token)
		lab.FetchPrivateKey(t, e)
		envoys = append(envoys, e)
	}
	logins := s.consul.WaitLogins(t, 1)
	for _, part := range []string{`"pod":"consul/` + gatewayPod + `"`, `"component":"ingress-gateway"`} {
		if !strings.Contains(logins[0].Description, part) {
			t.Errorf("the login's description is %s, want %s in it", logins[0].Description, part)
		}
	}
	for _, e := range envoys {
		e.Disconnect()
	}
	s.consul.WaitLogins(t, 0)
}

// wantOthersRefused tries everything that is not the token of the gateway's account, while the gateway's Envoy is
// connected. What it gives away says what is missing.
func (s *accountsLab) wantOthersRefused(t *testing.T, protocol fakeenvoy.Protocol) {
	t.Helper()
	own := s.connect(t, protocol, s.podToken(t))
	lab.FetchPrivateKey(t, own)
	deleted := "deleted-" + string(protocol)
	s.kubernetes.CreatePod(t, deleted, lab.GatewayAccount)
	ofDeleted := s.token(t, lab.GatewayAccount, apiserver.TokenOptions{Pod: deleted})
	s.kubernetes.DeletePod(t, deleted)
	bound := `send the token of a service account that has a binding rule for the gateway "ingress-gateway"`
	for _, other := range []struct {
		what   string
		envoy  fakeenvoy.Options
		code   codes.Code
		reason string
	}{
		{"no token", fakeenvoy.Options{}, codes.PermissionDenied, `service:write on the gateway "ingress-gateway"`},
		{"no JWT", fakeenvoy.Options{Bearer: unknownToken}, codes.Unauthenticated, "is no JWT"},
		{"an account without a binding rule", fakeenvoy.Options{Bearer: s.token(t, unboundAccount, apiserver.TokenOptions{})}, codes.Unauthenticated, bound},
		{
			"another gateway's account",
			fakeenvoy.Options{Bearer: s.token(t, otherGatewayAccount, apiserver.TokenOptions{})},
			codes.PermissionDenied, `the service account of the stream's bearer token needs service:write on the gateway "ingress-gateway"`,
		},
		{
			"another audience",
			fakeenvoy.Options{Bearer: s.token(t, lab.GatewayAccount, apiserver.TokenOptions{Pod: gatewayPod, Audiences: []string{"usher"}})},
			codes.Unauthenticated, "invalid for the target audiences",
		},
		{"a deleted pod's", fakeenvoy.Options{Bearer: ofDeleted}, codes.Unauthenticated, "service account token has been invalidated"},
		{
			"another gateway is asked for",
			fakeenvoy.Options{Bearer: s.podToken(t), Node: &corev3.Node{Id: gatewayPod, Cluster: "other-gateway"}},
			codes.PermissionDenied, `needs service:write on the gateway "other-gateway"`,
		},
		{"two credentials", fakeenvoy.Options{Bearer: s.podToken(t), Token: lab.ManagementToken}, codes.Unauthenticated, "send only one of them"},
	} {
		t.Run(other.what+" over "+string(protocol), func(t *testing.T) {
			if other.envoy.Node == nil {
				other.envoy.Node = &corev3.Node{Id: gatewayPod, Cluster: "ingress-gateway"}
			}
			e := fakeenvoy.Connect(t, s.xds, protocol, other.envoy)
			lab.SubscribeToAll(e)
			if refusal := e.ExpectEnd(other.code).Error(); !strings.Contains(refusal, other.reason) {
				t.Errorf("the caller got %q, want %q", refusal, other.reason)
			}
		})
	}
	s.consul.WaitLogins(t, 1) // those that got nothing have ended
	own.Disconnect()
	s.consul.WaitLogins(t, 0)
}

// wantSilenceSurvived makes Consul fall silent. The stream of a token that was exchanged before lives on, also a new one;
// that of a token that Consul has not seen does not.
func (s *accountsLab) wantSilenceSurvived(t *testing.T) {
	t.Helper()
	token, unseen := s.podToken(t), s.podToken(t)
	open := s.connect(t, fakeenvoy.Delta, token)
	key := lab.FetchPrivateKey(t, open)
	s.consul.Signal(t, syscall.SIGSTOP)
	waitSilence(t, s.usher)
	s.usher.WaitOutput(t, checkFailed)
	again := s.connect(t, fakeenvoy.SotW, token)
	if lab.FetchPrivateKey(t, again) != key {
		t.Error("an Envoy that comes back while Consul is silent does not get what it had")
	}
	other := s.connect(t, fakeenvoy.Delta, unseen)
	lab.SubscribeToAll(other)
	other.ExpectEnd(codes.Unavailable)
	s.consul.Signal(t, syscall.SIGCONT)
	waitAnswers(t, s.usher)
	s.consul.WaitLogins(t, 1)
	for _, e := range []*fakeenvoy.Envoy{open, again} {
		e.Subscribe("type.googleapis.com/envoy.config.cluster.v3.Cluster")
		e.Ack(e.Next()) // it is open
		e.Disconnect()
	}
	s.consul.WaitLogins(t, 0)
}

// wantDeletedLoginMadeAgain deletes the token of a login in Consul: the pod's token still counts, so the stream lives on.
// Without the binding rule, it ends.
func (s *accountsLab) wantDeletedLoginMadeAgain(t *testing.T) {
	t.Helper()
	e := s.connect(t, fakeenvoy.Delta, s.podToken(t))
	lab.FetchPrivateKey(t, e)
	first := s.consul.WaitLogins(t, 1)[0]
	s.deleteToken(t, first)
	testprocess.Eventually(t, "Usher has logged in again", testprocess.ChangeDeadline, func() error {
		if now := s.consul.Logins(t); len(now) != 1 || now[0].AccessorID == first.AccessorID {
			return fmt.Errorf("Consul has %d logins", len(now))
		}
		return nil
	})
	start := time.Now()
	if _, err := s.consul.Client.ACL().BindingRuleDelete(s.rule.ID, nil); err != nil {
		t.Fatal(err)
	}
	s.deleteToken(t, s.consul.WaitLogins(t, 1)[0])
	e.ExpectEnd(codes.Unauthenticated)
	s.wantSoon(t, start)
	s.rule.ID = ""
	if _, _, err := s.consul.Client.ACL().BindingRuleCreate(s.rule, nil); err != nil {
		t.Fatal(err)
	}
}

func (s *accountsLab) deleteToken(t *testing.T, token *api.ACLTokenListEntry) {
	t.Helper()
	if _, err := s.consul.Client.ACL().TokenDelete(token.AccessorID, nil); err != nil {
		t.Fatal(err)
	}
}

// wantLostRoleNoticed takes the rights from the role of the gateway's account.
func (s *accountsLab) wantLostRoleNoticed(t *testing.T) {
	t.Helper()
	e := s.connect(t, fakeenvoy.SotW, s.podToken(t))
	lab.FetchPrivateKey(t, e)
	start := time.Now()
	if _, err := s.consul.Client.ACL().RoleDelete(s.role.ID, nil); err != nil {
		t.Fatal(err)
	}
	e.ExpectEnd(codes.PermissionDenied)
	s.wantSoon(t, start)
	s.consul.WaitLogins(t, 0)
	role := &api.ACLRole{Name: s.role.Name, Policies: s.role.Policies}
	if _, _, err := s.consul.Client.ACL().RoleCreate(role, nil); err != nil {
		t.Fatal(err)
	}
}

func (s *accountsLab) wantSoon(t *testing.T, start time.Time) {
	t.Helper()
	if took := time.Since(start); took > reauthorizeInterval+2*time.Second {
		t.Errorf("the stream lived on for %v, and its token is checked every %v", took, reauthorizeInterval)
	}
}

// wantNoSecrets looks for the tokens in what Usher printed and served.
func (s *accountsLab) wantNoSecrets(t *testing.T) {
	t.Helper()
	log := s.usher.Output(t)
	if !strings.Contains(log, "logged in to consul for an envoy") {
		t.Error("the log has no debug lines: it proves nothing")
	}
	s.wantNoSecretsIn(t, log, s.usher.Metrics(t))
}

func (s *accountsLab) wantNoSecretsIn(t *testing.T, log, metrics string) {
	t.Helper()
	for _, secret := range s.secrets {
		signature := secret[strings.LastIndex(secret, ".")+1:]
		if strings.Contains(log, signature) || strings.Contains(metrics, signature) {
			t.Error("the log or the metrics have a token")
		}
	}
}

// wantNoLoginLeft stops Usher while an Envoy is connected.
func (s *accountsLab) wantNoLoginLeft(t *testing.T) {
	t.Helper()
	lab.FetchPrivateKey(t, s.connect(t, fakeenvoy.Delta, s.podToken(t)))
	s.consul.WaitLogins(t, 1)
	s.usher.Stop(t)
	if left := s.consul.Logins(t); len(left) != 0 {
		t.Errorf("Consul has %d logins", len(left))
	}
}

// TestTokenReview has Kubernetes asked as well: only the pod with the name and the UID of the registration gets the
// gateway's resources, and it loses them when it is deleted.
func TestTokenReview(t *testing.T) {
	t.Parallel()
	s := newAccountsLab(t, lab.ConsulNew)
	s.kubernetes.GrantCluster(t, usherAccount, "system:auth-delegator")
	uid := s.kubernetes.CreatePod(t, gatewayPod, lab.GatewayAccount)
	s.kubernetes.CreatePod(t, "ingress-gateway-2", lab.GatewayAccount)
	s.registerPod(t, gatewayPod, uid)
	s.registerPod(t, "ingress-gateway-2", "an-earlier-pod")
	s.startUsher(t, "--reauthorize-interval", reauthorizeInterval.String(), "--token-review", "--kubeconfig", s.kubernetes.Kubeconfig(t, apiserver.Usher))

	for _, other := range []struct {
		what, id, pod, reason string
	}{
		{"the right account, but another pod", gatewayPod, "ingress-gateway-2", `of another pod: "ingress-gateway-2", and the Envoy's node.id is "ingress-gateway"`},
		{"the right account, and no pod", gatewayPod, "", "it is of no pod"},
		{"a pod with another UID than the registered one", "ingress-gateway-2", "ingress-gateway-2", `"ingress-gateway-2" is registered in Consul for another one`},
	} {
		e := fakeenvoy.Connect(t, s.xds, fakeenvoy.Delta, fakeenvoy.Options{
			Node:   &corev3.Node{Id: other.id, Cluster: "ingress-gateway"},
			Bearer: s.token(t, lab.GatewayAccount, apiserver.TokenOptions{Pod: other.pod}),
		})
		lab.SubscribeToAll(e)
		if refusal := e.ExpectEnd(codes.PermissionDenied).Error(); !strings.Contains(refusal, other.reason) {
			t.Errorf("%s: the caller got %q, want %q", other.what, refusal, other.reason)
		}
	}

	e := s.connect(t, fakeenvoy.Delta, s.podToken(t))
	lab.FetchPrivateKey(t, e)
	s.kubernetes.Stop()
	s.usher.WaitOutput(t, "kubernetes does not answer TokenReviews")
	s.kubernetes.Resume(t)
	s.usher.WaitOutput(t, "kubernetes answers TokenReviews again")
	e.Subscribe("type.googleapis.com/envoy.config.cluster.v3.Cluster")
	e.Ack(e.Next()) // it is open

	start := time.Now()
	s.kubernetes.DeletePod(t, gatewayPod)
	if refusal := e.ExpectEnd(codes.PermissionDenied).Error(); !strings.Contains(refusal, "service account token has been invalidated") {
		t.Errorf("after the pod was deleted, the caller got %q", refusal)
	}
	t.Logf("the stream of the deleted pod has ended after %v", time.Since(start).Round(time.Millisecond))
	s.wantNoSecrets(t)
	s.usher.Stop(t)
	s.consul.WaitLogins(t, 0)
}

// registerPod registers an instance of the gateway as consul-k8s does for a pod.
func (s *accountsLab) registerPod(t *testing.T, pod, uid string) {
	t.Helper()
	_, err := s.consul.Client.Catalog().Register(&api.CatalogRegistration{Node: "gateway", Address: lab.GatewayIP, Service: &api.AgentService{
		Kind: api.ServiceKindIngressGateway, ID: pod, Service: "ingress-gateway", Address: lab.GatewayIP, Port: 8443,
		Meta: map[string]string{"k8s-namespace": apiserver.Namespace, "pod-name": pod, "pod-uid": uid},
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// TestBearerTokensWithoutAnAuthMethod wants a refusal that says why, and no login.
func TestBearerTokensWithoutAnAuthMethod(t *testing.T) {
	t.Parallel()
	s := newAccountsLab(t, lab.ConsulNew)
	s.usher = lab.StartUsher(t, lab.UsherOptions{Host: s.Gateway, Consul: s.consul})
	s.xds = lab.XDSPort{From: s.Gateway}.Dial(t)
	e := s.connect(t, fakeenvoy.Delta, s.token(t, lab.GatewayAccount, apiserver.TokenOptions{}))
	lab.SubscribeToAll(e)
	if refusal := e.ExpectEnd(codes.Unauthenticated).Error(); !strings.Contains(refusal, "usher serve runs without --envoy-login-auth-method") {
		t.Errorf("the caller got %q", refusal)
	}
	s.consul.WaitLogins(t, 0)
}
