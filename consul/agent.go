package consul

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// agentKind reads what the agent says of itself, to a token that has agent:read
// (https://developer.hashicorp.com/consul/api-docs/agent#read-configuration). It
// changes when the agent is restarted, and Consul cannot tell when.
var agentType = &queryType{
	name: "agent", path: "/v1/agent/self",
	local: true, optional: true, interval: time.Minute,
	decode: decodeAs(decodeAgent),
}

// agent is what of its configuration concerns gateways. The zero value stands
// for an agent that does not tell.
type agent struct {
	// dualStack says that its bind address is an IPv6 address. Consul before
	// 1.22 does not tell, and does not care.
	dualStack bool
	// domain and altDomain are what it answers DNS for, as it writes them: with
	// the dot at the end by default. They are empty where it does not tell.
	domain, altDomain string
	// grpcPort and grpcTLSPort are its gRPC ports; 0 where it has none or does not
	// tell.
	grpcPort, grpcTLSPort int
}

// decodeAgent keeps what is known where the agent no longer tells it.
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
