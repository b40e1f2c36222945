package consul

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// agentType reads the agent's configuration, with a token that has agent:read
// (https://developer.hashicorp.com/consul/api-docs/agent#read-configuration). It changes with a restart of the agent.
// The query cannot block.
var agentType = &queryType{
	name: "agent", path: "/v1/agent/self", local: true, optional: true, interval: time.Minute,
	decode: decodeJSON("agent", decodeAgent),
}

// agent is what gateways need of an agent's configuration; the zero value if the agent refuses to return it.
type agent struct {
	// dualStack is true if its bind address is an IPv6 address. Consul before 1.22 neither returns nor uses that.
	dualStack             bool
	major                 int    // of its version: 1 or 2; 0 if unknown
	domain, altDomain     string // its DNS domains, by default with a dot at the end; empty if unknown
	grpcPort, grpcTLSPort int    // 0 if there is none, or if unknown
}

type agentBody struct {
	Config      *struct{ BindAddr, Version string }
	DebugConfig struct{ DNSDomain, DNSAltDomain string }
	XDS         struct {
		Ports struct{ Plaintext, TLS int }
	}
}

// decodeAgent keeps the last value if the agent no longer returns it.
func decodeAgent(prev *agent, body agentBody, r response) (*agent, error) {
	if r.refused {
		return cmp.Or(prev, &agent{}), nil
	}
	if body.Config == nil {
		return nil, unexpected("it has no configuration")
	}
	ip, err := netip.ParseAddr(body.Config.BindAddr)
	major, _, _ := strings.Cut(body.Config.Version, ".")
	number, _ := strconv.Atoi(major)
	return &agent{
		dualStack:   err == nil && !ip.Unmap().Is4(),
		major:       number,
		domain:      body.DebugConfig.DNSDomain,
		altDomain:   body.DebugConfig.DNSAltDomain,
		grpcPort:    max(0, body.XDS.Ports.Plaintext),
		grpcTLSPort: max(0, body.XDS.Ports.TLS),
	}, nil
}

// These types read config entries as lists. For a single entry that does not exist, Consul answers 404, and a query
// cannot block on that (https://developer.hashicorp.com/consul/api-docs/config#list-configurations).
var (
	entriesType       = &queryType{name: "ingress-gateway", path: "/v1/config/ingress-gateway", needs: "service:read on its gateways", decode: decodeList("ingress-gateway entries", decodeEntries)}
	meshType          = &queryType{name: "mesh", path: "/v1/config/mesh", decode: decodeList("mesh entry", decodeMesh)}
	proxyDefaultsType = &queryType{name: "proxy-defaults", path: "/v1/config/proxy-defaults", decode: decodeList("proxy-defaults entry", decodeProxyDefaults)}
)

// entries are the ingress-gateway entries by name.
type entries struct {
	byName   map[string]*gateway.Entry
	unknown  map[string][]string // the fields that Usher does not know, by the name of the entry
	filtered bool                // Consul's ACLs left entries out
}

func decodeEntries(prev *entries, list []*gateway.Entry, r response) (*entries, error) {
	e := &entries{byName: make(map[string]*gateway.Entry, len(list)), unknown: map[string][]string{}, filtered: r.filtered}
	bodies := elements(r.body)
	for i, entry := range list {
		if entry.Name == "" {
			return nil, unexpected("an entry has no name")
		}
		if prev != nil {
			entry = reuse(prev.byName[entry.Name], entry)
		}
		e.byName[entry.Name] = entry
		e.unknown[entry.Name] = unknownFields[gateway.Entry](bodies[i], envelope)
	}
	return e, nil
}

// mesh holds the mesh entry; nil if there is none.
type mesh struct {
	entry   *gateway.Mesh
	unknown []string // the fields that Usher does not know
}

func decodeMesh(_ *mesh, list []*gateway.Mesh, r response) (*mesh, error) {
	if len(list) == 0 {
		return &mesh{}, nil
	}
	return &mesh{entry: list[0], unknown: unknownFields[gateway.Mesh](elements(r.body)[0], meshOthers)}, nil
}

// proxyDefaults is the content of proxy-defaults: its opaque config, and the last valid settings of Usher in it.
type proxyDefaults struct {
	config   map[string]any
	layer    settings.Layer
	problems []problem.Problem
	unknown  []string // the fields that Usher does not know
}

type proxyDefaultsEntry struct {
	Name   string
	Config map[string]any
}

func decodeProxyDefaults(prev *proxyDefaults, list []*proxyDefaultsEntry, r response) (*proxyDefaults, error) {
	const globalName = "global" // the one entry that Consul allows
	d := &proxyDefaults{}
	for i, entry := range list {
		switch entry.Name {
		case globalName:
			d.config = entry.Config
			d.unknown = unknownFields[proxyDefaultsEntry](elements(r.body)[i], proxyDefaultsOthers)
		case "":
			return nil, unexpected("the entry has no name")
		}
	}
	where := fmt.Sprintf("proxy-defaults %q", globalName)
	d.layer, d.problems = cmp.Or(prev, d).layer.Update(where, d.config[settings.Key])
	d.problems = append(d.problems, settings.CheckKeys(where+": Config", d.config, nil)...)
	return d, nil
}
