//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestUsherLogsIn starts an Usher that has no Consul token, and logs in with its own service account. It says what keeps
// it from that, serves Envoys, logs in again when its login is over, and logs out at its end.
func TestUsherLogsIn(t *testing.T) {
	t.Parallel()
	for _, version := range []string{lab.ConsulNew, lab.ConsulOld} {
		t.Run("consul "+version, func(t *testing.T) {
			t.Parallel()
			s := newAccountsLab(t, version)
			file := filepath.Join(testprocess.NewDir(t), "token")
			s.usher = lab.LaunchUsher(t, lab.UsherOptions{
				Host: s.Gateway, Env: s.consul.Env(""),
				Args: []string{"--login-auth-method", lab.ComponentAuthMethod, "--login-bearer-token-file", file},
			})
			s.xds = lab.XDSPort{From: s.Gateway}.Dial(t)
			s.usher.WantNotReady(t, "--login-bearer-token-file: stat "+file)
			s.writeToken(t, file)
			s.usher.WantNotReady(t, "403: Permission denied", "give the auth method a binding rule for Usher's service account")
			s.consul.BindAccount(t, usherAccount, testprocess.ReadFile(t, "../docs/usher-policy.hcl"))
			s.usher.WaitReady(t)
			token := s.consul.NewToken(t, "ingress-gateway", gatewayRules)
			e := lab.ConnectFakeEnvoy(t, s.xds, fakeenvoy.Delta, token)
			lab.FetchPrivateKey(t, e)

			first := s.consul.WaitLogins(t, 1)[0]
			if !strings.Contains(first.Description, `"component":"usher"`) {
				t.Errorf("the login's description is %s", first.Description)
			}
			s.writeToken(t, file) // as the kubelet does from time to time
			s.wantNewLoginAfterLoss(t, first)
			lab.SubscribeToAll(e)
			e.Ack(e.Next()) // it is open
			s.wantNoSecretsIn(t, s.usher.Output(t), s.usher.Metrics(t))
			s.usher.Stop(t)
			if left := s.consul.Logins(t); len(left) != 0 {
				t.Errorf("Consul has %d logins", len(left))
			}
		})
	}
}

func (s *accountsLab) writeToken(t *testing.T, file string) {
	t.Helper()
	token := s.token(t, usherAccount, apiserver.TokenOptions{})
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
}

// wantNewLoginAfterLoss deletes the token of Usher's login, and makes a change in Consul so that Usher asks.
func (s *accountsLab) wantNewLoginAfterLoss(t *testing.T, first *api.ACLTokenListEntry) {
	t.Helper()
	s.deleteToken(t, first)
	port := 9000
	testprocess.Eventually(t, "Usher has logged in again", testprocess.StartDeadline, func() error {
		port++
		s.consul.WriteEntry(t, fmt.Sprintf(`
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [{ Port = %d, Protocol = "http", Services = [{ Name = "static-server" }] }]
`, port))
		if now := s.consul.Logins(t); len(now) != 1 || now[0].AccessorID == first.AccessorID {
			return fmt.Errorf("Consul has %d logins", len(now))
		}
		return nil
	})
	s.usher.WaitReady(t)
}

// TestUsherRenewsItsLogin has an auth method whose tokens live for a minute.
func TestUsherRenewsItsLogin(t *testing.T) {
	t.Parallel()
	s := newAccountsLab(t, lab.ConsulNew)
	method, _, err := s.consul.Client.ACL().AuthMethodRead(lab.ComponentAuthMethod, nil)
	if err != nil {
		t.Fatal(err)
	}
	method.MaxTokenTTL = time.Minute
	if _, _, err := s.consul.Client.ACL().AuthMethodUpdate(method, nil); err != nil {
		t.Fatal(err)
	}
	s.consul.BindAccount(t, usherAccount, testprocess.ReadFile(t, "../docs/usher-policy.hcl"))
	file := filepath.Join(testprocess.NewDir(t), "token")
	s.writeToken(t, file)
	s.usher = lab.StartUsher(t, lab.UsherOptions{
		Host: s.Gateway, Env: s.consul.Env(""),
		Args: []string{"--login-auth-method", lab.ComponentAuthMethod, "--login-bearer-token-file", file},
	})
	s.xds = lab.XDSPort{From: s.Gateway}.Dial(t)
	e := lab.ConnectFakeEnvoy(t, s.xds, fakeenvoy.Delta, s.consul.NewToken(t, "ingress-gateway", gatewayRules))
	lab.FetchPrivateKey(t, e)
	first := s.consul.WaitLogins(t, 1)[0]
	if first.ExpirationTime == nil {
		t.Fatal("the login has no expiry: it proves nothing")
	}
	testprocess.Eventually(t, "Usher has another login, and the first one has ended", testprocess.StartDeadline, func() error {
		if now := s.consul.Logins(t); len(now) != 1 || now[0].AccessorID == first.AccessorID {
			return fmt.Errorf("Consul has %d logins", len(now))
		}
		return nil
	})
	if log := s.usher.Output(t); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
		t.Errorf("usher warns: %s", log)
	}
	s.consul.WriteEntry(t, `
Kind = "ingress-gateway"
Name = "ingress-gateway"
Listeners = [{ Port = 9090, Protocol = "http", Services = [{ Name = "static-server" }] }]
`)
	lab.SubscribeToAll(e)
	e.Ack(e.Next())
	s.usher.Stop(t)
	s.consul.WaitLogins(t, 0)
}

// TestMissingPermissionsAreNamedAtTheStart starts Usher with a token that may not serve the gateway.
func TestMissingPermissionsAreNamedAtTheStart(t *testing.T) {
	t.Parallel()
	for _, version := range []string{lab.ConsulNew, lab.ConsulOld} {
		t.Run("consul "+version, func(t *testing.T) {
			t.Parallel()
			s := startPolicyStory(t, version)
			u := s.start(t, readOnlyRules)
			defer u.Stop(t)
			u.WaitOutput(t, `level=WARN msg="usher's token lacks a permission; add it to the token's policy (usher-policy.hcl in /usr/share/usher or docs)" permission="service:write on \"ingress-gateway\""`)
			for _, optional := range []string{"agent:read", "peering:read"} {
				if !strings.Contains(u.Output(t), optional) {
					t.Errorf("the log does not name %s", optional)
				}
			}
			u.WantNotReady(t, `Usher's token lacks service:write on "ingress-gateway"`)
		})
	}
}
