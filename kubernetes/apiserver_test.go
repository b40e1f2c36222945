//go:build e2e

package kubernetes

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/usherproxy/usher/gateway"
)

// The names of docs/kubernetes-role.yaml.
var labService = gateway.KubernetesService{Namespace: "consul", Name: "consul-ingress-gateway"}

// cluster is a real kube-apiserver with RBAC on a real etcd, both on loopback.
type cluster struct {
	dir, address string
	args         []string
	server       *exec.Cmd
	admin, usher rest.Interface
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir(), address: freeAddress(t)}
	etcd, peer := "http://"+freeAddress(t), "http://"+freeAddress(t)
	c.start(t, "etcd", "--data-dir", c.dir+"/etcd", "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	key := c.dir + "/sa.key"
	writeKey(t, key)
	tokens := "admin,admin,1,system:masters\nusher,system:serviceaccount:consul:usher,2\n"
	if err := os.WriteFile(c.dir+"/tokens", []byte(tokens), 0o600); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(c.address)
	c.args = []string{
		"--etcd-servers", etcd, "--bind-address", "127.0.0.1", "--secure-port", port, "--cert-dir", c.dir,
		"--authorization-mode", "RBAC", "--token-auth-file", c.dir + "/tokens", "--service-cluster-ip-range", "10.0.0.0/16",
		"--service-account-issuer", "lab", "--service-account-key-file", key, "--service-account-signing-key-file", key,
	}
	c.begin(t)
	c.admin, c.usher = c.client(t, "admin"), c.client(t, "usher")
	c.post(t, "/api/v1/namespaces", map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "consul"}})
	c.grant(t)
	return c
}

// writeKey makes the key that signs tokens of service accounts; nobody uses one.
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

// start runs a program until the test ends.
func (c *cluster) start(t *testing.T, path string, args ...string) *exec.Cmd {
	t.Helper()
	log, err := os.Create(filepath.Join(c.dir, filepath.Base(path)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v; run \"make tools\"", path, err)
	}
	t.Cleanup(func() {
		end(cmd)
		log.Close()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("end of %s:\n%s", path, text[max(0, len(text)-4000):])
		}
	})
	return cmd
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// begin starts the API server and waits until it is ready.
func (c *cluster) begin(t *testing.T) {
	t.Helper()
	tools := os.Getenv("USHER_TOOLS")
	if tools == "" {
		tools = filepath.Join("..", ".tools")
	}
	c.server = c.start(t, filepath.Join(tools, "kubernetes-1.34.0", "kube-apiserver"), c.args...)
	eventually(t, "the API server is ready", func() error {
		if _, err := os.Stat(c.dir + "/apiserver.crt"); err != nil {
			return err
		}
		return c.client(t, "admin").Get().AbsPath("/readyz").Do(t.Context()).Error()
	})
}

// grant gives Usher the role that the documents show.
func (c *cluster) grant(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile("../docs/kubernetes-role.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatal(err)
		}
		c.post(t, "/apis/rbac.authorization.k8s.io/v1/namespaces/consul/"+strings.ToLower(object["kind"].(string))+"s", object)
	}
}

func (c *cluster) post(t *testing.T, path string, object any) {
	t.Helper()
	body, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "POST "+path, func() error {
		err := c.admin.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body(body).Do(t.Context()).Error()
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

func (c *cluster) client(t *testing.T, token string) rest.Interface {
	t.Helper()
	file := filepath.Join(c.dir, token+".kubeconfig")
	config := clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: "https://" + c.address, CertificateAuthority: c.dir + "/apiserver.crt"}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{"c": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "c",
	}
	if err := clientcmd.WriteToFile(config, file); err != nil {
		t.Fatal(err)
	}
	client, err := Connect(file)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// create makes a Service, and gives it as the API server has it.
func (c *cluster) create(t *testing.T, name string, annotations map[string]string) *corev1.Service {
	t.Helper()
	s := balanced(annotations)
	s.Name = name
	var made corev1.Service
	if err := c.admin.Post().Namespace("consul").Resource("services").Body(s).Do(t.Context()).Into(&made); err != nil {
		t.Fatalf("%v: %v", annotations, err)
	}
	return &made
}

// annotate changes an annotation of the lab's Service as "kubectl annotate" does,
// and gives the Service; nil removes it.
func (c *cluster) annotate(t *testing.T, key string, value *string) *corev1.Service {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{key: value}}})
	if err != nil {
		t.Fatal(err)
	}
	var now corev1.Service
	err = c.admin.Patch(types.MergePatchType).Namespace("consul").Resource("services").Name(labService.Name).
		VersionedParams(&metav1.PatchOptions{FieldManager: "kubectl-annotate"}, metav1.ParameterCodec).Body(patch).Do(t.Context()).Into(&now)
	if err != nil {
		t.Fatal(err)
	}
	return &now
}

