package xds_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/xds"
)

// wantLimited checks how often a limit was reached.
func (r *harness) wantLimited(limit string, times float64) {
	r.t.Helper()
	synctest.Wait()
	if got := r.count("usher_xds_limited_total", limit); got != times {
		r.t.Errorf("limit %s was reached %v times, want %v", limit, got, times)
	}
}

// wantRefusedUnasked checks that a refusal was logged without repeating the text, and that the Authorizer was not asked.
func (r *harness) wantRefusedUnasked(text string) {
	r.t.Helper()
	r.wantUnasked()
	if strings.Contains(r.log.String(), text) {
		r.t.Errorf("the log repeats what was refused:\n%.2000s", r.log)
	}
	if lines := strings.Count(r.log.String(), "\n"); lines != 1 || !strings.Contains(r.log.String(), "envoy refused") {
		r.t.Errorf("logged %d lines, want one refusal:\n%.2000s", lines, r.log)
	}
}

func (r *harness) wantUnasked() {
	r.t.Helper()
	if n := len(r.authorizer.calls()); n != 0 {
		r.t.Errorf("the authorizer was asked %d times", n)
	}
}

func TestNodesThatMustNotBeLoggedAreRefused(t *testing.T) {
	long := strings.Repeat("x", 513)
	for name, node := range map[string]*corev3.Node{
		"long id":                {Id: long, Cluster: "gateway"},
		"long cluster":           {Id: "envoy", Cluster: long},
		"line end in the id":     {Id: "envoy\nlevel=ERROR msg=forged", Cluster: "gateway"},
		"escape in the cluster":  {Id: "envoy", Cluster: "gateway\x1b[2J forged"},
		"direction in the id":    {Id: "envoy\u202eforged", Cluster: "gateway"},
		"line end in the key":    {Id: "envoy", Cluster: "gateway", Metadata: structOf(t, "namespace", "a\nforged")},
		"long value of metadata": {Id: "envoy", Cluster: "gateway", Metadata: structOf(t, "namespace", long)},
		"long user agent":        {Id: "envoy", Cluster: "gateway", UserAgentName: long},
	} {
		t.Run(name, func(t *testing.T) {
			forBoth(t, func(r *harness) {
				e := r.connectWith(fakeenvoy.Options{Node: node})
				e.Subscribe(cds)
				e.ExpectEnd(codes.InvalidArgument)
				r.wantRefusedUnasked("forged")
				r.wantRefusedUnasked(long)
			})
		})
	}
}

func TestOtherMetadataIsNotKept(t *testing.T) {
	forBoth(t, func(r *harness) {
		m := structOf(t, "node_name", "n1")
		for i := range 1000 {
			m.Fields[fmt.Sprint("field ", i)] = structOf(t, "x", strings.Repeat("x", 1000)).Fields["x"]
		}
		e := r.connectWith(fakeenvoy.Options{Node: &corev3.Node{Id: "envoy", Cluster: "gateway", Metadata: m}})
		e.Subscribe(cds)
		e.ExpectNone()
		if kept := r.source.watchedNodes()[0].Metadata; len(kept) != 1 || kept["node_name"] != "n1" {
			t.Errorf("kept %d fields of the metadata: %.200v", len(kept), kept)
		}
	})
}

func TestTokensAreBounded(t *testing.T) {
	for size, want := range map[int]codes.Code{
		4 << 10:   codes.OK,
		4<<10 + 1: codes.Unauthenticated,
	} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			forBoth(t, func(r *harness) {
				e := r.connectWith(fakeenvoy.Options{Token: strings.Repeat("t", size)})
				e.Subscribe(cds)
				if want == codes.OK {
					e.ExpectNone()
					return
				}
				if err := e.End(); status.Code(err) != want {
					t.Errorf("ended with %v, want %v", err, want)
				}
				r.wantUnasked()
			})
		})
	}
}

// A client that ignores the server's limits.
func TestHeadersAreBounded(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		raw := r.dialRaw()
		_ = raw.Open(1, strings.Repeat("t", 200<<10)) // it may be cut off
		synctest.Wait()
		if open := r.count("usher_xds_pending_streams", ""); open != 0 {
			t.Errorf("%v streams are open", open)
		}
		_ = raw.Send(1, 10, make([]byte, 10)) // it may be cut off
		r.wantUnasked()
		time.Sleep(30 * time.Second)
		if open := r.count("usher_xds_connections", "pending"); open != 0 {
			t.Errorf("%v connections are open", open)
		}
	})
}

func TestRequestsAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		names []string
		want  codes.Code
		limit string
	}{
		"a large gateway's":  {names: namesOf(20_000, "service-%d.default.dc1.internal.trust-domain.consul"), want: codes.OK},
		"too large":          {names: []string{strings.Repeat("x", 4<<20)}, want: codes.ResourceExhausted, limit: "request_size"},
		"a name is too long": {names: []string{strings.Repeat("x", 2049)}, want: codes.InvalidArgument},
		"too many names":     {names: namesOf(100_001, "%d"), want: codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			forBoth(t, func(r *harness) {
				e := r.connect()
				e.Subscribe(eds, c.names...)
				if c.want == codes.OK {
					e.ExpectNone()
					return
				}
				e.ExpectEnd(c.want)
				if c.limit != "" {
					r.wantLimited(c.limit, 1)
				}
			})
		})
	}
}

func namesOf(n int, format string) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf(format, i)
	}
	return names
}

// Subscribing to all resources and unsubscribing again does not make names known.
func TestUnknownNamesAreBoundedUnderAWildcard(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		e := r.warm(small())
		for i := range 20 {
			e.Subscribe(eds, "*")
			e.Unsubscribe(eds, "*")
			e.Subscribe(eds, namesOf(1000, fmt.Sprintf("nothing-%d-%%d", i))...)
		}
		synctest.Wait()
		r.wantLimited("names", 1)
	})
}

func TestUnknownNamesAreBounded(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.warm(small())
		e.Subscribe(eds, namesOf(10_000, "nothing-%d")...)
		e.ExpectNone()
		e.Subscribe(eds, "one-more", "and-another")
		e.ExpectEnd(codes.ResourceExhausted)
		r.wantLimited("names", 1)
	})
}

func TestSilentStreamsEnd(t *testing.T) {
	forBoth(t, func(r *harness) {
		e := r.connect()
		synctest.Wait()
		time.Sleep(10 * time.Second) // of the bubble's time
		e.ExpectEnd(codes.DeadlineExceeded)
		r.wantLimited("first_request_time", 1)
	})
}

// A connection without an authorized stream is closed, whatever else is sent on it.
func TestPendingConnectionsEnd(t *testing.T) {
	hello := http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // with empty settings
	for name, first := range map[string]string{"silent": "", "half a preface": "PRI * HT", "no stream": hello} {
		t.Run(name, func(t *testing.T) {
			forOne(t, fakeenvoy.Delta, func(r *harness) {
				conn := r.dial()
				if _, err := io.WriteString(conn, first); err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				_, _ = io.Copy(io.Discard, conn)
				if took := time.Since(begin); took > 30*time.Second {
					t.Errorf("it was closed after %v", took)
				}
				if first == hello {
					r.wantLimited("pending_time", 1)
				}
			})
		})
	}
}

// The oldest pending connection is evicted, and no other.
func TestOldestPendingConnectionIsEvicted(t *testing.T) {
	for name, limits := range map[string]xds.Limits{
		"connections":          {Connections: 3},
		"connections_per_peer": {ConnectionsPerPeer: 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Limits: limits})
				honest := r.warm(small())
				var attackers []net.Conn
				for range 3 {
					attackers = append(attackers, r.dial())
					synctest.Wait()
				}
				begin := time.Now()
				_, _ = io.Copy(io.Discard, attackers[0])
				if took := time.Since(begin); took != 0 {
					t.Errorf("the oldest was closed after %v, want at once", took)
				}
				r.wantLimited(name, 1)
				r.source.publish(small().with(endpoints("web", 2)).set(t))
				honest.ExpectAck(eds, "web")

				second := r.dialClient()
				e := fakeenvoy.Connect(t, second, fakeenvoy.Delta, fakeenvoy.Options{Node: &corev3.Node{Id: "second", Cluster: "gateway"}})
				e.Subscribe(cds)
				e.ExpectAck(cds, "web")
			})
		})
	}
}

func TestNoConnectionIsTakenWhenAllAreAuthorised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Limits: xds.Limits{Connections: 1}})
		e := r.warm(small())
		conn := r.dial()
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("a second connection: %v, want its end", err)
		}
		e.ExpectNone()
	})
}

