package consulchart

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// TestAliasesAndMergeKeysAreReadAsHelmReadsThem compares with the library that Helm uses.
func TestAliasesAndMergeKeysAreReadAsHelmReadsThem(t *testing.T) {
	const text = `
a: &a {x: 1, v: [1, 2]}
b: &b {<<: *a, x: 2}
c: {<<: [{z: 5}, *b], w: 3}
list: [*a, *b]
&key k: v
object: {*key : 4}
`
	var want, got map[string]any
	if err := yaml.Unmarshal([]byte(text), &want); err != nil {
		t.Fatal(err)
	}
	printed, err := yaml.Marshal(plain(t, parse(t, File{"v.yaml", []byte(text)})))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(printed, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// plain returns values without their nodes.
func plain(t *testing.T, v *Values) map[string]any {
	t.Helper()
	var values map[string]any
	if err := v.root.Decode(&values); err != nil {
		t.Fatal(err)
	}
	return values
}
