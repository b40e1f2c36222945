package consul

import (
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/usherproxy/usher/gateway"
)

// Config entries are read as lists: a single entry that does not exist is
// answered 404, on which nobody can wait
// (https://developer.hashicorp.com/consul/api-docs/config#list-configurations).
var (
	entriesKind = &kind{name: "ingress-gateway", path: "/v1/config/ingress-gateway", decode: decoding(decodeEntries)}
	meshKind    = &kind{name: "mesh", path: "/v1/config/mesh", decode: decoding(decodeMesh)}
	defaultKind = &kind{name: "proxy-defaults", path: "/v1/config/proxy-defaults", decode: decoding(decodeDefaults)}
)

// entries are the ingress-gateway entries by name.
type entries struct {
	byName map[string]*gateway.Entry
	// hidden says that Consul's ACLs left entries out.
	hidden bool
}

func decodeEntries(prev *entries, a answer) (*entries, error) {
	var list []*gateway.Entry
	if err := json.Unmarshal(a.body, &list); err != nil {
		return nil, fmt.Errorf("ingress-gateway entries: %w", err)
	}
	e := &entries{byName: make(map[string]*gateway.Entry, len(list)), hidden: a.filtered}
	for _, entry := range list {
		if prev != nil {
			entry = keep(prev.byName[entry.Name], entry)
		}
		e.byName[entry.Name] = entry
	}
	return e, nil
}

// keep gives prev when it equals next, so that what did not change keeps its
// pointer.
func keep[T any](prev, next *T) *T {
	if prev != nil && reflect.DeepEqual(prev, next) {
		return prev
	}
	return next
}

// mesh holds the mesh entry; nil when there is none.
type mesh struct {
	entry *gateway.Mesh
}

func decodeMesh(prev *mesh, a answer) (*mesh, error) {
	var list []struct {
		Name string
		gateway.Mesh
	}
	if err := json.Unmarshal(a.body, &list); err != nil {
		return nil, fmt.Errorf("mesh entry: %w", err)
	}
	m := &mesh{}
	if len(list) > 0 {
		m.entry = &list[0].Mesh
	}
	if prev != nil {
		m.entry = keep(prev.entry, m.entry)
	}
	return m, nil
}

// defaults are what proxy-defaults says: its opaque config, and Usher's own
// settings in it, with the memory of the last good ones.
type defaults struct {
	config   map[string]any
	layer    gateway.Layer
	problems []gateway.Problem
}

// The name of the one proxy-defaults entry that Consul allows.
const globalName = "global"

func decodeDefaults(prev *defaults, a answer) (*defaults, error) {
	var list []struct {
		Name   string
		Config map[string]any
	}
	if err := json.Unmarshal(a.body, &list); err != nil {
		return nil, fmt.Errorf("proxy-defaults entry: %w", err)
	}
	d := &defaults{}
	for _, entry := range list {
		if entry.Name == globalName {
			d.config = entry.Config
		}
	}
	var before gateway.Layer
	if prev != nil {
		before = prev.layer
	}
	d.layer, d.problems = before.Next(fmt.Sprintf("proxy-defaults %q", globalName), d.config[gateway.Key])
	return d, nil
}