func TestStreamsAreBounded(t *testing.T) {
	for name, limits := range map[string]xds.Limits{"streams": {Streams: 2}, "streams_per_peer": {StreamsPerPeer: 2}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Limits: limits})
				first := r.warm(small())
				silent := r.connectWith(fakeenvoy.Options{Token: "another"})
				synctest.Wait()
				second := r.warm(small()) // evicts the silent one
				silent.ExpectEnd(codes.ResourceExhausted)
				third := r.connect()
				third.Subscribe(cds)
				third.ExpectEnd(codes.ResourceExhausted)
				first.ExpectNone()
				second.ExpectNone()
				r.wantLimited(name, 2)
			})
		})
	}
}

// A known token does not protect a silent stream: it is evicted, after those with unknown tokens.
func TestSilentStreamsOfKnownTokensAreEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Limits: xds.Limits{Streams: 3}})
		r.warm(small())
		first := r.connect()
		synctest.Wait()
		second := r.connect()
		synctest.Wait()
		r.warm(small())
		first.ExpectEnd(codes.ResourceExhausted)
		second.ExpectNone()
	})
}

// The rate of one caller's streams is bounded, but not that of streams with a token that was authorized lately.
func TestTheRateOfStreamsIsBounded(t *testing.T) {
	for name, limits := range map[string]xds.Limits{"stream_rate": {StreamRate: 1}, "stream_rate_per_peer": {StreamRatePerPeer: 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newHarnessWith(t, fakeenvoy.Delta, xds.Options{Limits: limits})
				r.source.publish(small().set(t))
				good := r.connectWith(fakeenvoy.Options{Token: "good"})
				good.Subscribe(cds)
				good.ExpectAck(cds, "web")

				r.authorizer.setAnswer(status.Error(codes.PermissionDenied, "no"))
				ended := map[codes.Code]int{}
				for i := range 20 {
					e := r.connectWith(fakeenvoy.Options{Token: fmt.Sprint("bad ", i)})
					e.Subscribe(cds)
					ended[status.Code(e.End())]++
				}
				if ended[codes.PermissionDenied] != 9 || ended[codes.ResourceExhausted] != 11 {
					t.Errorf("streams ended with %v, want 9 denials, for ten may come at once, and 11 beyond the rate", ended)
				}
				r.authorizer.setAnswer(nil)
				again := r.connectWith(fakeenvoy.Options{Token: "good"})
				again.Subscribe(cds)
				again.ExpectAck(cds, "web")

				time.Sleep(time.Second)
				late := r.connectWith(fakeenvoy.Options{Token: "new"})
				late.Subscribe(cds)
				late.ExpectAck(cds, "web")
			})
		})
	}
}

// A caller whose streams are denied again and again is refused without asking the Authorizer, unless its token is known.
func TestDeniedStreamsOfOneCallerAreBounded(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		r.source.publish(small().set(t))
		good := r.connectWith(fakeenvoy.Options{Token: "good"})
		good.Subscribe(cds)
		good.ExpectAck(cds, "web")
		r.authorizer.setAnswer(status.Error(codes.Unauthenticated, "no such token"))
		for i := range 150 {
			e := r.connectWith(fakeenvoy.Options{Token: fmt.Sprint("bad ", i)})
			e.Subscribe(cds)
			_ = e.End()
		}
		if asked := len(r.authorizer.calls()); asked != 101 {
			t.Errorf("the authorizer was asked %d times, want once for the good and a hundred times", asked)
		}
		r.wantLimited("denied_rate_per_peer", 50)
		r.authorizer.setAnswer(nil)
		for token, want := range map[string]codes.Code{"good": codes.OK, "new": codes.ResourceExhausted} {
			e := r.connectWith(fakeenvoy.Options{Token: token})
			e.Subscribe(cds)
			if want == codes.OK {
				e.ExpectAck(cds, "web")
				continue
			}
			e.ExpectEnd(want)
		}
		time.Sleep(time.Second)
		e := r.connectWith(fakeenvoy.Options{Token: "new"})
		e.Subscribe(cds)
		e.ExpectAck(cds, "web")
	})
}

// If the Authorizer fails, the callers are not to blame.
func TestAnOutageCountsAgainstNoCaller(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		r.source.publish(small().set(t))
		r.authorizer.setAnswer(errors.New("connection refused"))
		for i := range 150 {
			e := r.connectWith(fakeenvoy.Options{Token: fmt.Sprint("good ", i)})
			e.Subscribe(cds)
			e.ExpectEnd(codes.Unavailable)
		}
		r.authorizer.setAnswer(nil)
		e := r.connectWith(fakeenvoy.Options{Token: "another"})
		e.Subscribe(cds)
		e.ExpectAck(cds, "web")
	})
}

