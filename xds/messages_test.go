package xds_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/messages"
	"github.com/usherproxy/usher/xds"
)

// TestMessages provokes what Envoys and the log say.
func TestMessages(t *testing.T) {
	var printed []string
	for name, provoke := range map[string]func(*harness) (end error){
		"connections":   tooManyConnections,
		"pending time":  pendingTooLong,
		"request bytes": tooManyRequestBytes,
		"streams":       tooManyStreams,
		"long token":    refused(fakeenvoy.Options{Token: strings.Repeat("t", 5000)}, cds),
		"long bearer":   refused(fakeenvoy.Options{Bearer: strings.Repeat("t", 5000)}, cds),
		"both tokens":   refused(fakeenvoy.Options{Token: "t", Bearer: "b"}, cds),
		"other scheme":  refused(fakeenvoy.Options{Authorization: "Basic b"}, cds),
		"expired token": credentialExpired,
		"no node":       refused(fakeenvoy.Options{Anonymous: true}, cds),
		"long node":     refused(fakeenvoy.Options{Node: &corev3.Node{Id: strings.Repeat("x", 600)}}, cds),
		"bad node":      refused(fakeenvoy.Options{Node: &corev3.Node{Id: "a\nb"}}, cds),
		"no type":       refused(fakeenvoy.Options{}, ""),
		"many names":    refused(fakeenvoy.Options{}, eds, namesOf(100_001, "%d")...),
		"long name":     refused(fakeenvoy.Options{}, eds, strings.Repeat("x", 2049)),
		"unknown names": unknownNames,
		"large request": refused(fakeenvoy.Options{}, eds, strings.Repeat("x", 4<<20)),
		"no protobuf":   noProtobuf,
		"two nodes":     twoNodes,
		"first request": silent,
		"denied":        answered(status.Error(codes.PermissionDenied, "the token has no service:write")),
		"not checked":   answered(errors.New("connection refused")),
		"expired":       expired,
		"panic":         panics,
		"source ends":   sourceEnds,
		"not read":      notRead,
		"not answered":  notAnswered,
		"not acked":     notAcknowledged,
		"NACK":          nackAndAck,
		"restored":      restored,
		"drain":         shutDown,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newHarness(t, fakeenvoy.Delta)
				if end := provoke(r); end != nil && !strings.Contains(end.Error(), "error reading from server") {
					printed = append(printed, "stream: "+status.Convert(end).Message())
				}
				synctest.Wait()
				printed = append(printed, messagesIn(r.log.String())...)
			})
		})
	}
	printed = append(printed, keyPairMessages(t)...)
	printed = append(printed, handshakeMessages(t)...)
	printed = append(printed, expiryMessages(t)...)
	for name, typ := range map[string]xds.Type{"": xds.Cluster, "web": xds.Listener} {
		_, err := xds.NewResource(typ, name, cluster("web", 1))
		printed = append(printed, "resource: "+err.Error())
	}
	messages.Check(t, printed, "status.Error", "status.Errorf", "fmt.Errorf", "errors.New", "countLimit", "endUnread", "Warn", "Error", "Info")
}

// handshakeMessages has a line for each reason.
func handshakeMessages(t *testing.T) []string {
	t.Helper()
	var log strings.Builder
	h := xds.NewHandshakes(slog.New(slog.NewTextHandler(&log, nil)), nil)
	synctest.Test(t, func(*testing.T) {
		for i, text := range []string{
			"tls: first record does not look like a TLS handshake", "remote error: tls: unknown certificate authority",
			"remote error: tls: expired certificate", "remote error: tls: bad certificate",
			"tls: client offered only unsupported versions: [301]", "EOF", "credentials: cannot check peer: missing selected ALPN property",
		} {
			err := errors.New(text)
			if text == "EOF" {
				err = io.EOF
			}
			h.Failed("xds", &net.TCPAddr{IP: net.IPv4(10, 0, 0, byte(i)), Port: 4000}, err)
		}
		server, client := net.Pipe()
		go func() { _, _ = client.Write([]byte{22}) }()
		_, _, _ = h.Credentials("xds", insecure.NewCredentials()).ServerHandshake(server)
		h.Failed("xds", &net.TCPAddr{IP: net.IPv4(10, 0, 1, 1)}, os.ErrDeadlineExceeded)
		time.Sleep(2 * time.Minute)
	})
	return messagesIn(log.String())
}

