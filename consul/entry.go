package consul

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// These types read config entries as lists. For a single entry that does not exist,
// Consul answers 404, and a query cannot block on that
// (https://developer.hashicorp.com/consul/api-docs/config#list-configurations).
var (
	entriesType       = &queryType{name: "ingress-gateway", path: "/v1/config/ingress-gateway", decode: decodeAs(decodeEntries)}
	meshType          = &queryType{name: "mesh", path: "/v1/config/mesh", decode: decodeAs(decodeMesh)}
	proxyDefaultsType = &queryType{name: "proxy-defaults", path: "/v1/config/proxy-defaults", decode: decodeAs(decodeProxyDefaults)}
)

// entries are the ingress-gateway entries by name.
type entries struct {
	byName map[string]*gateway.Entry
	hidden bool // Consul's ACLs left entries out
}

func decodeEntries(prev *entries, a answer) (*entries, error) {
	list, err := decodeList[gateway.Entry]("ingress-gateway entries", a)
	if err != nil {
		return nil, err
	}
	e := &entries{byName: make(map[string]*gateway.Entry, len(list)), hidden: a.filtered}
	for _, entry := range list {
		if entry.Name == "" {
			return nil, errors.New("ingress-gateway entries: one has no name")
		}
		if prev != nil {
			entry = reuse(prev.byName[entry.Name], entry)
		}
		e.byName[entry.Name] = entry
	}
	return e, nil
}

// decodeList decodes a list. Consul writes null neither for a list nor as an
// element. So an answer with null is not Consul's, and decodeList refuses it.
func decodeList[T any](what string, a answer) ([]*T, error) {
	var list []*T
	if err := json.Unmarshal(a.body, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if list == nil || slices.Contains(list, nil) {
		return nil, fmt.Errorf("%s: unexpected null in the answer", what)
	}
	return list, nil
}

// reuse returns prev if it equals next, so that parts that did not change keep their
// pointers.
func reuse[T any](prev, next *T) *T {
	if prev != nil && reflect.DeepEqual(prev, next) {
		return prev
	}
	return next
}

// mesh holds the mesh entry; nil if there is none.
type mesh struct {
	entry *gateway.Mesh
}

func decodeMesh(prev *mesh, a answer) (*mesh, error) {
	list, err := decodeList[gateway.Mesh]("mesh entry", a)
	if err != nil {
		return nil, err
	}
	m := &mesh{}
	if len(list) > 0 {
		m.entry = list[0]
	}
	if prev != nil {
		m.entry = reuse(prev.entry, m.entry)
	}
	return m, nil
}

// proxyDefaults is the content of proxy-defaults: its opaque config, and the last good
// settings of Usher in it.
type proxyDefaults struct {
	config   map[string]any
	layer    settings.Layer
	problems []problem.Problem
}

// globalName is the name of the one proxy-defaults entry that Consul allows.
const globalName = "global"

func decodeProxyDefaults(prev *proxyDefaults, a answer) (*proxyDefaults, error) {
	list, err := decodeList[struct {
		Name   string
		Config map[string]any
	}]("proxy-defaults entry", a)
	if err != nil {
		return nil, err
	}
	d := &proxyDefaults{}
	for _, entry := range list {
		switch entry.Name {
		case globalName:
			d.config = entry.Config
		case "":
			return nil, errors.New("proxy-defaults entry: it has no name")
		}
	}
	var before settings.Layer
	if prev != nil {
		before = prev.layer
	}
	d.layer, d.problems = before.Update(fmt.Sprintf("proxy-defaults %q", globalName), d.config[settings.Key])
	return d, nil
}
