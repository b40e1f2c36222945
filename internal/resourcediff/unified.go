package resourcediff

import (
	"bytes"
	"fmt"
	"io"

	"github.com/aymanbagabas/go-udiff"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"go.yaml.in/yaml/v3"
)

// comparedTypes are the types that Compare and Unified compare, and their names. Secrets are in what refers to them.
var comparedTypes = []struct{ url, name string }{
	{resource.ListenerType, "listener"},
	{resource.RouteType, "route"},
	{resource.ClusterType, "cluster"},
	{resource.EndpointType, "endpoint"},
}

// Unified writes what differs between two sets of resources in canonical form, as diff -u of YAML does, one resource after
// the other. It reports whether anything differs.
func Unified(w io.Writer, beforeName, afterName string, before, after Resources) (differs bool, err error) {
	for _, t := range comparedTypes {
		for _, name := range union(before[t.url], after[t.url]) {
			a, err := yamlOf(before[t.url], name)
			if err != nil {
				return differs, err
			}
			b, err := yamlOf(after[t.url], name)
			if err != nil {
				return differs, err
			}
			if a == b {
				continue
			}
			differs = true
			label := func(from string) string { return fmt.Sprintf("%s/%s/%s", from, t.name, name) }
			if _, err := io.WriteString(w, udiff.Unified(label(beforeName), label(afterName), a, b)); err != nil {
				return differs, err
			}
		}
	}
	return differs, nil
}

// Without returns the resources without those of a type.
func (r Resources) Without(typeURL string) Resources {
	out := Resources{}
	for url, byName := range r {
		if url != typeURL {
			out[url] = byName
		}
	}
	return out
}

// yamlOf returns a resource as YAML with its keys in order; "" if it is not there.
func yamlOf(byName map[string]Tree, name string) (string, error) {
	t, there := byName[name]
	if !there {
		return "", nil
	}
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	err := encoder.Encode(t)
	return out.String(), err
}