// watch is a Watch of the lab's Service with Usher's own rights, until stop.
func (c *cluster) watch(t *testing.T, grace time.Duration) (said <-chan *gateway.Balancer, stop func()) {
	t.Helper()
	w := New(Options{Client: c.usher, Grace: grace, Logger: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry())})
	out := make(chan *gateway.Balancer, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.Watch(ctx, labService, func(b *gateway.Balancer) { out <- b })
	}()
	stop = func() {
		cancel()
		<-ended
	}
	t.Cleanup(stop)
	return out, stop
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	err := try()
	for ; err != nil; err = try() {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestOnAnAPIServer(t *testing.T) {
	c := newCluster(t)
	t.Run("every annotation of the table, on a real Service", func(t *testing.T) { c.everyAnnotation(t) })
	t.Run("the role of the documents suffices, and gives nothing else", func(t *testing.T) { c.leastRights(t) })
	t.Run("a header is switched on and off, and an Usher is restarted", func(t *testing.T) { c.switchOnAndOff(t) })
	t.Run("nobody answers, or refuses, or the Service is gone", func(t *testing.T) { c.outages(t) })
}

func (c *cluster) everyAnnotation(t *testing.T) {
	for i, row := range annotated {
		before := time.Now().Add(-2 * time.Second) // times are in seconds
		s := c.create(t, fmt.Sprintf("row-%d", i), map[string]string{row.key: row.value})
		got := read(s)
		for i := range got.problems {
			got.problems[i].Where = "Kubernetes Service consul/edge"
		}
		checkTold(t, row, got)
		for port, of := range got.listeners {
			if of.signal == on && (of.since.Before(before) || of.since.After(time.Now().Add(time.Second))) {
				t.Errorf("%s: listener %d is on since %s, and the Service was made at %s", row.key, port, of.since, before)
			}
		}
	}
}

func (c *cluster) leastRights(t *testing.T) {
	c.create(t, labService.Name, nil)
	services := func() *rest.Request { return c.usher.Get().Namespace("consul").Resource("services") }
	if err := services().Name(labService.Name).Do(t.Context()).Error(); err != nil {
		t.Errorf("its own Service: %v", err)
	}
	for what, err := range map[string]error{
		"another Service": services().Name("row-0").Do(t.Context()).Error(),
		"all Services":    services().Do(t.Context()).Error(),
		"the Secrets":     c.usher.Get().Namespace("consul").Resource("secrets").Do(t.Context()).Error(),
		"to delete":       c.usher.Delete().Namespace("consul").Resource("services").Name(labService.Name).Do(t.Context()).Error(),
	} {
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v, want Forbidden", what, err)
		}
	}
	said, stop := c.watch(t, time.Hour)
	await(t, said, gateway.Off, "")
	stop()
}

func (c *cluster) switchOnAndOff(t *testing.T) {
	said, stop := c.watch(t, time.Hour)
	await(t, said, gateway.Off, "")
	on := c.annotate(t, awsAll, new("*"))
	await(t, said, gateway.Permissive, "")
	restarted, stopRestarted := c.watch(t, time.Hour)
	await(t, restarted, gateway.Permissive, "")
	stopRestarted()
	first, second := read(on).listeners[8080].since, read(c.annotate(t, "example.com/other", new("x"))).listeners[8080].since
	if first.IsZero() || second.Before(first) {
		t.Errorf("since %s, and after another change since %s", first, second)
	}
	stop()
	said, stop = c.watch(t, 3*time.Second)
	await(t, said, gateway.Strict, "")
	removed := c.annotate(t, awsAll, nil)
	if newest := read(removed).newest; newest.After(second) {
		t.Errorf("the removal has left the time %s; then nobody has to recall anything", newest)
	}
	restarted, stopRestarted = c.watch(t, time.Hour)
	await(t, restarted, gateway.Permissive, "") // the API server still knows what was
	stopRestarted()
	await(t, said, gateway.Permissive, "")
	await(t, said, gateway.Off, "")
	stop()
}

func (c *cluster) outages(t *testing.T) {
	c.annotate(t, awsAll, new("*"))
	said, stop := c.watch(t, 0)
	await(t, said, gateway.Strict, "")
	end(c.server)
	await(t, said, gateway.Strict, "cannot be reached")
	cold, stopCold := c.watch(t, 0)
	await(t, cold, "", "cannot be reached")
	c.begin(t)
	await(t, said, gateway.Strict, "")
	await(t, cold, gateway.Strict, "")
	stopCold()

	if err := c.admin.Delete().Namespace("consul").Resource("services").Name(labService.Name).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	await(t, said, gateway.Strict, "there is no such Service")
	c.create(t, labService.Name, map[string]string{awsAll: "*"})
	await(t, said, gateway.Strict, "")

	binding := c.admin.Delete().AbsPath("/apis/rbac.authorization.k8s.io/v1/namespaces/consul/rolebindings/usher").Do(t.Context()).Error()
	refused := func() error {
		if err := c.usher.Get().Namespace("consul").Resource("services").Name(labService.Name).Do(t.Context()).Error(); !apierrors.IsForbidden(err) {
			return errors.Join(errors.New("still allowed"), err)
		}
		return nil
	}
	if binding != nil {
		t.Fatal(binding)
	}
	eventually(t, "the right is gone", refused)
	cold, stopCold = c.watch(t, 0)
	await(t, cold, "", "give Usher get, list and watch on it")
	c.grant(t)
	await(t, cold, gateway.Strict, "")
	stopCold()
	stop()
}
