package bootstrap

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// xdsClusterName is what Consul's bootstraps call the cluster of their xDS
// server.
const xdsClusterName = "local_agent"

// server is where Usher listens: a host with a port, or the path of a Unix
// socket.
type server struct {
	host string // an IP address or DNS name; empty with path
	port uint32
	path string
	tls  bool
}

// parseServer reads Options.XDSAddr.
func parseServer(addr string) (server, error) {
	scheme, rest, found := strings.Cut(addr, "://")
	if !found {
		scheme, rest = "http", addr
	}
	switch scheme {
	case "unix":
		if rest == "" {
			return server{}, fmt.Errorf("xDS address %q: the path is missing; use unix:///path/to/socket", addr)
		}
		return server{path: rest}, nil
	case "http", "https":
		host, port, err := splitHostPort("xDS", rest)
		if err != nil {
			return server{}, err
		}
		if port == 0 {
			return server{}, fmt.Errorf("xDS address %q: the port is 0; use the port that Usher listens on", addr)
		}
		return server{host: host, port: port, tls: scheme == "https"}, nil
	}
	return server{}, fmt.Errorf("xDS address %q: scheme %q is unknown; use host:port, https://host:port or unix:///path", addr, scheme)
}

// splitHostPort reads host:port; what names the address in errors.
func splitHostPort(what, addr string) (string, uint32, error) {
	bad := func(why string) (string, uint32, error) {
		return "", 0, fmt.Errorf("%s address %q: %s; use host:port", what, addr, why)
	}
	host, portText, err := net.SplitHostPort(addr)
	if wrong := (*net.AddrError)(nil); errors.As(err, &wrong) {
		return bad(wrong.Err)
	}
	if host == "" || strings.ContainsAny(host, "/ @?#") {
		return bad("the host is missing or not a host")
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return bad(fmt.Sprintf("%q is not a port", portText))
	}
	return host, uint32(port), nil
}

// xdsCluster is the cluster of Usher. TCP keepalives notice within a minute
// that its host is gone; otherwise a stream without traffic would hang on a
// dead connection.
func xdsCluster(o Options) (*clusterv3.Cluster, error) {
	s, err := parseServer(o.XDSAddr)
	if err != nil {
		return nil, err
	}
	http2, err := pack(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
				},
			},
		},
	})
	if err != nil {
		return nil, err
	}
	c := staticCluster(xdsClusterName, s.address())
	c.ConnectTimeout = durationpb.New(time.Second)
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2}
	if s.host != "" {
		c.UpstreamConnectionOptions = &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveTime:     wrapperspb.UInt32(30),
			KeepaliveInterval: wrapperspb.UInt32(5),
			KeepaliveProbes:   wrapperspb.UInt32(3),
		}}
		if net.ParseIP(s.host) == nil {
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
			// Envoy's default takes IPv6 addresses alone where there are some,
			// and localhost has one that Usher does not listen on.
			c.DnsLookupFamily = clusterv3.Cluster_ALL
		}
	}
	c.TransportSocket, err = transportSocket(o, s)
	return c, err
}

func (s server) address() *corev3.Address {
	if s.path != "" {
		return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: s.path}}}
	}
	return tcpAddress(s.host, s.port)
}

func staticCluster(name string, addr *corev3.Address) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{
				LbEndpoints: []*endpointv3.LbEndpoint{{
					HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: addr}},
				}},
			}},
		},
	}
}

// transportSocket is nil for a server without TLS. With TLS, Envoy verifies
// the name in Usher's certificate, which Consul's own bootstraps do not: the
// stream that it guards hands out a private key.
func transportSocket(o Options, s server) (*corev3.TransportSocket, error) {
	if !s.tls {
		if o.CACert != "" || o.ServerName != "" {
			return nil, fmt.Errorf("xDS address %q: a CA certificate or server name is given, but the address has no TLS; use https://host:port", o.XDSAddr)
		}
		return nil, nil
	}
	if err := checkCertificates(o.CACert); err != nil {
		return nil, fmt.Errorf("CA certificate for %s: %w", o.XDSAddr, err)
	}
	name := o.ServerName
	if name == "" {
		name = s.host
	}
	config, err := pack(upstreamTLS(o.CACert, name))
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config},
	}, nil
}

func upstreamTLS(caCert, name string) *tlsv3.UpstreamTlsContext {
	san := &tlsv3.SubjectAltNameMatcher{
		SanType: tlsv3.SubjectAltNameMatcher_DNS,
		Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}},
	}
	sni := name
	if net.ParseIP(name) != nil {
		san.SanType = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
		sni = "" // RFC 6066 section 3 allows no IP address there
	}
	return &tlsv3.UpstreamTlsContext{
		Sni: sni,
		CommonTlsContext: &tlsv3.CommonTlsContext{
			AlpnProtocols: []string{"h2"},
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{
				ValidationContext: &tlsv3.CertificateValidationContext{
					TrustedCa:                 &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: caCert}},
					MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san},
				},
			},
		},
	}
}

// checkCertificates says what keeps text from being PEM certificates. A key
// among them is refused: the bootstrap would spread it.
func checkCertificates(text string) error {
	rest := []byte(text)
	for n := 0; ; n++ {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil && n > 0 {
			return nil
		}
		if block == nil {
			return errors.New("there is none in PEM; an https address needs one")
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("PEM block %d is a %s; give certificates only", n+1, block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("PEM block %d: %w", n+1, err)
		}
	}
}

// pack validates a message and wraps it for a field that takes any message.
func pack(m interface {
	proto.Message
	ValidateAll() error
},
) (*anypb.Any, error) {
	if err := m.ValidateAll(); err != nil {
		return nil, err
	}
	return anypb.New(m)
}
