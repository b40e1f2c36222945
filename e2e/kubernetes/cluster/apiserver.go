//go:build kubernetes

package cluster

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// adminToken is the token of the administrator, in the format of
// --token-auth-file.
const adminToken = "admin,admin,1,system:masters\n"

// startAPIServer starts etcd and kube-apiserver on the node, and waits until an
// administrator is served.
//
// Consul's auth method has the host kubernetes.default.svc without a port, so the
// server listens on 443 of the cluster address, which the node has on loopback.
// With --enable-aggregator-routing it calls webhooks at the addresses of their
// pods: there is no kube-proxy that would make cluster addresses work. The last
// two flags give it MutatingAdmissionPolicies, which are beta in this release.
func (c *Cluster) startAPIServer(t *testing.T) {
	t.Helper()
	c.Control.RunIP(t, fmt.Sprintf("address add %s/32 dev lo", apiServiceIP))
	const etcd, etcdPeer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	c.startOnNode(t, "etcd", testprocess.Debian(t, "etcd", "etcd-server"), "--data-dir", c.dir+"/etcd",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", etcdPeer, "--initial-advertise-peer-urls", etcdPeer, "--initial-cluster", "default="+etcdPeer,
		"--unsafe-no-fsync")
	key, tokens := c.dir+"/sa.key", c.dir+"/tokens"
	writeKey(t, key)
	if err := os.WriteFile(tokens, []byte(adminToken), 0o600); err != nil {
		t.Fatal(err)
	}
	server := c.startOnNode(t, "kube-apiserver", testprocess.Tool(t, testprocess.Kubernetes, "kube-apiserver"),
		"--etcd-servers", etcd, "--bind-address", "0.0.0.0", "--advertise-address", nodeIP, "--secure-port", "443",
		"--cert-dir", c.dir, "--authorization-mode", "RBAC", "--token-auth-file", tokens,
		"--service-cluster-ip-range", "10.96.0.0/16", "--allow-privileged",
		"--service-account-issuer", "https://kubernetes.default.svc",
		"--service-account-key-file", key, "--service-account-signing-key-file", key,
		"--enable-aggregator-routing",
		"--feature-gates=MutatingAdmissionPolicy=true", "--runtime-config=admissionregistration.k8s.io/v1beta1=true")
	testprocess.Eventually(t, "the API server is ready", testprocess.StartDeadline, func() error {
		if err := c.connect(); err != nil {
			return errors.Join(err, server.Alive())
		}
		err := c.API.Discovery().RESTClient().Get().AbsPath("/readyz").Do(t.Context()).Error()
		return errors.Join(err, server.Alive())
	})
}

// certificate is the API server's, which it makes for itself: its own authority.
func (c *Cluster) certificate() string { return filepath.Join(c.dir, "apiserver.crt") }

// connect makes the administrator's clients.
func (c *Cluster) connect() error {
	c.config = &rest.Config{
		Host: "https://" + apiServiceIP, BearerToken: "admin", Dial: c.Control.Dial, QPS: -1, // no limit
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.certificate()},
		WarningHandler:  rest.NoWarnings{}, // Endpoints are deprecated, and the chart reads them
	}
	client, err := kubernetes.NewForConfig(c.config)
	if err != nil {
		return err
	}
	c.API = client
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(client.Discovery()))
	c.dynamic, err = dynamic.NewForConfig(c.config)
	return err
}

func (c *Cluster) startOnNode(t *testing.T, name, path string, args ...string) *testprocess.Process {
	t.Helper()
	return testprocess.Start(t, testprocess.Command{Name: name, Path: path, Args: args, Host: c.Control})
}

// writeKey writes the key that signs tokens of service accounts.
func writeKey(t *testing.T, file string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Kubeconfig writes the administrator's kubeconfig file.
func (c *Cluster) Kubeconfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(c.dir, "kubeconfig")
	content := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: cluster
contexts: [{name: cluster, context: {cluster: cluster, user: admin}}]
clusters: [{name: cluster, cluster: {server: "https://%s", certificate-authority: %s}}]
users: [{name: admin, user: {token: admin}}]
`, apiServiceIP, c.certificate())
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
