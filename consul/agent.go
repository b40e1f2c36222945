package consul

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// agentType reads the agent's configuration, with a token that has agent:read
// (https://developer.hashicorp.com/consul/api-docs/agent#read-configuration). It
// changes with a restart of the agent. The query cannot block.
var agentType = &queryType{
	name: "agent", path: "/v1/agent/self",
	local: true, optional: true, interval: time.Minute,
	decode: decodeAs(decodeAgent),
}

// agent is the part of an agent's configuration that concerns gateways. The zero value
// is that of an agent that refuses to return it.
type agent struct {
	// dualStack is true if its bind address is an IPv6 address. Consul before 1.22
	// neither returns that nor takes it into account.
	dualStack bool
	// domain and altDomain are its DNS domains as it writes them, by default with a dot at
	// the end. They are empty if unknown.
	domain, altDomain string
	// grpcPort and grpcTLSPort are its gRPC ports; 0 if there is none, or if unknown.
	grpcPort, grpcTLSPort int
}

// decodeAgent keeps the last value if the agent no longer returns it.
func decodeAgent(prev *agent, a answer) (*agent, error) {
	if a.refused {
		return cmp.Or(prev, &agent{}), nil
	}
	var out struct {
		Config      *struct{ BindAddr string }
		DebugConfig struct{ DNSDomain, DNSAltDomain string }
		XDS         struct {
			Ports struct{ Plaintext, TLS int }
		}
	}
	if err := json.Unmarshal(a.body, &out); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if out.Config == nil {
		return nil, errors.New("agent: the answer has no configuration")
	}
	ip, err := netip.ParseAddr(out.Config.BindAddr)
	return &agent{
		dualStack:   err == nil && !ip.Unmap().Is4(),
		domain:      out.DebugConfig.DNSDomain,
		altDomain:   out.DebugConfig.DNSAltDomain,
		grpcPort:    max(0, out.XDS.Ports.Plaintext),
		grpcTLSPort: max(0, out.XDS.Ports.TLS),
	}, nil
}
