//go:build kubernetes

package kubernetes

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/usherproxy/usher/e2e/kubernetes/cluster"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// installUsher runs Usher beside Consul, with a certificate of Consul's CA, which
// the gateways' pods have, and a Consul token with the policy of docs/.
func (r *consulRelease) installUsher(t *testing.T) []*cluster.Pod {
	t.Helper()
	certificate, key := r.signCertificate(t, "usher.consul.svc")
	r.createSecret(t, "usher-tls", map[string][]byte{"tls.crt": certificate, "tls.key": key})
	token := r.createToken(t, "usher", testprocess.ReadFile(t, "../../docs/usher-policy.hcl"))
	r.createSecret(t, "usher-consul-token", map[string][]byte{"token": []byte(token)})
	r.Apply(t, namespace, testprocess.ReadFile(t, "testdata/usher.yaml"))
	return r.WaitRolledOut(t, namespace, "usher")
}

func (r *consulRelease) createSecret(t *testing.T, name string, data map[string][]byte) {
	t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	if _, err := r.API.CoreV1().Secrets(namespace).Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// createToken creates a Consul token with a policy of its own.
func (r *consulRelease) createToken(t *testing.T, name, rules string) string {
	t.Helper()
	consul := r.Consul(t, namespace, prefix)
	if _, _, err := consul.ACL().PolicyCreate(&api.ACLPolicy{Name: name, Rules: rules}, nil); err != nil {
		t.Fatal(err)
	}
	token, _, err := consul.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLTokenPolicyLink{{Name: name}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return token.SecretID
}

// signCertificate signs a certificate for a DNS name with the CA that the chart's
// tls-init Job has made.
func (r *consulRelease) signCertificate(t *testing.T, name string) (certificate, key []byte) {
	t.Helper()
	ca, err := x509.ParseCertificate(r.secretPEM(t, prefix+"-ca-cert", "tls.crt"))
	if err != nil {
		t.Fatal(err)
	}
	caKey, err := x509.ParseECPrivateKey(r.secretPEM(t, prefix+"-ca-key", "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, ca, &private.PublicKey, caKey)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: encoded})
}

func (r *consulRelease) secretPEM(t *testing.T, name, key string) []byte {
	t.Helper()
	secret, err := r.API.CoreV1().Secrets(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(secret.Data[key])
	if block == nil {
		t.Fatalf("the Secret %s has no PEM in %s", name, key)
	}
	return block.Bytes
}

// adopt puts the gateway under Usher, as the documentation has it: the values of
// the release, and then what "usher helm-values" prints for them. More files have
// more values of the user.
func (r *consulRelease) adopt(t *testing.T, files ...string) {
	t.Helper()
	r.adoptOnly(t, nil, files...)
}

// adoptOnly is adopt for some gateways.
func (r *consulRelease) adoptOnly(t *testing.T, gateways []string, files ...string) {
	t.Helper()
	args := []string{"helm-values", "--chart-version", r.version, "--release", release, "--namespace", namespace}
	for _, file := range r.values(t, files...) {
		args = append(args, "-f", file)
	}
	for _, gateway := range gateways {
		args = append(args, "--gateway", gateway)
	}
	got := testprocess.Run(t, testprocess.Command{Name: "usher helm-values", Path: testprocess.Usher(t), Args: args}, "")
	if got.Code != 0 {
		t.Fatalf("usher %q: exit %d: %s", args, got.Code, got.Stderr)
	}
	r.helm(t, "upgrade", got.Stdout, files...)
}

// restartUsher rolls Usher out as "kubectl rollout restart" does.
func (r *consulRelease) restartUsher(t *testing.T) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": %q}}}}}`, time.Now())
	_, err := r.API.AppsV1().Deployments(namespace).
		Patch(t.Context(), "usher", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.WaitRolledOut(t, namespace, "usher")
}