// expiryMessages has the problems of certificates.
func expiryMessages(t *testing.T) (problems []string) {
	t.Helper()
	for _, until := range []time.Duration{-time.Minute, 10 * time.Minute, 3 * time.Hour} {
		files := newKeyFiles(t)
		files.replace(pairUntil(t, 1, time.Now().Add(until-2*time.Hour), time.Now().Add(until)))
		keys, err := xds.NewKeyPair(files.cert(), files.key(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		_ = keys.ReportProblems(ctx, func(found, _ []problem.Problem) {
			what := regexp.MustCompile(`\d{4}-\S+Z`).ReplaceAllString(found[0].What, "2030-01-02T03:04:05Z")
			problems = append(problems, "tls.crt: "+what)
			cancel()
		})
	}
	return problems
}

var loggedLine = regexp.MustCompile(`msg=("(?:[^"\\]|\\.)*"|\S+)(?:.* error=("(?:[^"\\]|\\.)*"|\S+))?`)

// messagesIn returns the messages of a log with their errors, without debug lines.
func messagesIn(log string) []string {
	var found []string
	for line := range strings.Lines(log) {
		m := loggedLine.FindStringSubmatch(line)
		if m == nil || strings.Contains(line, "level=DEBUG") {
			continue
		}
		for i := range m {
			if text, err := strconv.Unquote(m[i]); err == nil {
				m[i] = text
			}
		}
		found = append(found, strings.TrimSuffix("log: "+m[1]+": "+m[2], ": "))
	}
	return found
}

func refused(o fakeenvoy.Options, typeURL string, names ...string) func(*harness) error {
	return func(r *harness) error {
		e := r.connectWith(o)
		e.Subscribe(typeURL, names...)
		return e.End()
	}
}

func answered(answer error) func(*harness) error {
	return func(r *harness) error {
		r.authorizer.setAnswer(answer)
		return refused(fakeenvoy.Options{Token: "t"}, cds)(r)
	}
}

// reopen replaces the server.
func (r *harness) reopen(o xds.Options) {
	*r = *newHarnessWith(r.t, r.protocol, o)
}

func tooManyConnections(r *harness) error {
	r.reopen(xds.Options{Limits: xds.Limits{Connections: 1}})
	r.warm(small())
	_, _ = io.Copy(io.Discard, r.dial())
	return nil
}

func pendingTooLong(r *harness) error {
	conn := r.dial()
	_, _ = io.WriteString(conn, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	_, _ = io.Copy(io.Discard, conn)
	return nil
}

func tooManyRequestBytes(r *harness) error {
	_ = r.raw().Drip(1, 4<<20, 150_000) // it is cut off
	return nil
}

func tooManyStreams(r *harness) error {
	r.reopen(xds.Options{Limits: xds.Limits{Streams: 1}})
	r.warm(small())
	return refused(fakeenvoy.Options{}, cds)(r)
}

func unknownNames(r *harness) error {
	e := r.warm(small())
	e.Subscribe(eds, namesOf(10_001, "nothing-%d")...)
	return e.End()
}

func noProtobuf(r *harness) error {
	_ = r.raw().Send(1, 2, []byte{0xff, 0xff})
	return nil
}

func twoNodes(r *harness) error {
	_ = r.raw().Send(1, 4, []byte{0x0a, 0, 0x0a, 0})
	return nil
}

func silent(r *harness) error { return r.connect().End() }

func restored(r *harness) error {
	r.source.publish(small().set(r.t).AsRestored(restoredAt))
	r.reconnect(two()).ExpectNone()
	return nil
}

func expired(r *harness) error {
	slow := &slowAuthorizer{wait: make(chan error)}
	r.reopen(xds.Options{Authorizer: slow})
	e := r.warm(small())
	time.Sleep(15 * time.Second)
	slow.set(true)
	r.source.publish(small().with(endpoints("web", 2)).set(r.t))
	e.Expect(eds, "web") // and no answer
	return e.End()
}

func credentialExpired(r *harness) error {
	r.source.publish(small().set(r.t))
	r.authorizer.expiry = time.Now().Add(10 * time.Second)
	e := r.connectWith(fakeenvoy.Options{Bearer: "b"})
	e.Subscribe(cds)
	e.ExpectAck(cds, "web")
	return e.End()
}

func panics(r *harness) error {
	r.reopen(xds.Options{Authorizer: panicking{"authorizer"}})
	return refused(fakeenvoy.Options{}, cds)(r)
}

func sourceEnds(r *harness) error {
	r.source.fail = make(chan error)
	e := r.connect()
	e.Subscribe(cds)
	synctest.Wait()
	r.source.fail <- nil
	return e.End()
}

func notRead(r *harness) error {
	r.source.publish(small().with(large()).set(r.t))
	s := newStalledClient(r)
	s.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: lds})
	s.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: cds})
	time.Sleep(2 * time.Minute)
	return nil
}

func notAnswered(r *harness) error {
	e := r.warm(small())
	r.source.publish(small().with(endpoints("web", 2)).set(r.t))
	e.Expect(eds, "web")
	time.Sleep(6 * time.Minute)
	return e.End()
}

func notAcknowledged(r *harness) error {
	e := r.warm(small())
	r.source.publish(small().with(cluster("web", 2), listener("http", 2, "web")).set(r.t))
	e.Expect(cds, "web")
	e.ExpectAck(eds, "web")
	time.Sleep(20 * time.Second)
	e.ExpectAck(lds, "http")
	e.ExpectAck(rds, "web")
	return nil
}

func nackAndAck(r *harness) error {
	e := r.warm(small())
	r.source.publish(small().with(routes("web", 2)).set(r.t))
	e.Nack(e.Expect(rds, "web"), "no such cluster")
	r.source.publish(small().with(routes("web", 3)).set(r.t))
	e.ExpectAck(rds, "web")
	return nil
}

func shutDown(r *harness) error {
	e := r.warm(small())
	r.server.Drain(r.t.Context(), 0)
	return e.End()
}

// keyPairMessages returns the messages about certificates, without directories.
func keyPairMessages(t *testing.T) (logged []string) {
	files := newKeyFiles(t)
	newPair := func(cert, key string) string {
		_, err := xds.NewKeyPair(cert, key, slog.New(slog.DiscardHandler))
		return "start: " + strings.ReplaceAll(err.Error(), files.dir+string(filepath.Separator), "")
	}
	missing := newPair(files.cert(), files.key())
	files.replace(pair(t, 1))
	noKey := newPair(files.cert(), filepath.Join(files.dir, "none"))
	swapped := newPair(files.key(), files.cert())

	_, log := runKeyPair(t, files)
	cert, _ := pair(t, 2)
	_, foreign := pair(t, 2)
	files.replace(cert, foreign)
	bad := log.await(t, "the old one stays")
	files.replace(pair(t, 3))
	good := log.await(t, "TLS certificate replaced") + log.await(t, "can be used again")
	for _, line := range messagesIn(bad + good) {
		logged = append(logged, strings.ReplaceAll(line, files.dir+string(filepath.Separator), ""))
	}
	return append(logged, missing, noKey, swapped)
}
