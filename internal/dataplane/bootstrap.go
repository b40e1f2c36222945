package dataplane

import (
	"cmp"
	"context"
	"strings"

	"github.com/hashicorp/consul/proto-public/pbdataplane"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/xds"
)

// bootstrapKey is the key of a service's Proxy.Config with the template that consul-dataplane makes Envoy's bootstrap
// from. consul-dataplane reads it with any capitals.
const bootstrapKey = "envoy_bootstrap_json_tpl"

// withBootstrap changes the answer to GetEnvoyBootstrapParams: a gateway without a template gets that of the options.
// If it is not known whose answer it is, it stays as it is: the gateway then starts with Consul's bootstrap, which works.
func (s *Server) withBootstrap(c *call, f frame) (frame, error) {
	var r pbdataplane.GetEnvoyBootstrapParamsResponse
	if err := proto.Unmarshal(f, &r); err != nil {
		return nil, status.Error(codes.Internal, "consul's answer to GetEnvoyBootstrapParams cannot be decoded; check that the address is Consul's gRPC port")
	}
	for key := range r.GetConfig().GetFields() {
		if strings.EqualFold(key, bootstrapKey) {
			return f, nil
		}
	}
	ctx, cancel := context.WithTimeout(c.ctx, askAgainTime) // consul-dataplane waits
	defer cancel()
	if is, err := s.kinds.isGateway(ctx, c.conn.network, nodeOfParams(&r)); err != nil || !is {
		return f, nil
	}
	if r.Config.GetFields() == nil {
		r.Config = &structpb.Struct{Fields: map[string]*structpb.Value{}}
	}
	r.Config.Fields[bootstrapKey] = structpb.NewStringValue(s.options.BootstrapTemplate)
	return proto.Marshal(&r)
}

// nodeOfParams returns a node of the service. It has no name of a node in Consul: all instances of a service are of one
// kind, so the question is about the service.
func nodeOfParams(r *pbdataplane.GetEnvoyBootstrapParamsResponse) xds.Node {
	cluster := cmp.Or(r.GetIdentity(), r.GetService()) //nolint:staticcheck // Consul before 1.17 has no identity
	return xds.Node{
		ID: cluster, Cluster: cluster,
		Metadata: map[string]string{
			"namespace": cmp.Or(r.GetNamespace(), "default"), "partition": cmp.Or(r.GetPartition(), "default"),
		},
	}
}
