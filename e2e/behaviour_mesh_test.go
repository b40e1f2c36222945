//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/e2e/lab"
)

// scriptHeader says what an instance of the mesh does with a request:
// "fail STATUS TIMES" answers with the status that many times and then 200,
// "fail-at INSTANCE STATUS" does so always but at one instance alone, "delay
// DURATION" answers late, and "hold" waits for the end of echoMesh.hold.
const scriptHeader = "Script"

// answerHeaders are on every answer of the mesh, so that a gateway has something
// to add to, to replace and to remove.
var answerHeaders = map[string]string{
	"X-A": "service", "X-B": "service", "X-C": "service", "X-D": "service", "X-E": "service", "X-F": "service",
	"X-Level": "service", "X-Leg": "service",
}

// echoMesh are instances of mesh services which say what they got. They take
// HTTP/1.1, HTTP/2 and gRPC, inside the mesh's TLS, from clients that have a
// certificate of the mesh.
type echoMesh struct {
	t      *testing.T // its end is the mesh's
	consul *lab.Consul
	host   *lab.Host
	roots  *x509.CertPool

	ports map[string]int // by instance

	mu       sync.Mutex
	attempts map[string]int     // by the request's id
	holds    map[string]*holder // by gateway
}

// holder keeps requests waiting: each says on arrived that it has come, and is
// answered once released is closed.
type holder struct{ arrived, released chan struct{} }

// echoed is what an instance got.
type echoed struct {
	Service, Instance  string
	Method, Host, Path string
	Protocol           string
	Connection         []string // the lines of the mesh's TLS
	Attempt            int      // the first is 1
	Header             http.Header
}

func newEchoMesh(t *testing.T, a *lab.Consul, h *lab.Host) *echoMesh {
	t.Helper()
	m := &echoMesh{
		t: t, consul: a, host: h, roots: x509.NewCertPool(), ports: map[string]int{}, attempts: map[string]int{}, holds: map[string]*holder{},
	}
	roots, _, err := a.Client.Agent().ConnectCARoots(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots.Roots {
		m.roots.AppendCertsFromPEM([]byte(root.RootCertPEM))
	}
	return m
}

// port is where an instance listens; it begins to when it is asked for first,
// and goes on for the cases after this one.
func (m *echoMesh) port(t *testing.T, service, instance string) int {
	t.Helper()
	if port := m.ports[instance]; port != 0 {
		return port
	}
	certificate, err := leafOf(m.consul, service)
	if err != nil {
		t.Fatal(err)
	}
	// An instance has the same port in every run: hash policies go by it.
	sum := fnv.New32a()
	sum.Write([]byte(instance))
	port := 20000 + int(sum.Sum32()%10000)
	m.ports[instance] = port
	i := &echoInstance{mesh: m, service: service, name: instance}
	i.rpc = grpc.NewServer(grpc.UnaryInterceptor(i.intercept))
	healthv1.RegisterHealthServer(i.rpc, health.NewServer())
	server := &http.Server{Handler: i, ConnContext: withConnection, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true) // as net/http sees it: the listener does the TLS
	listener := meshListener{m.host.Listen(m.t, fmt.Sprintf(":%d", port)), &tls.Config{
		Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: m.roots,
	}}
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(listener) }) // ends with the test
	m.t.Cleanup(func() {
		server.Close()
		work.Wait()
	})
	return port
}

// meshListener speaks TLS without telling net/http, which would take HTTP/2 only
// from clients that ask for it in TLS. Envoy does not, as its cluster says it.
type meshListener struct {
	net.Listener
	config *tls.Config
}

// meshConn hides the methods of a TLS connection.
type meshConn struct {
	net.Conn
	tls *tls.Conn
}

func (l meshListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := tls.Server(conn, l.config)
	return meshConn{c, c}, nil
}

type connectionKey struct{}

func withConnection(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}

func connectionState(ctx context.Context) tls.ConnectionState {
	c, ok := ctx.Value(connectionKey{}).(meshConn)
	if !ok {
		return tls.ConnectionState{}
	}
	return c.tls.ConnectionState()
}

// echoInstance is one instance of a service.
type echoInstance struct {
	mesh          *echoMesh
	service, name string
	rpc           *grpc.Server
}

func (i *echoInstance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		i.rpc.ServeHTTP(w, r)
		return
	}
	seen := i.seen(r.Context(), r.Header)
	seen.Method, seen.Host, seen.Path, seen.Protocol = r.Method, r.Host, r.URL.String(), r.Proto
	seen.Attempt = i.mesh.attempt(r)
	status := i.play(r, seen.Attempt)
	for name, value := range answerHeaders {
		w.Header().Set(name, value)
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(seen) // the client may be gone
}

// seen is what the connection and the headers say.
func (i *echoInstance) seen(ctx context.Context, header http.Header) echoed {
	return echoed{Service: i.service, Instance: i.name, Header: header, Connection: connectionLines("service", connectionState(ctx))}
}

