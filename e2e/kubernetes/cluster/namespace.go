//go:build kubernetes

package cluster

import (
	"context"
	"os"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// tokenLifetime is that of tokens in Secrets: longer than a test, and no longer
// than the API server allows.
const tokenLifetime = 365 * 24 * 3600

// CreateNamespace creates a namespace.
func (c *Cluster) CreateNamespace(t *testing.T, name string) {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := c.API.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.fillNamespace(t, name)
}

// fillNamespace writes what controllers put into each namespace: the service
// account of pods that name none, and the authority of the API server.
func (c *Cluster) fillNamespace(t *testing.T, name string) {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	if _, err := c.API.CoreV1().ServiceAccounts(name).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(c.certificate())
	if err != nil {
		t.Fatal(err)
	}
	config := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt"}, Data: map[string]string{"ca.crt": string(ca)},
	}
	if _, err := c.API.CoreV1().ConfigMaps(name).Create(t.Context(), config, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// reconcileTokens fills Secrets of the type service-account-token, as Consul's
// auth method has one for its question to the API server.
func (c *Cluster) reconcileTokens(ctx context.Context) error {
	secrets, err := c.API.CoreV1().Secrets("").List(ctx, metav1.ListOptions{
		FieldSelector: "type=" + string(corev1.SecretTypeServiceAccountToken),
	})
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(c.certificate())
	if err != nil {
		return err
	}
	for _, secret := range secrets.Items {
		if len(secret.Data[corev1.ServiceAccountTokenKey]) > 0 {
			continue
		}
		lifetime := int64(tokenLifetime)
		request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &lifetime}}
		answer, err := c.API.CoreV1().ServiceAccounts(secret.Namespace).
			CreateToken(ctx, secret.Annotations[corev1.ServiceAccountNameKey], request, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		secret.Data = map[string][]byte{
			corev1.ServiceAccountTokenKey: []byte(answer.Status.Token), corev1.ServiceAccountRootCAKey: ca,
			corev1.ServiceAccountNamespaceKey: []byte(secret.Namespace),
		}
		if _, err := c.API.CoreV1().Secrets(secret.Namespace).Update(ctx, &secret, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	return nil
}
