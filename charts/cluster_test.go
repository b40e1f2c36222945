//go:build e2e

package charts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/usherproxy/usher/internal/testing/apiserver"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// cluster is a real API server, as a user of it sees it.
type cluster struct {
	server     *apiserver.Server
	kubeconfig string // of the administrator
	client     *http.Client
	config     *rest.Config
}

// policyVersion is the version of MutatingAdmissionPolicy that the API server of the tests serves.
const policyVersion = "admissionregistration.k8s.io/v1beta1"

// startCluster starts an API server with what the chart's objects need: namespaces, of which that of the release admits
// restricted pods only, and the CustomResourceDefinitions of others.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	server := apiserver.Start(t, apiserver.Options{Flags: []string{
		"--feature-gates=MutatingAdmissionPolicy=true", "--runtime-config=" + policyVersion + "=true",
	}})
	c := connect(t, server.Kubeconfig(t, apiserver.Admin))
	c.server = server
	restricted := map[string]any{"metadata": map[string]any{"labels": map[string]any{
		"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest",
	}}}
	c.want(t, http.StatusOK, http.MethodPatch, "/api/v1/namespaces/"+namespaceOfRelease, restricted)
	c.create(t, object{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": "team"}})
	for _, crd := range objects(t, testprocess.ReadFile(t, "testdata/crds.yaml")) {
		c.create(t, crd)
		names := crd.at("spec", "names").(map[string]any)
		group := crd.at("spec", "group").(string)
		path := "/apis/" + group + "/v1/" + names["plural"].(string)
		testprocess.Eventually(t, "the API server serves "+path, testprocess.StartDeadline, func() error {
			if code, body := c.do(t, http.MethodGet, path, nil); code != http.StatusOK {
				return fmt.Errorf("%d %s", code, body)
			}
			return nil
		})
	}
	return c
}

// connect returns a client with a kubeconfig.
func connect(t *testing.T, kubeconfig string) *cluster {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{kubeconfig: kubeconfig, client: client, config: config}
}

// do sends a request, and returns the status and the body of the answer.
func (c *cluster) do(t *testing.T, method, path string, body any) (int, string) {
	t.Helper()
	var sent io.Reader = http.NoBody
	if body != nil {
		sent = bytes.NewReader(asJSON(t, body))
	}
	request, err := http.NewRequestWithContext(t.Context(), method, c.config.Host+path, sent)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	answer, err := c.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

// want sends a request that has to get the status.
func (c *cluster) want(t *testing.T, status int, method, path string, body any) object {
	t.Helper()
	code, text := c.do(t, method, path, body)
	if code != status {
		t.Fatalf("%s %s: %d, want %d: %s", method, path, code, status, text)
	}
	var answer object
	if err := json.Unmarshal([]byte(text), (*map[string]any)(&answer)); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer
}

// get returns an object of the release's namespace.
func (c *cluster) get(t *testing.T, kind, name string) object {
	t.Helper()
	return c.want(t, http.StatusOK, http.MethodGet, collection(kind, namespaceOfRelease)+"/"+name, nil)
}

// create creates an object.
func (c *cluster) create(t *testing.T, o object) {
	t.Helper()
	namespace, _ := o.metadata()["namespace"].(string)
	c.want(t, http.StatusCreated, http.MethodPost, collection(o.kind(), namespace), o)
}

// dryRun asks whether the API server would create the object, without unknown fields.
func (c *cluster) dryRun(t *testing.T, o object) error {
	t.Helper()
	namespace, _ := o.metadata()["namespace"].(string)
	path := collection(o.kind(), namespace) + "?dryRun=All&fieldValidation=Strict&fieldManager=test"
	if code, body := c.do(t, http.MethodPost, path, o); code != http.StatusCreated {
		return fmt.Errorf("%s: %d %s", o.id(), code, body)
	}
	return nil
}

// helm runs Helm with the cluster.
func (c *cluster) helm(t *testing.T, args ...string) string {
	t.Helper()
	end := helm(t, append(args, "--namespace", namespaceOfRelease, "--kubeconfig", c.kubeconfig)...)
	if end.Code != 0 {
		t.Fatalf("helm %s: %s", strings.Join(args, " "), end.Stderr)
	}
	return end.Stdout
}

// kinds are the kinds of all objects that the chart can create, and the paths of their APIs.
var kinds = map[string]string{
	"Certificate":                    "/apis/cert-manager.io/v1",
	"ClusterRole":                    "/apis/rbac.authorization.k8s.io/v1",
	"ClusterRoleBinding":             "/apis/rbac.authorization.k8s.io/v1",
	"ConfigMap":                      "/api/v1",
	"CustomResourceDefinition":       "/apis/apiextensions.k8s.io/v1",
	"Deployment":                     "/apis/apps/v1",
	"Job":                            "/apis/batch/v1",
	"MutatingAdmissionPolicy":        "/apis/" + policyVersion,
	"MutatingAdmissionPolicyBinding": "/apis/" + policyVersion,
	"MutatingWebhookConfiguration":   "/apis/admissionregistration.k8s.io/v1",
	"Namespace":                      "/api/v1",
	"NetworkPolicy":                  "/apis/networking.k8s.io/v1",
	"Pod":                            "/api/v1",
	"PodDisruptionBudget":            "/apis/policy/v1",
	"PrometheusRule":                 "/apis/monitoring.coreos.com/v1",
	"Role":                           "/apis/rbac.authorization.k8s.io/v1",
	"RoleBinding":                    "/apis/rbac.authorization.k8s.io/v1",
	"Secret":                         "/api/v1",
	"Service":                        "/api/v1",
	"ServiceAccount":                 "/api/v1",
	"ServiceMonitor":                 "/apis/monitoring.coreos.com/v1",
	"StatefulSet":                    "/apis/apps/v1",
}

// collection is the path of the objects of a kind. A kind without a namespace ignores it.
func collection(kind, namespace string) string {
	plural := strings.ToLower(kind) + "s"
	if strings.HasSuffix(kind, "Policy") {
		plural = strings.ToLower(strings.TrimSuffix(kind, "y")) + "ies"
	}
	if namespace != "" {
		return kinds[kind] + "/namespaces/" + namespace + "/" + plural
	}
	return kinds[kind] + "/" + plural
}

// all returns the ids of all objects of these kinds in the cluster.
func (c *cluster) all(t *testing.T) []string {
	t.Helper()
	var ids []string
	for kind := range kinds {
		for _, item := range c.want(t, http.StatusOK, http.MethodGet, collection(kind, ""), nil)["items"].([]any) {
			metadata := item.(map[string]any)["metadata"].(map[string]any)
			ids = append(ids, fmt.Sprint(kind, "/", metadata["namespace"], "/", metadata["name"]))
		}
	}
	return ids
}