// connectionLines are what one end of a TLS connection knows of it.
func connectionLines(where string, state tls.ConnectionState) []string {
	out := []string{
		where + ": " + tls.VersionName(state.Version), where + ": cipher " + tls.CipherSuiteName(state.CipherSuite),
		where + ": server name " + state.ServerName, where + ": application protocol " + state.NegotiatedProtocol,
	}
	if len(state.PeerCertificates) == 0 {
		return out
	}
	peer := state.PeerCertificates[0]
	names := map[string]bool{} // Usher's are also there without the dot at the end
	for _, name := range peer.DNSNames {
		names[strings.TrimSuffix(name, ".")] = true
	}
	return append(out, fmt.Sprint(where, ": peer ", peer.URIs, slices.Sorted(maps.Keys(names))))
}

// gatewayOf is the address of the gateway that a request comes from.
func gatewayOf(r *http.Request) string {
	address, _, _ := strings.Cut(r.RemoteAddr, ":")
	return address
}

// attempt counts how often a request has come, by the id that a gateway gives
// it. Through a tcp listener it has none, and comes once.
func (m *echoMesh) attempt(r *http.Request) int {
	id := r.Header.Get("X-Request-Id")
	if id == "" {
		return 1
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attempts[id]++
	return m.attempts[id]
}

// play does what the script says, and returns the answer's status.
func (i *echoInstance) play(r *http.Request, attempt int) int {
	var verb string
	words := strings.Fields(r.Header.Get(scriptHeader))
	if len(words) > 0 {
		verb, words = words[0], words[1:]
	}
	switch verb {
	case "fail":
		var code, times int
		if _, err := fmt.Sscan(strings.Join(words, " "), &code, &times); err == nil && attempt <= times {
			return code
		}
	case "fail-at":
		var at string
		var code int
		if _, err := fmt.Sscan(strings.Join(words, " "), &at, &code); err == nil && at == i.name {
			return code
		}
	case "delay":
		if d, err := time.ParseDuration(strings.Join(words, "")); err == nil {
			select {
			case <-time.After(d):
			case <-r.Context().Done():
			}
		}
	case "hold":
		i.mesh.wait(r)
	}
	return http.StatusOK
}

// hold keeps a gateway's requests with the script "hold" waiting from now on.
func (m *echoMesh) hold(gateway *lab.Host) *holder {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &holder{arrived: make(chan struct{}), released: make(chan struct{})}
	m.holds[gateway.IP.String()] = h
	return h
}

// wait waits as the hold on the request's gateway wants it.
func (m *echoMesh) wait(r *http.Request) {
	m.mu.Lock()
	h := m.holds[gatewayOf(r)]
	m.mu.Unlock()
	if h == nil {
		return
	}
	select {
	case h.arrived <- struct{}{}:
	case <-h.released:
	case <-r.Context().Done():
	}
	select {
	case <-h.released:
	case <-r.Context().Done():
	}
}

// seenMetadata is the metadata with which an instance answers what it has seen.
const seenMetadata = "seen"

// intercept says in the answer's metadata what the instance got.
func (i *echoInstance) intercept(
	ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	header := http.Header{}
	for name, values := range md {
		header[http.CanonicalHeaderKey(name)] = values
	}
	seen := i.seen(ctx, header)
	seen.Path, seen.Protocol = info.FullMethod, "gRPC"
	text, err := json.Marshal(seen)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs(seenMetadata, string(text), "x-level", "service")); err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

// leafOf is the certificate of a mesh service.
func leafOf(a *lab.Consul, service string) (tls.Certificate, error) {
	leaf, _, err := a.Client.Agent().ConnectCALeaf(service, nil)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.PrivateKeyPEM))
}

// lines are what the instance got, one fact a line.
func (e echoed) lines() []string {
	out := []string{
		"service: instance " + e.Instance, "service: method " + e.Method, "service: host " + e.Host, "service: path " + e.Path,
		"service: protocol " + e.Protocol, fmt.Sprint("service: attempt ", e.Attempt),
	}
	out = append(out, e.Connection...)
	if name := "X-Envoy-Expected-Rq-Timeout-Ms"; e.Attempt > 1 && e.Header.Get(name) != "" {
		e.Header.Set(name, "what the first attempt has left")
	}
	return append(out, headerLines("service", e.Header)...)
}

// headerLines returns headers one a line, sorted by name.
func headerLines(where string, header map[string][]string) []string {
	var out []string
	for _, name := range slices.SortedFunc(maps.Keys(header), func(a, b string) int {
		return cmp.Compare(strings.ToLower(a), strings.ToLower(b))
	}) {
		for _, value := range header[name] {
			out = append(out, masked(where, strings.ToLower(name), value))
		}
	}
	return out
}
