package consul

import (
	"cmp"
	"errors"
	"net/netip"
	"time"
)

// agentType reads the agent's configuration, with a token that has agent:read
// (https://developer.hashicorp.com/consul/api-docs/agent#read-configuration). It changes with a restart of the agent.
// The query cannot block.
var agentType = &queryType{
	name: "agent", path: "/v1/agent/self",
	local: true, optional: true, interval: time.Minute,
	decode: decodeJSON("agent", decodeAgent),
}

// agent is the part of an agent's configuration that concerns gateways. The zero value is that of an agent that refuses
// to return it.
type agent struct {
	// dualStack is true if its bind address is an IPv6 address. Consul before 1.22 neither returns nor uses that.
	dualStack bool
	// domain and altDomain are its DNS domains as it writes them, by default with a dot at the end; empty if unknown.
	domain, altDomain string
	// grpcPort and grpcTLSPort are its gRPC ports; 0 if there is none, or if unknown.
	grpcPort, grpcTLSPort int
}

type agentBody struct {
	Config      *struct{ BindAddr string }
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
		return nil, errors.New("the answer has no configuration")
	}
	ip, err := netip.ParseAddr(body.Config.BindAddr)
	return &agent{
		dualStack:   err == nil && !ip.Unmap().Is4(),
		domain:      body.DebugConfig.DNSDomain,
		altDomain:   body.DebugConfig.DNSAltDomain,
		grpcPort:    max(0, body.XDS.Ports.Plaintext),
		grpcTLSPort: max(0, body.XDS.Ports.TLS),
	}, nil
}
