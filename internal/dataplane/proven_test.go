package dataplane

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/usherproxy/usher/xds"
)

// firstRequest is the first request of a discovery stream of a service.
func firstRequest(t *testing.T, service string) frame {
	t.Helper()
	encoded, err := proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: service + "-1", Cluster: service}, TypeUrl: xds.Cluster.URL(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// proven returns how many connections are proven.
func (h *harness) proven() (n int) {
	h.server.admission.mu.Lock()
	defer h.server.admission.mu.Unlock()
	for _, c := range h.server.admission.connections {
		if c.proven {
			n++
		}
	}
	return n
}

// Only the answer to a call that needs a token proves who a caller is. A refusal does not.
func TestOnlyAnswersThatNeedATokenProveACaller(t *testing.T) {
	for name, c := range map[string]struct {
		method  string
		service string // of a discovery stream
		refused bool
		want    int
	}{
		"another call":                       {method: "/example.Service/Method"},
		"a DNS query":                        {method: "/hashicorp.consul.dns.DNSService/Query"},
		"WatchServers":                       {method: watchServersMethod},
		"features":                           {method: featuresMethod, want: 1},
		"bootstrap parameters":               {method: paramsMethod, want: 1},
		"a login":                            {method: loginMethod, want: 1},
		"a sidecar's stream":                 {method: adsMethod, service: "web", want: 1},
		"a gateway's stream":                 {method: adsMethod, service: "edge", want: 1},
		"features, refused":                  {method: featuresMethod, refused: true},
		"a login, refused":                   {method: loginMethod, refused: true},
		"a sidecar's stream, refused":        {method: adsMethod, service: "web", refused: true},
		"a gateway's stream, refused":        {method: adsMethod, service: "edge", refused: true},
		"a stream without a request's node":  {method: adsMethod, service: "\x00", refused: true},
		"a call of an unknown Consul method": {method: "/hashicorp.consul.acl.ACLService/Logout"},
	} {
		t.Run(name, func(t *testing.T) {
			denied := status.Error(codes.PermissionDenied, "no")
			consul := func(_ any, stream grpc.ServerStream) error {
				if err := stream.RecvMsg(new(frame)); err != nil || c.refused {
					return denied
				}
				if err := stream.SendMsg(frame{}); err != nil {
					return err
				}
				<-stream.Context().Done()
				return nil
			}
			synctest.Test(t, func(t *testing.T) {
				authorizer := &fakeAuthorizer{}
				if c.refused {
					authorizer.set(denied)
				}
				h := newHarness(t, consul, xds.Options{Authorizer: authorizer, Source: fakeSource{oneCluster(t)}})
				request := frame{}
				if c.service != "" {
					request = firstRequest(t, c.service)
				}
				stream := h.open(t.Context(), h.dial(), c.method)
				_ = stream.SendMsg(request) // Usher may have refused the call already
				synctest.Wait()
				if n := h.proven(); n != c.want {
					t.Errorf("%d connections are proven, want %d", n, c.want)
				}
			})
		})
	}
}

// Consul decides by the caller's token, and so does Usher for gateways.
func TestTheTokenIsPassedOn(t *testing.T) {
	tokens := make(chan []string, 1)
	consul := func(_ any, stream grpc.ServerStream) error {
		got, _ := metadata.FromIncomingContext(stream.Context())
		tokens <- append(got.Get("x-consul-token"), got.Get("authorization")...)
		return nil
	}
	inBubble(t, consul, func(t *testing.T, h *harness) {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-consul-token", "secret", "authorization", "Bearer jwt")
		for _, call := range []struct {
			method  string
			request frame
		}{{featuresMethod, frame{}}, {adsMethod, firstRequest(t, "web")}} {
			if err := h.open(ctx, h.dial(), call.method).SendMsg(call.request); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(<-tokens, ", "); got != "secret, Bearer jwt" {
				t.Errorf("%s: consul got %q", call.method, got)
			}
		}
	})
}

// Consul could read another node in the request than Usher does, and serve a gateway.
func TestAStreamWithAnAmbiguousNodeGoesToNobody(t *testing.T) {
	var calls atomic.Int32
	consul := func(any, grpc.ServerStream) error {
		calls.Add(1)
		return nil
	}
	inBubble(t, consul, func(t *testing.T, h *harness) {
		stream := h.open(t.Context(), h.dial(), adsMethod)
		if err := stream.SendMsg(append(firstRequest(t, "edge"), firstRequest(t, "web")...)); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(new(frame)); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "its node has a field twice") {
			t.Errorf("the stream ended with %v", err)
		}
		if n := calls.Load(); n != 0 || h.catalog.asked.Load() != 0 {
			t.Errorf("%d calls and %d questions reached Consul, want none", n, h.catalog.asked.Load())
		}
	})
}

// Consul serves the proxy with the node's id, so the question is about that.
func TestTheCatalogIsAskedAboutTheWholeNode(t *testing.T) {
	asked := make(chan xds.Node, 1)
	inBubble(t, echo, func(t *testing.T, h *harness) {
		ask := h.server.kinds.ask
		h.server.kinds.ask = func(ctx context.Context, n xds.Node) (Kind, error) {
			asked <- n
			return ask(ctx, n)
		}
		if err := h.open(t.Context(), h.dial(), adsMethod).SendMsg(firstRequest(t, "web")); err != nil {
			t.Fatal(err)
		}
		if n := <-asked; n.ID != "web-1" || n.Cluster != "web" {
			t.Errorf("asked about %q of %q", n.ID, n.Cluster)
		}
		synctest.Wait()
	})
}

// The limits of the xDS server are for each address.
func TestTheXDSSeesTheAddressOfAConsulDataplane(t *testing.T) {
	h := newHandover()
	remote := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 40000}
	var dialed sync.WaitGroup
	dialed.Go(func() {
		conn, err := h.dial(t.Context(), remote)
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close()
	})
	conn, err := h.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if conn.RemoteAddr() != net.Addr(remote) {
		t.Errorf("the connection is from %v, want %v", conn.RemoteAddr(), remote)
	}
	dialed.Wait()
	conn.Close()
}

// A stream whose question about its node is answered when Usher already drains would outlive the drain at Consul.
func TestAStreamThatIsDecidedDuringADrainEnds(t *testing.T) {
	var calls atomic.Int32
	consul := func(_ any, stream grpc.ServerStream) error {
		calls.Add(1)
		<-stream.Context().Done()
		return nil
	}
	inBubble(t, consul, func(t *testing.T, h *harness) {
		h.catalog.delay = time.Second
		stream := h.open(t.Context(), h.dial(), adsMethod)
		if err := stream.SendMsg(firstRequest(t, "web")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		h.server.shutDown()
		err := stream.RecvMsg(new(frame))
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "usher is shutting down") || calls.Load() != 0 {
			t.Errorf("the stream ended with %v, and %d calls reached Consul", err, calls.Load())
		}
		late := h.open(t.Context(), h.dial(), featuresMethod)
		_ = late.SendMsg(frame{}) // the end has the reason
		if err := late.RecvMsg(new(frame)); status.Code(err) != codes.Unavailable || calls.Load() != 0 {
			t.Errorf("a new call ended with %v, and %d calls reached Consul", err, calls.Load())
		}
	})
}
