//go:build e2e

package apiserver

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The names in docs/kubernetes-role.yaml: the only namespace, and the Service that Usher
// may read.
const (
	Namespace = "consul"
	Service   = "consul-ingress-gateway"
)

// client returns a client of the server for a user.
func (s *Server) client(t *testing.T, u User) rest.Interface {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", s.Kubeconfig(t, u))
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	config.Dial = s.options.Dial
	config.QPS = -1 // no limit
	config.APIPath = "/api"
	config.GroupVersion = &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func (s *Server) createNamespace(t *testing.T) {
	t.Helper()
	s.post(t, "/api/v1/namespaces", map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": Namespace},
	})
}

// post creates an object, unless there is one of this name. A server that has just
// started refuses some at first.
func (s *Server) post(t *testing.T, path string, object any) {
	t.Helper()
	body, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	testprocess.Eventually(t, "POST "+path, testprocess.StartDeadline, func() error {
		err := s.admin.Post().AbsPath(path).SetHeader("Content-Type", "application/json").Body(body).Do(t.Context()).Error()
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
}

// Create creates a Service in Namespace, and returns it as the server has it.
func (s *Server) Create(t *testing.T, service *corev1.Service) *corev1.Service {
	t.Helper()
	var created corev1.Service
	err := s.admin.Post().Namespace(Namespace).Resource("services").Body(service).Do(t.Context()).Into(&created)
	if err != nil {
		t.Fatalf("create the Service %s: %v", service.Name, err)
	}
	return &created
}

// Annotate changes an annotation of Service as "kubectl annotate" does, and returns the
// Service as the server has it now; nil removes the annotation.
func (s *Server) Annotate(t *testing.T, key string, value *string) *corev1.Service {
	t.Helper()
	now, err := s.TryAnnotate(t, key, value)
	if err != nil {
		t.Fatalf("annotate the Service %s with %s: %v", Service, key, err)
	}
	return now
}

// TryAnnotate is Annotate for a change that the server may refuse.
func (s *Server) TryAnnotate(t *testing.T, key string, value *string) (*corev1.Service, error) {
	t.Helper()
	return s.patch(t, Service, map[string]any{"metadata": map[string]any{"annotations": map[string]any{key: value}}})
}

// AnnotateService adds annotations to a Service in Namespace, all at once.
func (s *Server) AnnotateService(t *testing.T, name string, annotations map[string]string) {
	t.Helper()
	if _, err := s.patch(t, name, map[string]any{"metadata": map[string]any{"annotations": annotations}}); err != nil {
		t.Fatalf("annotate the Service %s with %q: %v", name, annotations, err)
	}
}

// SetHostname sets the host name of the load balancer in the status of a Service in Namespace, as its cloud does.
func (s *Server) SetHostname(t *testing.T, name, hostname string) {
	t.Helper()
	status := corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{Hostname: hostname}}}}
	if _, err := s.patch(t, name, map[string]any{"status": status}, "status"); err != nil {
		t.Fatalf("set the host name of the Service %s: %v", name, err)
	}
}

// patch changes a Service in Namespace, or a subresource of it.
func (s *Server) patch(t *testing.T, name string, change map[string]any, subresource ...string) (*corev1.Service, error) {
	t.Helper()
	patch, err := json.Marshal(change)
	if err != nil {
		t.Fatal(err)
	}
	var now corev1.Service
	err = s.admin.Patch(types.MergePatchType).Namespace(Namespace).Resource("services").Name(name).SubResource(subresource...).
		VersionedParams(&metav1.PatchOptions{FieldManager: "kubectl-annotate"}, metav1.ParameterCodec).
		Body(patch).Do(t.Context()).Into(&now)
	return &now, err
}

// Delete deletes a Service in Namespace.
func (s *Server) Delete(t *testing.T, name string) {
	t.Helper()
	if err := s.admin.Delete().Namespace(Namespace).Resource("services").Name(name).Do(t.Context()).Error(); err != nil {
		t.Fatalf("delete the Service %s: %v", name, err)
	}
}
