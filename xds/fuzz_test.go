package xds_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/xds"
)

// FuzzRequests sends encoded requests on a stream of either protocol: each is a byte with its length, and its bytes. No
// sequence makes the server panic, and the stream ends after the last one.
func FuzzRequests(f *testing.F) {
	node := &corev3.Node{Id: "a", Cluster: "edge", Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{"node_name": structpb.NewStringValue("n")}}}
	nack := &statuspb.Status{Code: 3, Message: "no\nthanks"}
	f.Add(true, frames(f,
		&discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: cds, ResourceNamesSubscribe: []string{"*"}},
		&discoveryv3.DeltaDiscoveryRequest{TypeUrl: cds, ResponseNonce: "1"},
		&discoveryv3.DeltaDiscoveryRequest{TypeUrl: lds, ResponseNonce: "9", ErrorDetail: nack},
		&discoveryv3.DeltaDiscoveryRequest{TypeUrl: eds, ResourceNamesSubscribe: []string{"web", "web", ""}, ResourceNamesUnsubscribe: []string{"*"}, InitialResourceVersions: map[string]string{"web": "x"}},
		&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/x"},
	))
	f.Add(false, frames(f,
		&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: cds},
		&discoveryv3.DiscoveryRequest{TypeUrl: cds, ResponseNonce: "1", VersionInfo: "x"},
		&discoveryv3.DiscoveryRequest{TypeUrl: rds, ResourceNames: []string{"a", "a", "*"}, ErrorDetail: nack},
		&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "b"}, TypeUrl: sds},
	))
	f.Add(true, frames(f, &discoveryv3.DeltaDiscoveryRequest{Node: node}))
	f.Add(false, frames(f, &discoveryv3.DiscoveryRequest{TypeUrl: lds}))
	f.Add(true, []byte{3, 0xff, 0xff, 0xff})
	f.Add(false, []byte{0, 0, 0})

	source := openSource{small().set(f)}
	conn := serve(f, xds.NewServer(xds.Options{Source: source, Authorizer: source, Logger: slog.New(slog.DiscardHandler)}))
	f.Fuzz(func(t *testing.T, delta bool, requests []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		method := "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
		if delta {
			method = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
		}
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.ForceCodec(raw{}))
		if err != nil {
			t.Fatal(err)
		}
		for len(requests) > 0 {
			n := min(int(requests[0]), len(requests)-1)
			if stream.SendMsg(requests[1:1+n]) != nil {
				break // the stream has ended; RecvMsg returns why
			}
			requests = requests[1+n:]
		}
		_ = stream.CloseSend() // never fails
		for err == nil {
			var response []byte
			err = stream.RecvMsg(&response)
		}
		if ctx.Err() != nil || strings.Contains(err.Error(), "desc = internal error") || strings.Contains(err.Error(), "bug in Usher") {
			t.Errorf("the stream ended with %v", err)
		}
	})
}

// frames encodes requests, each of which has to be short.
func frames(f *testing.F, requests ...proto.Message) []byte {
	f.Helper()
	var out []byte
	for _, r := range requests {
		body, err := proto.Marshal(r)
		if err != nil || len(body) > 255 {
			f.Fatalf("%d bytes, %v", len(body), err)
		}
		out = append(append(out, byte(len(body))), body...)
	}
	return out
}

// raw is the codec of messages that are encoded already.
type raw struct{}

func (raw) Name() string                  { return "proto" }
func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = data
	return nil
}

// openSource has one set for every node, and authorizes every caller.
type openSource struct{ set *xds.Set }

func (s openSource) Watch(ctx context.Context, _ xds.Node, put func(*xds.Set)) error {
	put(s.set)
	<-ctx.Done()
	return nil
}

func (openSource) Authorize(context.Context, xds.Caller, xds.Node) (time.Time, error) {
	return time.Time{}, nil
}
