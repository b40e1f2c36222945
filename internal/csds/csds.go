// Package csds serves Envoy's client status discovery service: what each connected Envoy has of what it is to have.
//
//	xds.Server ──Clients──> Server ──ClientStatusResponse──> a client of envoy.service.status.v3
//
// Without contents, an answer has one GenericXdsConfig for each type that an Envoy has asked for, with no name: the worst
// status of its resources, and a version of all of them. With contents, it has one for each resource, with what must not be
// printed replaced.
// https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/status/v3/csds.proto
package csds

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/usherproxy/usher/internal/resourcediff"
	"github.com/usherproxy/usher/xds"
)

// maxAnswer is how many bytes an answer may have. Each Envoy of a large gateway has megabytes of resources.
const maxAnswer = 64 << 20

// Server implements ClientStatusDiscoveryService. Any goroutine may call its methods.
type Server struct {
	statusv3.UnimplementedClientStatusDiscoveryServiceServer
	// Clients returns the Envoys that are connected.
	Clients func() []*xds.Client
}

// StreamClientStatus answers each request.
func (s Server) StreamClientStatus(stream statusv3.ClientStatusDiscoveryService_StreamClientStatusServer) error {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		answer, err := s.FetchClientStatus(stream.Context(), request)
		if err != nil {
			return err
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

// FetchClientStatus answers a request: with the Envoys that one of its matchers matches, or with all if it has none.
func (s Server) FetchClientStatus(_ context.Context, r *statusv3.ClientStatusRequest) (*statusv3.ClientStatusResponse, error) {
	matches, err := matcherOf(r.GetNodeMatchers())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	clients := slices.DeleteFunc(s.Clients(), func(c *xds.Client) bool { return !matches(c.Node) })
	slices.SortFunc(clients, func(a, b *xds.Client) int {
		return strings.Compare(a.Node.Cluster+"\x00"+a.Node.ID, b.Node.Cluster+"\x00"+b.Node.ID)
	})
	a := answer{contents: !r.GetExcludeResourceContents(), redacted: map[*xds.Resource]*anypb.Any{}}
	response := &statusv3.ClientStatusResponse{}
	for _, c := range clients {
		config, err := a.client(c)
		if err != nil {
			return nil, err
		}
		response.Config = append(response.Config, config)
	}
	return response, nil
}

// answer makes one answer.
type answer struct {
	contents bool
	redacted map[*xds.Resource]*anypb.Any // Envoys share resources
	size     int                          // in bytes, of what the answer has so far
}

func (a *answer) client(c *xds.Client) (*statusv3.ClientConfig, error) {
	n := c.Node
	config := &statusv3.ClientConfig{Node: resourcediff.Node(n.ID, n.Cluster,
		&typev3.SemanticVersion{MajorNumber: n.Major, MinorNumber: n.Minor, Patch: n.Patch}, n.Metadata)}
	for t, state := range c.Types {
		if state.Sync == xds.NotRequested {
			continue
		}
		of := clientType{xds.Type(t), state}
		if !a.contents || state.Current == nil {
			config.GenericXdsConfigs = append(config.GenericXdsConfigs, of.summary())
			continue
		}
		for _, r := range state.Current.All() {
			generic := of.resource(r)
			if err := a.addContent(generic, r); err != nil {
				return nil, err
			}
			config.GenericXdsConfigs = append(config.GenericXdsConfigs, generic)
		}
	}
	return config, nil
}

// addContent adds a resource to its status.
func (a *answer) addContent(generic *statusv3.ClientConfig_GenericXdsConfig, r *xds.Resource) (err error) {
	content, known := a.redacted[r]
	if !known {
		body, err := r.Body()
		if err != nil {
			return err
		}
		if content, err = resourcediff.RedactMessage(body); err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		a.redacted[r] = content
	}
	generic.XdsConfig = content
	if a.size += proto.Size(generic); a.size > maxAnswer {
		return status.Errorf(codes.ResourceExhausted,
			"the answer would have more than %d MiB; name Envoys in node_matchers, or set exclude_resource_contents", maxAnswer>>20)
	}
	return nil
}

// clientType is what an Envoy has of a type.
type clientType struct {
	xds.Type
	xds.ClientType
}

// statuses are those of a type.
var statuses = [...]statusv3.ConfigStatus{
	xds.Pending: statusv3.ConfigStatus_NOT_SENT, xds.Stale: statusv3.ConfigStatus_STALE,
	xds.Waiting: statusv3.ConfigStatus_NOT_SENT,
	xds.Refused: statusv3.ConfigStatus_ERROR, xds.Synced: statusv3.ConfigStatus_SYNCED,
}

// summary returns the status of all resources of the type. Its version is that of what the Envoy has accepted.
func (t clientType) summary() *statusv3.ClientConfig_GenericXdsConfig {
	generic := t.generic(statuses[t.Sync])
	if t.Accepted != nil {
		generic.VersionInfo = t.Accepted.Version()
	}
	return generic
}

// resource returns the status of a resource that the Envoy is to have. Its version is that of this resource, whether the
// Envoy has it or not.
func (t clientType) resource(r *xds.Resource) *statusv3.ClientConfig_GenericXdsConfig {
	generic := t.generic(statuses[t.SyncOf(r.Name())])
	generic.Name, generic.VersionInfo = r.Name(), r.Version()
	return generic
}

func (t clientType) generic(is statusv3.ConfigStatus) *statusv3.ClientConfig_GenericXdsConfig {
	generic := &statusv3.ClientConfig_GenericXdsConfig{TypeUrl: t.URL(), ConfigStatus: is, LastUpdated: timestamppb.New(t.Since)}
	if is == statusv3.ConfigStatus_ERROR {
		generic.ErrorState = &adminv3.UpdateFailureState{
			LastUpdateAttempt: generic.LastUpdated, Details: t.Rejection.Message, VersionInfo: t.Rejection.Version,
		}
	}
	return generic
}
