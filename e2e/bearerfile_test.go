//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestEnvoySendsItsServiceAccountToken runs a real Envoy with the bootstrap from `usher helm-values`, which names the file
// with the pod's token. The kubelet replaces the file, and Envoy's next stream has the new token.
func TestEnvoySendsItsServiceAccountToken(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		s := newAccountsLab(t, lab.ConsulNew)
		ca := lab.NewCertificateAuthority(t, "Usher CA")
		cert, key := ca.Issue(t, testprocess.NewDir(t), "usher.consul.svc", s.Gateway.IP)
		address := s.Gateway.Addr(18000)
		start := func() {
			s.usher = lab.StartUsher(t, lab.UsherOptions{
				Host: s.Gateway, Consul: s.consul, XDSAddr: address,
				Args: []string{"--envoy-login-auth-method", lab.ComponentAuthMethod, "--tls-cert", cert, "--tls-key", key},
			})
		}
		start()
		mount := &tokenMount{dir: testprocess.NewDir(t)}
		s.mountTokenOf(t, mount, "before")
		caFile := lab.WriteFile(t, testprocess.NewDir(t), "ca.pem", ca.PEM())
		template := helmValuesTemplate(t, mount.path(), "--xds-addr", "https://"+address, "--tls-server-name", "usher.consul.svc", "--ca-file", caFile)
		e := startTemplate(t, s.Network, s.consul, envoy, fmt.Sprintf("envoy_bootstrap_json_tpl = %q", template))
		e.WaitListener(t, 8080)
		if login := s.consul.WaitLogins(t, 1)[0]; !strings.Contains(login.Description, `"pod":"consul/before"`) {
			t.Errorf("the login is %s", login.Description)
		}

		// The new token is of another pod, to tell it from the first.
		s.mountTokenOf(t, mount, "after")
		s.usher.Stop(t)
		s.consul.WaitLogins(t, 0)
		start()
		s.usher.WaitStream(t)
		if login := s.consul.WaitLogins(t, 1)[0]; !strings.Contains(login.Description, `"pod":"consul/after"`) {
			t.Errorf("the login after the file was replaced is %s", login.Description)
		}
		s.wantNoSecretsIn(t, s.usher.Output(t), s.usher.Metrics(t))
		s.usher.Stop(t)
		s.consul.WaitLogins(t, 0)
	})
}

// helmValuesTemplate is the bootstrap that a gateway gets from `usher helm-values`. The token's file is another one: the
// test has no pod.
func helmValuesTemplate(t *testing.T, tokenFile string, args ...string) string {
	t.Helper()
	got := testprocess.Run(t, testprocess.Command{
		Path: testprocess.Usher(t), Args: append([]string{"helm-values", "-f", "-", "--chart-version", "1.9.11"}, args...),
	}, `
global: {name: consul, acls: {manageSystemACLs: true}, tls: {enabled: true}}
ingressGateways: {enabled: true, gateways: [{name: ingress-gateway}]}
`)
	if got.Code != 0 {
		t.Fatalf("usher helm-values: %s", got.Stderr)
	}
	var values struct {
		IngressGateways struct {
			Defaults struct{ Annotations string }
		} `json:"ingressGateways"`
	}
	annotations := map[string]string{}
	var config map[string]string
	err := yaml.Unmarshal([]byte(got.Stdout), &values)
	err = errors.Join(err, yaml.Unmarshal([]byte(values.IngressGateways.Defaults.Annotations), &annotations))
	err = errors.Join(err, json.Unmarshal([]byte(annotations["consul.hashicorp.com/proxy-config-map"]), &config))
	template := config["envoy_bootstrap_json_tpl"]
	if err != nil || !strings.Contains(template, podTokenFile) {
		t.Fatalf("the values have no bootstrap that sends the pod's token: %v: %s", err, got.Stdout)
	}
	return strings.ReplaceAll(template, podTokenFile, tokenFile)
}

// podTokenFile is where a pod has the token of its service account.
const podTokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// mountTokenOf replaces the token in a mount with one of a new pod.
func (s *accountsLab) mountTokenOf(t *testing.T, m *tokenMount, pod string) {
	t.Helper()
	s.kubernetes.CreatePod(t, pod, lab.GatewayAccount)
	m.replace(t, s.token(t, lab.GatewayAccount, apiserver.TokenOptions{Pod: pod}))
}

// tokenMount is a projected volume with a token, as the kubelet writes it: a link through a link that is replaced.
type tokenMount struct {
	dir string
	n   int
}

func (m *tokenMount) path() string { return filepath.Join(m.dir, "token") }

func (m *tokenMount) replace(t *testing.T, token string) {
	t.Helper()
	m.n++
	version, next := fmt.Sprintf("..%d", m.n), filepath.Join(m.dir, "..data_tmp")
	if err := os.Mkdir(filepath.Join(m.dir, version), 0o755); err != nil {
		t.Fatal(err)
	}
	lab.WriteFile(t, filepath.Join(m.dir, version), "token", token)
	err := errors.Join(os.Symlink(version, next), os.Rename(next, filepath.Join(m.dir, "..data")))
	if m.n == 1 {
		err = errors.Join(err, os.Symlink(filepath.Join("..data", "token"), m.path()))
	}
	if err != nil {
		t.Fatal(err)
	}
}