func TestRefusalsOfOneCallerAreOneLineAMinute(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		r.authorizer.setAnswer(status.Error(codes.PermissionDenied, "no such right"))
		for range 50 {
			e := r.connectWith(fakeenvoy.Options{Token: "sesame"})
			e.Subscribe(cds)
			e.ExpectEnd(codes.PermissionDenied)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		lines := strings.Split(strings.TrimSpace(r.log.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "count=1 ") || !strings.Contains(lines[1], "count=49 ") {
			t.Fatalf("logged:\n%s\nwant one line at once and one for the other 49", r.log)
		}
		for _, want := range []string{`address="unix socket"`, `token="a token"`, "no such right"} {
			if !strings.Contains(lines[1], want) {
				t.Errorf("%s is missing from %s", want, lines[1])
			}
		}
	})
}

// The metrics have the limits.
func TestLimitsAreShown(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		for limit, want := range map[string]float64{"connections": 4096, "streams_per_peer": 2048, "request_size": 4 << 20} {
			if got := r.count("usher_xds_limit", limit); got != want {
				t.Errorf("limit %s is %v, want %v", limit, got, want)
			}
		}
		r.warm(small())
		if got := r.count("usher_xds_connections", "authorized"); got != 1 {
			t.Errorf("%v connections are authorized, want 1", got)
		}
	})
}

// The bytes of incomplete requests are bounded. Pending connections are evicted first.
func TestBytesOfIncompleteRequestsAreBounded(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		honest := r.warm(small())
		const attackers, size = 20, 4<<20 - 1000
		for range attackers {
			_ = r.raw().Send(1, size, make([]byte, size-1)) // it may be cut off
		}
		synctest.Wait()
		if held := r.count("usher_xds_request_bytes", ""); held > 64<<20 || held < 48<<20 {
			t.Errorf("%v bytes of incomplete requests are held, want a little less than 64 MiB", held)
		}
		r.wantLimited("request_bytes", attackers-15) // the frames count, too
		honest.Subscribe(eds, namesOf(9000, "service-%d.default.dc1.internal.trust-domain.consul")...)
		honest.ExpectNone()
	})
}

// Frames of a single byte cost gRPC many times what they carry.
func TestBytesInTinyFramesAreBounded(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		const size = 4 << 20
		raw := r.raw()
		if err := raw.Drip(1, size, 60_000); err == nil {
			synctest.Wait()
			if held := r.count("usher_xds_request_bytes", ""); held < 60_000*64 {
				t.Errorf("60,000 frames of one byte count as %v bytes", held)
			}
		}
		_ = r.raw().Drip(1, size, 150_000) // it is cut off
		r.wantLimited("request_bytes", 1)
	})
}

// What has arrived and is never read does not count after its stream has ended.
func TestBytesOfEndedStreamsAreGivenBack(t *testing.T) {
	forOne(t, fakeenvoy.Delta, func(r *harness) {
		r.authorizer.setAnswer(status.Error(codes.PermissionDenied, "no"))
		raw := r.raw()
		node := frameOf(t, "a")
		message := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(node))), node...)
		// In one DATA frame, so that all five arrive while the stream is open.
		if err := raw.Send(1, len(node), append(node, bytes.Repeat(message, 4)...)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if held := r.count("usher_xds_request_bytes", ""); held != 0 {
			t.Errorf("%v bytes are held of a stream that has ended", held)
		}
	})
}

// frameOf is the first request of a node.
func frameOf(t *testing.T, id string) []byte {
	t.Helper()
	encoded, err := proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: id, Cluster: "gateway"}, TypeUrl: cds})
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// dialRaw connects a client that ignores all limits.
func (r *harness) dialRaw() *fakeenvoy.Raw {
	r.t.Helper()
	raw, err := fakeenvoy.NewRaw(r.dial())
	if err != nil {
		r.t.Fatal(err)
	}
	return raw
}

// raw is dialRaw with a stream, without a token.
func (r *harness) raw() *fakeenvoy.Raw {
	r.t.Helper()
	raw := r.dialRaw()
	if err := raw.Open(1, ""); err != nil {
		r.t.Fatal(err)
	}
	return raw
}

// structOf is metadata with one string.
func structOf(t *testing.T, key, value string) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(map[string]any{key: value})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
