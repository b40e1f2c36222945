package resourcediff

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
)

// settleTime is how long nothing more must come before what has come counts as everything.
const settleTime = 300 * time.Millisecond

// Node is what an Envoy says about itself. Empty metadata is left out.
func Node(id, cluster string, envoy *typev3.SemanticVersion, metadata map[string]string) *corev3.Node {
	fields := map[string]*structpb.Value{}
	for key, value := range metadata {
		if value != "" {
			fields[key] = structpb.NewStringValue(value)
		}
	}
	return &corev3.Node{
		Id: id, Cluster: cluster, UserAgentName: "envoy", Metadata: &structpb.Struct{Fields: fields},
		UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{Version: envoy}},
	}
}

// Fetch returns what an Envoy gets from an xDS server, once it has everything that its resources refer to. isEnough says
// whether that is all: a server may begin with a part.
func Fetch(ctx context.Context, conn grpc.ClientConnInterface, node *corev3.Node, isEnough func(Resources) bool) (Resources, error) {
	// The server does not get the deadline: its answer to that would hide what is missing.
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	views, ended := make(chan View), make(chan error, 1)
	defer func() {
		cancel()
		for range ended { // until the stream has ended
		}
	}()
	go func() {
		defer close(ended)
		ended <- Stream(streamCtx, conn, node, func(v View) {
			select {
			case views <- v:
			case <-streamCtx.Done():
			}
		})
	}()
	last := View{Missing: "any answer"}
	var settled <-chan time.Time
	for {
		select {
		case last = <-views:
			settled = nil
			if last.Missing == "" && isEnough(last.Resources) {
				settled = time.After(settleTime)
			}
		case <-settled:
			return last.Resources, nil
		case err := <-ended:
			return nil, err
		case <-ctx.Done():
			if last.Missing != "" {
				return nil, errors.New("the xDS server has not sent everything; missing: " + last.Missing)
			}
			return nil, fmt.Errorf("the xDS server has sent %d listeners only", len(last.Resources[WildcardTypes[1]]))
		}
	}
}
