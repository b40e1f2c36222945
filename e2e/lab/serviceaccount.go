//go:build e2e

package lab

import (
	"fmt"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The names that the Consul chart gives: of the auth method for its own components, and of a gateway's service account.
const (
	ComponentAuthMethod = "consul-k8s-component-auth-method"
	GatewayAccount      = "consul-ingress-gateway"
)

// authMethodAccount is the service account with which Consul reviews tokens.
const authMethodAccount = "consul-auth-method"

// CreateAuthMethod makes the auth method, as the chart's server-acl-init does.
func (a *Consul) CreateAuthMethod(t *testing.T, k *apiserver.Server) {
	t.Helper()
	k.CreateServiceAccount(t, authMethodAccount)
	k.GrantCluster(t, authMethodAccount, "system:auth-delegator")
	k.CreateClusterRole(t, "read-service-accounts", "get", "serviceaccounts")
	k.GrantCluster(t, authMethodAccount, "read-service-accounts")
	_, _, err := a.Client.ACL().AuthMethodCreate(&api.ACLAuthMethod{
		Name: ComponentAuthMethod, Type: "kubernetes",
		Config: map[string]any{
			"Host": k.Address(), "CACert": k.CA(t), "ServiceAccountJWT": k.Token(t, authMethodAccount, apiserver.TokenOptions{}),
		},
	}, nil)
	if err != nil {
		t.Fatalf("auth method: %v", err)
	}
}

// BindAccount lets a service account log in: its tokens get a role with the rules. It returns the role and the binding
// rule.
func (a *Consul) BindAccount(t *testing.T, account, rules string) (*api.ACLRole, *api.ACLBindingRule) {
	t.Helper()
	policy, _, err := a.Client.ACL().PolicyCreate(&api.ACLPolicy{Name: account + "-policy", Rules: rules}, nil)
	if err != nil {
		t.Fatalf("ACL policy of %s: %v", account, err)
	}
	role, _, err := a.Client.ACL().RoleCreate(&api.ACLRole{Name: account + "-acl-role", Policies: []*api.ACLLink{{ID: policy.ID}}}, nil)
	if err != nil {
		t.Fatalf("ACL role of %s: %v", account, err)
	}
	rule, _, err := a.Client.ACL().BindingRuleCreate(&api.ACLBindingRule{
		AuthMethod: ComponentAuthMethod, BindType: api.BindingRuleBindTypeRole, BindName: role.Name,
		Selector: fmt.Sprintf("serviceaccount.name==%q", account),
	}, nil)
	if err != nil {
		t.Fatalf("binding rule of %s: %v", account, err)
	}
	return role, rule
}

// Logins returns the tokens that logins at the auth method have made.
func (a *Consul) Logins(t *testing.T) []*api.ACLTokenListEntry {
	t.Helper()
	tokens, _, err := a.Client.ACL().TokenList(nil)
	if err != nil {
		t.Fatal(err)
	}
	var logins []*api.ACLTokenListEntry
	for _, token := range tokens {
		if token.AuthMethod == ComponentAuthMethod {
			logins = append(logins, token)
		}
	}
	return logins
}

// WaitLogins waits until there are so many logins.
func (a *Consul) WaitLogins(t *testing.T, n int) []*api.ACLTokenListEntry {
	t.Helper()
	var logins []*api.ACLTokenListEntry
	testprocess.Eventually(t, fmt.Sprintf("Consul has %d logins", n), testprocess.ChangeDeadline, func() error {
		if logins = a.Logins(t); len(logins) != n {
			return fmt.Errorf("it has %d", len(logins))
		}
		return nil
	})
	return logins
}
