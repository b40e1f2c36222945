//go:build kubernetes

package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Apply creates or changes the objects of a manifest, as "kubectl apply
// --server-side" does; those without a namespace are put into the one given.
// A webhook that is not ready yet is asked again.
func (c *Cluster) Apply(t *testing.T, namespace, manifest string) {
	t.Helper()
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader([]byte(manifest)), 4096)
	for {
		var object unstructured.Unstructured
		if err := decoder.Decode(&object.Object); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if len(object.Object) == 0 {
			continue
		}
		name := fmt.Sprintf("%s %s", object.GetKind(), object.GetName())
		testprocess.Eventually(t, "apply "+name, testprocess.StartDeadline, func() error {
			return c.apply(t, namespace, &object)
		})
	}
}

func (c *Cluster) apply(t *testing.T, namespace string, object *unstructured.Unstructured) error {
	t.Helper()
	resource, err := c.resource(namespace, object)
	if err != nil {
		return err
	}
	text, err := json.Marshal(object.Object)
	if err != nil {
		return err
	}
	force := true
	_, err = resource.Patch(t.Context(), object.GetName(), types.ApplyPatchType, text,
		metav1.PatchOptions{FieldManager: "kubectl", Force: &force})
	return err
}

// resource is where the object's kind is served.
func (c *Cluster) resource(namespace string, object *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := object.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		c.mapper.Reset() // a new custom resource definition
	}
	if err != nil {
		return nil, err
	}
	if mapping.Scope.Name() != meta.RESTScopeNameNamespace {
		return c.dynamic.Resource(mapping.Resource), nil
	}
	if object.GetNamespace() != "" {
		namespace = object.GetNamespace()
	}
	return c.dynamic.Resource(mapping.Resource).Namespace(namespace), nil
}
