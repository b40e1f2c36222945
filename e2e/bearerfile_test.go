//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestEnvoySendsItsServiceAccountToken runs a real Envoy whose bootstrap names the file with the pod's token. The kubelet
// replaces the file, and Envoy's next stream has the new token.
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
		e := lab.StartEnvoyWith(t, s.Gateway, envoy, fmt.Sprintf(bearerBootstrap, address, caFile, mount.path()))
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

// bearerBootstrap makes Envoy send the token in a file as a bearer token: it reads the file for each stream.
const bearerBootstrap = `
node: {id: ingress-gateway, cluster: ingress-gateway}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 19000}}}
dynamic_resources:
  lds_config: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}
  cds_config: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services:
      - google_grpc:
          target_uri: dns:///%[1]s
          stat_prefix: usher
          channel_credentials: {ssl_credentials: {root_certs: {filename: %[2]s}}}
          credentials_factory_name: envoy.grpc_credentials.file_based_metadata
          call_credentials:
            - from_plugin:
                name: envoy.grpc_credentials.file_based_metadata
                typed_config:
                  "@type": type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig
                  secret_data: {filename: %[3]s}
                  header_key: authorization
                  header_prefix: "Bearer "
`

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
