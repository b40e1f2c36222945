//go:build e2e

package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// The paths of roles and role bindings.
const (
	clusterRBACPath = "/apis/rbac.authorization.k8s.io/v1/"
	rbacPath        = clusterRBACPath + "namespaces/" + Namespace + "/"
)

// Grant creates the roles, role bindings, ConfigMaps and Secrets in a YAML file, and waits until the rights are in effect.
// Each binding comes after its role.
func (s *Server) Grant(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var object map[string]any
		if err := yaml.Unmarshal([]byte(doc), &object); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		kind := object["kind"].(string)
		path := rbacPath
		if kind == "ConfigMap" || kind == "Secret" {
			path = "/api/v1/namespaces/" + Namespace + "/"
		}
		s.post(t, path+strings.ToLower(kind)+"s", object)
		if kind == "RoleBinding" {
			s.waitGranted(t, rbacPath, "rolebindings/"+object["metadata"].(map[string]any)["name"].(string))
		}
	}
}

// GrantCluster gives a service account a ClusterRole in the whole cluster, and waits until it is in effect.
func (s *Server) GrantCluster(t *testing.T, account, role string) {
	t.Helper()
	name := account + "-" + strings.ReplaceAll(role, ":", "-")
	s.post(t, clusterRBACPath+"clusterrolebindings", map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
		"metadata": map[string]any{"name": name},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": account, "namespace": Namespace}},
	})
	s.waitGranted(t, clusterRBACPath, "clusterrolebindings/"+name)
}

// CreateClusterRole creates a ClusterRole for one verb on one type of the core API.
func (s *Server) CreateClusterRole(t *testing.T, name, verb, resource string) {
	t.Helper()
	s.post(t, clusterRBACPath+"clusterroles", map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": map[string]any{"name": name},
		"rules": []any{map[string]any{"apiGroups": []string{""}, "resources": []string{resource}, "verbs": []string{verb}}},
	})
}

// Revoke deletes a role binding, and waits until Usher cannot read its Service any more.
func (s *Server) Revoke(t *testing.T, binding string) {
	t.Helper()
	if err := s.admin.Delete().AbsPath(rbacPath + "rolebindings/" + binding).Do(t.Context()).Error(); err != nil {
		t.Fatal(err)
	}
	usher := s.client(t, Usher)
	testprocess.Eventually(t, "the right is gone", testprocess.StartDeadline, func() error {
		err := usher.Get().Namespace(Namespace).Resource("services").Name(Service).Do(t.Context()).Error()
		if !apierrors.IsForbidden(err) {
			return errors.Join(errors.New("still allowed"), err)
		}
		return nil
	})
}

// waitGranted waits until the server's authorizer, which reads roles and bindings by a watch, allows what the binding gives.
func (s *Server) waitGranted(t *testing.T, path, bindingName string) {
	t.Helper()
	var binding rbacv1.RoleBinding // a ClusterRoleBinding has the same fields
	s.read(t, path+bindingName, &binding)
	var role rbacv1.Role // a ClusterRole has the same rules
	s.read(t, path+strings.ToLower(binding.RoleRef.Kind)+"s/"+binding.RoleRef.Name, &role)
	for _, subject := range binding.Subjects {
		user := "system:serviceaccount:" + subject.Namespace + ":" + subject.Name
		for _, rule := range role.Rules {
			s.waitAllowed(t, user, rule)
		}
	}
}

// waitAllowed waits until the first right of the rule is in effect; the others are then, too.
func (s *Server) waitAllowed(t *testing.T, user string, rule rbacv1.PolicyRule) {
	t.Helper()
	right := &authorizationv1.ResourceAttributes{
		Namespace: Namespace, Verb: rule.Verbs[0], Group: rule.APIGroups[0], Resource: rule.Resources[0],
	}
	right.Resource, right.Subresource, _ = strings.Cut(right.Resource, "/")
	if len(rule.ResourceNames) > 0 {
		right.Name = rule.ResourceNames[0]
	}
	review := authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: user, ResourceAttributes: right}}
	review.APIVersion, review.Kind = "authorization.k8s.io/v1", "SubjectAccessReview"
	body, err := json.Marshal(review)
	if err != nil {
		t.Fatal(err)
	}
	testprocess.Eventually(t, fmt.Sprintf("%s may %s %s", user, right.Verb, right.Resource), testprocess.StartDeadline, func() error {
		answer, err := s.admin.Post().AbsPath("/apis/authorization.k8s.io/v1/subjectaccessreviews").
			SetHeader("Content-Type", "application/json").Body(body).DoRaw(t.Context())
		if err != nil {
			return err
		}
		if err := json.Unmarshal(answer, &review); err != nil {
			return testprocess.Permanent(err)
		}
		if !review.Status.Allowed {
			return errors.New("not allowed yet")
		}
		return nil
	})
}

// read reads an object of any API.
func (s *Server) read(t *testing.T, path string, object any) {
	t.Helper()
	text, err := s.admin.Get().AbsPath(path).DoRaw(t.Context())
	if err == nil {
		err = json.Unmarshal(text, object)
	}
	if err != nil {
		t.Fatalf("read %s: %v", path, err)
	}
}
