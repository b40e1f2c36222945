//go:build e2e

package apiserver

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Address is where the server listens, as https://host:port.
func (s *Server) Address() string { return "https://" + s.address }

// CA returns the certificate that the server's certificate is verified with, in PEM.
func (s *Server) CA(t *testing.T) string {
	t.Helper()
	return testprocess.ReadFile(t, s.dir+"/apiserver.crt")
}

// Transport returns what reaches the server from where it runs.
func (s *Server) Transport(t *testing.T) *http.Transport {
	t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(s.CA(t))) {
		t.Fatal("the server's certificate is none")
	}
	transport := &http.Transport{DialContext: s.options.Dial, TLSClientConfig: &tls.Config{RootCAs: roots}, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

// CreateServiceAccount creates a service account in Namespace.
func (s *Server) CreateServiceAccount(t *testing.T, name string) {
	t.Helper()
	s.post(t, "/api/v1/namespaces/"+Namespace+"/serviceaccounts", map[string]any{
		"apiVersion": "v1", "kind": "ServiceAccount", "metadata": map[string]any{"name": name},
	})
}

// CreatePod creates a pod of a service account in Namespace, which no kubelet runs. It returns the pod's UID.
func (s *Server) CreatePod(t *testing.T, name, account string) (uid string) {
	t.Helper()
	s.post(t, podsPath, map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": name},
		"spec": map[string]any{
			"serviceAccountName": account, "nodeName": "node-1",
			"containers": []any{map[string]any{"name": "gateway", "image": "gateway"}},
		},
	})
	var pod corev1.Pod
	if err := s.admin.Get().AbsPath(podsPath + "/" + name).Do(t.Context()).Into(&pod); err != nil {
		t.Fatalf("read the pod %s: %v", name, err)
	}
	return string(pod.UID)
}

const podsPath = "/api/v1/namespaces/" + Namespace + "/pods"

// DeletePod deletes a pod at once.
func (s *Server) DeletePod(t *testing.T, name string) {
	t.Helper()
	err := s.admin.Delete().AbsPath(podsPath+"/"+name).Param("gracePeriodSeconds", "0").Do(t.Context()).Error()
	if err != nil {
		t.Fatalf("delete the pod %s: %v", name, err)
	}
}

// TokenOptions are what a token is for.
type TokenOptions struct {
	Pod       string   // that it is bound to; "": none
	Audiences []string // nil: the server's own
}

// Token returns a token of a service account in Namespace, as the kubelet requests it for a pod.
func (s *Server) Token(t *testing.T, account string, o TokenOptions) string {
	t.Helper()
	request := authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: o.Audiences}}
	request.APIVersion, request.Kind = "authentication.k8s.io/v1", "TokenRequest"
	if o.Pod != "" {
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: o.Pod}
	}
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.admin.Post().AbsPath("/api/v1/namespaces/"+Namespace+"/serviceaccounts/"+account+"/token").
		SetHeader("Content-Type", "application/json").Body(body).DoRaw(t.Context())
	if err != nil {
		t.Fatalf("a token for %s: %v: %s", account, err, answer)
	}
	if err := json.Unmarshal(answer, &request); err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}
