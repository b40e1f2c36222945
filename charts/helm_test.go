//go:build e2e

package charts

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// object is a rendered object of Kubernetes.
type object map[string]any

func (o object) kind() string { return o["kind"].(string) }

func (o object) metadata() map[string]any { return o["metadata"].(map[string]any) }

// id is kind, namespace and name of the object.
func (o object) id() string {
	id := o.kind() + "/" + o.metadata()["name"].(string)
	if namespace, ok := o.metadata()["namespace"].(string); ok && namespace != namespaceOfRelease {
		id += "." + namespace
	}
	return id
}

// at returns the value at a path in the object, nil if there is none.
func (o object) at(path ...string) any {
	var v any = map[string]any(o)
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[key]
	}
	return v
}

// The release in all tests.
const (
	release            = "usher"
	namespaceOfRelease = "consul"
)

// helm runs the real Helm.
func helm(t *testing.T, args ...string) testprocess.Result {
	t.Helper()
	return testprocess.Run(t, testprocess.Command{
		Name: "helm", Path: testprocess.Tool(t, testprocess.Helm, "helm"), Args: args,
	}, "")
}

// absolute is the absolute path of a file of the package.
func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// template renders the chart without a cluster, but for one that has policies as the API server of the tests. It returns
// what Helm says if it does not.
func template(t *testing.T, chart string, args ...string) ([]object, string) {
	t.Helper()
	args = append([]string{
		"template", release, absolute(t, chart), "--namespace", namespaceOfRelease,
		"--api-versions", policyVersion + "/MutatingAdmissionPolicy",
	}, args...)
	end := helm(t, args...)
	if end.Code != 0 {
		return nil, end.Stderr
	}
	return objects(t, end.Stdout), ""
}

// objects reads the objects in a manifest.
func objects(t *testing.T, manifest string) []object {
	t.Helper()
	var all []object
	dec := yaml.NewDecoder(strings.NewReader(manifest))
	for {
		var o map[string]any // yaml would use a named type for the maps in it, too
		err := dec.Decode(&o)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("the manifest is not YAML: %v\n%s", err, manifest)
		}
		if o != nil {
			all = append(all, o)
		}
	}
}

// chartWithNotes is a copy of the chart that renders its notes as one more object: helm template leaves them out.
func chartWithNotes(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("usher")); err != nil {
		t.Fatal(err)
	}
	text := `{kind: Notes, metadata: {name: notes}, text: {{ include "usher/templates/NOTES.txt" . | toJson }}}`
	if err := os.WriteFile(filepath.Join(dir, "templates", "notes.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// find returns the object of the kind and name.
func find(t *testing.T, all []object, kind, name string) object {
	t.Helper()
	for _, o := range all {
		if o.kind() == kind && o.metadata()["name"] == name {
			return o
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}

// asJSON encodes an object.
func asJSON(t *testing.T, o any) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
