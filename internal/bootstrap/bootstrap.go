package bootstrap

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/internal/gateway"
)

// DefaultAdminAddr is where Envoy's admin interface listens when nobody says
// otherwise; it is also Consul's default.
const DefaultAdminAddr = "127.0.0.1:19000"

// tokenHeader is the gRPC metadata in which Consul's bootstraps send their ACL
// token.
const tokenHeader = "x-consul-token"

// Options say for whom a bootstrap is. Gateway and XDSAddr are needed; every
// other zero value is a default.
type Options struct {
	Gateway   string // the gateway's service name in Consul
	ServiceID string // of this instance; "" means Gateway
	NodeName  string // of the Consul node it is registered on; "" leaves it to Usher to find
	Namespace string // "" means default
	Partition string // "" means default

	// XDSAddr is Usher: host:port or http://host:port (plain text),
	// https://host:port, or unix://path.
	XDSAddr string
	// CACert holds the certificates, in PEM, that Usher's own is verified
	// with. An https address needs it and no other address takes it.
	CACert string
	// ServerName is the DNS name or IP address that Usher's certificate must
	// be for; "" means the host in XDSAddr. For https only.
	ServerName string
	// Token is the ACL token that Envoy shows to Usher; "" sends none. The
	// bootstrap holds it in clear.
	Token gateway.Secret

	AdminAddr string // ip:port of Envoy's admin interface; "" means DefaultAdminAddr
	// ReadyAddr is the ip:port of a listener that answers /ready as the admin
	// interface does, for Consul's health check; "" means no such listener.
	ReadyAddr string
	// SotW asks for the state-of-the-world form of ADS in place of the
	// incremental one.
	SotW bool
}

// Write writes the bootstrap as JSON: the same options give the same bytes.
// The error says which option is wrong.
func Write(w io.Writer, o Options) error {
	b, err := Make(o)
	if err != nil {
		return err
	}
	// protojson randomises its white space, json.Indent does not.
	loose, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(b)
	if err != nil {
		return fmt.Errorf("bootstrap of %s: %w", o.Gateway, err)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, loose, "", "  "); err != nil {
		return fmt.Errorf("bootstrap of %s: %w", o.Gateway, err)
	}
	out.WriteByte('\n')
	_, err = w.Write(out.Bytes())
	return err
}

// Make gives the bootstrap as a message that satisfies Envoy's validation
// rules. The error says which option is wrong.
func Make(o Options) (*bootstrapv3.Bootstrap, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	xds, err := xdsCluster(o)
	if err != nil {
		return nil, err
	}
	admin, err := socketAddress("admin", o.AdminAddr)
	if err != nil {
		return nil, err
	}
	b := &bootstrapv3.Bootstrap{
		Node:             node(o),
		Admin:            &bootstrapv3.Admin{Address: admin},
		DynamicResources: dynamicResources(o),
		StaticResources:  &bootstrapv3.Bootstrap_StaticResources{Clusters: []*clusterv3.Cluster{xds}},
		LayeredRuntime:   layeredRuntime(),
	}
	if o.ReadyAddr != "" {
		if err := addReady(b.StaticResources, admin, o.ReadyAddr); err != nil {
			return nil, err
		}
	}
	if err := b.ValidateAll(); err != nil {
		return nil, fmt.Errorf("bootstrap of %s: %w", o.Gateway, err)
	}
	return b, nil
}

func (o Options) withDefaults() Options {
	orElse := func(s *string, fallback string) {
		if *s == "" {
			*s = fallback
		}
	}
	orElse(&o.ServiceID, o.Gateway)
	orElse(&o.Namespace, "default")
	orElse(&o.Partition, "default")
	orElse(&o.AdminAddr, DefaultAdminAddr)
	return o
}

func (o Options) check() error {
	if o.Gateway == "" {
		return errors.New("the gateway has no name; give the service name that its instances have in Consul")
	}
	if strings.ContainsFunc(string(o.Token), func(r rune) bool { return r < ' ' || r > '~' }) {
		return errors.New("the ACL token has a character that no token has; give the secret ID alone, without a line end")
	}
	return nil
}

func node(o Options) *corev3.Node {
	metadata := map[string]*structpb.Value{
		"namespace": structpb.NewStringValue(o.Namespace),
		"partition": structpb.NewStringValue(o.Partition),
	}
	if o.NodeName != "" {
		metadata["node_name"] = structpb.NewStringValue(o.NodeName)
	}
	return &corev3.Node{
		Id:       o.ServiceID,
		Cluster:  o.Gateway,
		Metadata: &structpb.Struct{Fields: metadata},
	}
}

// dynamicResources makes Envoy wait for its first listeners and clusters
// without a limit: a gateway that came up before Usher did must not start to
// serve nothing.
func dynamicResources(o Options) *bootstrapv3.Bootstrap_DynamicResources {
	overADS := func() *corev3.ConfigSource {
		return &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
			InitialFetchTimeout:   durationpb.New(0),
			ResourceApiVersion:    corev3.ApiVersion_V3,
		}
	}
	api := corev3.ApiConfigSource_DELTA_GRPC
	if o.SotW {
		api = corev3.ApiConfigSource_GRPC
	}
	return &bootstrapv3.Bootstrap_DynamicResources{
		LdsConfig: overADS(),
		CdsConfig: overADS(),
		AdsConfig: &corev3.ApiConfigSource{
			ApiType:                   api,
			TransportApiVersion:       corev3.ApiVersion_V3,
			SetNodeOnFirstMessageOnly: o.SotW,
			GrpcServices:              []*corev3.GrpcService{adsService(o.Token)},
		},
	}
}

func adsService(token gateway.Secret) *corev3.GrpcService {
	s := &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
			EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: xdsClusterName},
		},
	}
	if token != "" {
		s.InitialMetadata = []*corev3.HeaderValue{{Key: tokenHeader, Value: string(token)}}
	}
	return s
}

// layeredRuntime keeps an expensive regular expression in a route from being
// accepted, with the limit that Consul sets.
func layeredRuntime() *bootstrapv3.LayeredRuntime {
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name: "base",
		LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: &structpb.Struct{
			Fields: map[string]*structpb.Value{
				"re2.max_program_size.error_level": structpb.NewNumberValue(1 << 20),
			},
		}},
	}}}
}

// socketAddress reads ip:port; what names the address in errors. The host
// localhost stands for 127.0.0.1, because Envoy does not resolve names here.
func socketAddress(what, addr string) (*corev3.Address, error) {
	host, port, err := splitHostPort(what, addr)
	if err != nil {
		return nil, err
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if net.ParseIP(host) == nil {
		return nil, fmt.Errorf("%s address %q: %q is not an IP address; use ip:port, such as 127.0.0.1:%d", what, addr, host, port)
	}
	return tcpAddress(host, port), nil
}

func tcpAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}
