//go:build e2e

package apiserver

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Options are where the server runs. The zero value: on the host of the test, on
// loopback.
type Options struct {
	Host testprocess.Host
	IP   string // of the host, for listening
	// Dial connects from the host.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Flags are further flags of kube-apiserver.
	Flags []string
}

// Server is a kube-apiserver on an etcd; both end with the test.
type Server struct {
	options Options
	dir     string
	address string
	args    []string // of kube-apiserver
	process *testprocess.Process
	etcd    *testprocess.Process
	etcdArg []string
	admin   rest.Interface
}

// User is a user of the server.
type User string

// The users. Admin has every right; Usher is the service account of
// docs/kubernetes-role.yaml, and has the rights from Grant.
const (
	Admin User = "admin"
	Usher User = "usher"
)

// tokens are the users in the format of --token-auth-file: a user's token is its name.
const tokens = "admin,admin,1,system:masters\nusher,system:serviceaccount:" + Namespace + ":usher,2\n"

// Start starts a server with Namespace and nothing else, and waits until it is ready.
func Start(t *testing.T, o Options) *Server {
	t.Helper()
	if o.Host == nil {
		o = Options{IP: "127.0.0.1", Dial: new(net.Dialer).DialContext, Flags: o.Flags}
	}
	s := &Server{options: o, dir: testprocess.NewDir(t)}
	s.address = s.freeAddress(t)
	etcd, etcdPeer := "http://"+s.freeAddress(t), "http://"+s.freeAddress(t)
	s.etcdArg = []string{
		"--data-dir", s.dir + "/etcd",
		"--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", etcdPeer, "--initial-advertise-peer-urls", etcdPeer, "--initial-cluster", "default=" + etcdPeer,
		"--unsafe-no-fsync", // the data need not survive a crash, and the disk may be busy
	}
	s.startEtcd(t)
	key := writeKey(t, s.dir)
	if err := os.WriteFile(s.dir+"/tokens", []byte(tokens), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(s.address)
	s.args = append([]string{
		"--etcd-servers", etcd, "--bind-address", o.IP, "--secure-port", port, "--cert-dir", s.dir,
		"--authorization-mode", "RBAC", "--token-auth-file", s.dir + "/tokens", "--service-cluster-ip-range", "10.0.0.0/16,fd00:10::/108",
		"--service-account-issuer", "lab", "--service-account-key-file", key, "--service-account-signing-key-file", key,
	}, o.Flags...)
	s.Resume(t)
	s.createNamespace(t)
	return s
}

func (s *Server) startEtcd(t *testing.T) {
	t.Helper()
	s.etcd = s.run(t, "etcd", testprocess.Debian(t, "etcd", "etcd-server"), s.etcdArg...)
}

// Save saves what etcd has, for Restore. The server is down meanwhile.
func (s *Server) Save(t *testing.T) { s.replaceData(t, s.dir+"/etcd", s.dir+"/saved") }

// Restore replaces what etcd has by what Save saved: resource versions then count from a lower number. The server is down
// meanwhile.
func (s *Server) Restore(t *testing.T) { s.replaceData(t, s.dir+"/saved", s.dir+"/etcd") }

func (s *Server) replaceData(t *testing.T, from, to string) {
	t.Helper()
	s.Stop()
	s.etcd.Stop(t)
	if err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from)), os.Chmod(to, 0o700)); err != nil {
		t.Fatal(err)
	}
	s.startEtcd(t)
	s.Resume(t)
}

// Stop ends the API server, but not its etcd.
func (s *Server) Stop() { s.process.Kill() }

// Resume starts the API server after Stop, with all its objects, and waits until it is
// ready.
func (s *Server) Resume(t *testing.T) {
	t.Helper()
	s.process = s.run(t, "kube-apiserver", testprocess.Tool(t, testprocess.Kubernetes, "kube-apiserver"), s.args...)
	testprocess.Eventually(t, "the API server is ready", testprocess.StartDeadline, func() error {
		if _, err := os.Stat(s.dir + "/apiserver.crt"); err != nil {
			return errors.Join(err, s.process.Alive())
		}
		admin := s.client(t, Admin) // the certificate may have been incomplete before
		if err := admin.Get().AbsPath("/readyz").Do(t.Context()).Error(); err != nil {
			return errors.Join(err, s.process.Alive())
		}
		s.admin = admin
		return nil
	})
}

func (s *Server) run(t *testing.T, name, path string, args ...string) *testprocess.Process {
	t.Helper()
	return testprocess.Start(t, testprocess.Command{Name: name, Path: path, Args: args, Host: s.options.Host})
}

// freeAddress returns an address without a listener.
func (s *Server) freeAddress(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort(s.options.IP, strconv.Itoa(testprocess.FreePortAt(t, s.options.Host, s.options.IP)))
}

// writeKey writes the key that signs tokens of service accounts, which no test uses.
func writeKey(t *testing.T, dir string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "sa.key")
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Kubeconfig returns the path of a kubeconfig file for a user.
func (s *Server) Kubeconfig(t *testing.T, u User) string {
	t.Helper()
	return s.KubeconfigAt(t, u, s.Address())
}

// KubeconfigAt is Kubeconfig for something in front of the server, at this URL.
func (s *Server) KubeconfigAt(t *testing.T, u User, url string) string {
	t.Helper()
	file := filepath.Join(testprocess.NewDir(t), string(u)+".kubeconfig")
	content := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: lab
contexts: [{name: lab, context: {cluster: lab, user: %[1]s}}]
clusters: [{name: lab, cluster: {server: %[2]q, certificate-authority: %[3]s/apiserver.crt}}]
users: [{name: %[1]s, user: {token: %[1]s}}]
`, u, url, s.dir)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
