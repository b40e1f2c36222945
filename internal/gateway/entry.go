package gateway

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Entry is an ingress-gateway config entry
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/ingress-gateway).
type Entry struct {
	Name      string
	TLS       TLS
	Defaults  *Limits
	Listeners []Listener
}

// Listener is one listener of the entry. Ports are unique within an entry.
type Listener struct {
	Port     int
	Protocol string // tcp, http, http2 or grpc; "" means tcp
	TLS      *TLS
	Services []ListenerService
}

// The protocols of a listener.
const (
	ProtocolTCP   = "tcp"
	ProtocolHTTP  = "http"
	ProtocolHTTP2 = "http2"
	ProtocolGRPC  = "grpc"
)

// NormalProtocol returns a listener's protocol in lower case; "" means tcp.
func NormalProtocol(protocol string) string { return strings.ToLower(cmp.Or(protocol, ProtocolTCP)) }

// ListenerService is one service of a listener; Name "*" stands for all.
type ListenerService struct {
	Name, Namespace, Partition      string
	Hosts                           []string
	TLS                             *ServiceTLS
	RequestHeaders, ResponseHeaders *HeaderModifiers
	Limits
}

// TLS is how listeners speak TLS to clients.
type TLS struct {
	Enabled                      bool
	SDS                          *SDS
	TLSMinVersion, TLSMaxVersion string
	CipherSuites                 []string
}

// ServiceTLS is the TLS setting of one service of a listener.
type ServiceTLS struct{ SDS *SDS }

// SDS names a certificate that Envoy gets from your own SDS server.
type SDS struct{ ClusterName, CertResource string }

// Override returns the settings of a listener: its own, one by one, over the gateway's. A listener cannot switch off
// the gateway's TLS.
func (t TLS) Override(listener *TLS) TLS {
	if listener == nil {
		listener = &TLS{}
	}
	t.Enabled = t.Enabled || listener.Enabled
	t.SDS = t.SDS.Override(listener.SDS)
	t.TLSMinVersion = cmp.Or(listener.TLSMinVersion, t.TLSMinVersion)
	t.TLSMaxVersion = cmp.Or(listener.TLSMaxVersion, t.TLSMaxVersion)
	if len(listener.CipherSuites) > 0 {
		t.CipherSuites = listener.CipherSuites
	}
	return t
}

// Override returns the setting with what over sets in its place; nil if both are empty.
func (s *SDS) Override(over *SDS) *SDS {
	var out SDS
	if s != nil {
		out = *s
	}
	if over != nil {
		out.ClusterName = cmp.Or(over.ClusterName, out.ClusterName)
		out.CertResource = cmp.Or(over.CertResource, out.CertResource)
	}
	if out == (SDS{}) {
		return nil
	}
	return &out
}

// Limits bound what goes to a service. Consul writes 0 where nothing was set, so nil and 0 both mean "not set".
type Limits struct {
	MaxConnections, MaxPendingRequests, MaxConcurrentRequests *uint32
	PassiveHealthCheck                                        *PassiveHealthCheck
}

// PassiveHealthCheck ejects instances that fail
// (https://developer.hashicorp.com/consul/docs/reference/config-entry/ingress-gateway#listeners-services-passivehealthcheck).
type PassiveHealthCheck struct {
	Interval                           Duration
	MaxFailures                        uint32
	Consecutive5xx                     *uint32 // in place of MaxFailures; since Consul 2.0
	ConsecutiveGatewayFailure          *uint32 // answers 502, 503 and 504 only; since Consul 2.0
	EnforcingConsecutive5xx            *uint32
	EnforcingConsecutiveGatewayFailure *uint32 // since Consul 2.0
	MaxEjectionPercent                 *uint32
	BaseEjectionTime                   *Duration
}

// HeaderModifiers change the headers of a request or a response. Add comes before Set.
type HeaderModifiers struct {
	Add, Set map[string]string
	Remove   []string
}

// Mesh is the part of the mesh config entry that an ingress gateway follows.
type Mesh struct {
	ValidateClusters bool
	TLS              *MeshTLS
}

// MeshTLS holds the TLS parameters of connections inside the mesh.
type MeshTLS struct{ Outgoing *TLSParameters }

// TLSParameters bound the TLS versions and ciphers of a connection.
type TLSParameters struct {
	TLSMinVersion, TLSMaxVersion string
	CipherSuites                 []string
	ECDHCurves                   []string // Envoy's names, such as X25519MLKEM768; since Consul 2.1
}

// Duration is a time span that Consul's JSON writes as "1m30s" in some places and as a number of nanoseconds in others.
type Duration time.Duration

// UnmarshalJSON accepts both of Consul's forms.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		var ns int64
		if err := json.Unmarshal(b, &ns); err != nil {
			return fmt.Errorf("duration %s: neither a string such as \"5s\" nor a number of nanoseconds", b)
		}
		*d = Duration(ns)
		return nil
	}
	span, err := time.ParseDuration(cmp.Or(s, "0"))
	if err != nil {
		return fmt.Errorf("duration %q: %w", s, err)
	}
	*d = Duration(span)
	return nil
}
