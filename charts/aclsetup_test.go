//go:build e2e

package charts

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// authMethod is the auth method of the values with ACLs.
const authMethod = "consul-k8s-component-auth-method"

// TestACLSetupGivesUsherItsRole runs the Job of consul.aclSetup with a real Consul and its auth method at a real API
// server: Usher's service account can log in then, and gets the policy for its gateways. Another account cannot.
func TestACLSetupGivesUsherItsRole(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	server := startConsul(t, false)
	consul := server.client
	createAuthMethod(t, c, consul)
	for _, account := range []string{"usher", "other"} {
		c.create(t, serviceAccount(account))
	}
	usher := serviceAccountToken(t, c, "usher")
	files := strings.NewReplacer("/etc/usher/acl-token/token", server.tokenFile)
	login := func(bearer string) (*api.ACLToken, error) {
		token, _, err := consul.ACL().Login(&api.ACLLoginParams{AuthMethod: authMethod, BearerToken: bearer}, nil)
		return token, err
	}
	if _, err := login(usher); err == nil {
		t.Fatal("Usher can log in without the Job")
	}

	runJob(t, setupJob(t, server.http), files)
	token, err := login(usher)
	if err != nil {
		t.Fatalf("Usher cannot log in after the Job: %v", err)
	}
	if _, err := login(serviceAccountToken(t, c, "other")); err == nil {
		t.Error("another service account can log in")
	}
	wantPermissions(t, consul, token.SecretID, map[string]bool{"ingress-gateway": true, "second": false, "web": false})

	// It can run again: with other values, it changes what it has created before.
	runJob(t, setupJob(t, server.http), files)
	second := setupJob(t, server.http, "--set", "gateways[0].name=ingress-gateway,gateways[1].name=second")
	runJob(t, second, files)
	wantPermissions(t, consul, token.SecretID, map[string]bool{"ingress-gateway": true, "second": true, "web": false})
	runJob(t, setupJob(t, server.http, "--set", "serviceAccount.name=other"), files)
	if _, err := login(usher); err == nil {
		t.Error("the service account of before can still log in")
	}
	rules, _, err := consul.ACL().BindingRuleList(authMethod, nil)
	if err != nil || len(rules) != 1 {
		t.Errorf("%d binding rules (%v), want 1", len(rules), err)
	}
}

// createAuthMethod creates the auth method that the Consul chart makes for its components. Consul reviews tokens as the
// service account "reviewer".
func createAuthMethod(t *testing.T, c *cluster, consul *api.Client) {
	t.Helper()
	c.create(t, serviceAccount("reviewer"))
	c.create(t, object{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": map[string]any{"name": "reviewer"},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": "reviewer", "namespace": namespaceOfRelease}},
	})
	ca := testprocess.ReadFile(t, c.config.CAFile)
	_, _, err := consul.ACL().AuthMethodCreate(&api.ACLAuthMethod{Name: authMethod, Type: "kubernetes", Config: map[string]any{
		"Host": c.config.Host, "CACert": ca, "ServiceAccountJWT": serviceAccountToken(t, c, "reviewer"),
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// serviceAccountToken returns a token as a pod of the service account has.
func serviceAccountToken(t *testing.T, c *cluster, account string) string {
	t.Helper()
	path := collection("ServiceAccount", namespaceOfRelease) + "/" + account + "/token"
	answer := c.want(t, http.StatusCreated, http.MethodPost, path, map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": map[string]any{"expirationSeconds": 3600},
	})
	return answer.at("status", "token").(string)
}

// setupJob returns the container of the Job.
func setupJob(t *testing.T, consul string, args ...string) map[string]any {
	t.Helper()
	args = append([]string{"-f", absolute(t, "testdata/acls.in.yaml"), "--set", "consul.httpAddr=" + consul}, args...)
	return setupContainer(t, mustTemplate(t, args...))
}

// setupContainer returns the container of the only Job.
func setupContainer(t *testing.T, rendered []object) map[string]any {
	t.Helper()
	for _, o := range rendered {
		if o.kind() == "Job" {
			return o.at("spec", "template", "spec", "containers").([]any)[0].(map[string]any)
		}
	}
	t.Fatal("there is no Job")
	return nil
}

// runJob runs the container as the kubelet would, with Consul's command on its path, and with files elsewhere.
func runJob(t *testing.T, container map[string]any, files *strings.Replacer) {
	t.Helper()
	var command []string
	for _, part := range append(container["command"].([]any), container["args"].([]any)...) {
		command = append(command, part.(string))
	}
	env := []string{"PATH=" + filepath.Dir(testprocess.Tool(t, testprocess.Consul, "consul"))}
	for _, variable := range container["env"].([]any) {
		variable := variable.(map[string]any)
		env = append(env, variable["name"].(string)+"="+files.Replace(variable["value"].(string)))
	}
	out, err := testprocess.RunOutput(t, testprocess.Command{Name: "acl-setup", Path: command[0], Args: command[1:], Env: env}, "")
	if err != nil {
		t.Fatalf("the Job fails: %v\n%s", err, out)
	}
}

// wantPermissions checks for which services the token has service:write, as Usher needs it for its gateways.
func wantPermissions(t *testing.T, consul *api.Client, token string, want map[string]bool) {
	t.Helper()
	for service, allowed := range want {
		registration := &api.AgentServiceRegistration{Name: service, Kind: api.ServiceKindIngressGateway, Port: 8888}
		err := consul.Agent().ServiceRegisterOpts(registration, api.ServiceRegisterOpts{Token: token})
		if (err == nil) != allowed {
			t.Errorf("service:write on %s: %v, want %v", service, err, allowed)
		}
	}
	options := &api.QueryOptions{Token: token}
	if nodes, _, err := consul.Catalog().Nodes(options); err != nil || len(nodes) != 1 {
		t.Errorf("the token sees %d nodes (%v), want 1", len(nodes), err)
	}
}
