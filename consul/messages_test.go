package consul

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/testing/messages"
)

// TestMessages provokes every message of the package.
func TestMessages(t *testing.T) {
	lines := append(messagesOfSettings(t), messagesOfAnswers(t)...)
	lines = append(lines, messagesOfSnapshots(t)...)
	lines = append(lines, messagesOfCertificates(t)...)
	lines = append(lines, messagesOfRequests(t)...)
	lines = append(lines, messagesOfLogins(t)...)
	lines = append(lines, messagesOfDataplanes(t)...)
	lines = append(lines, messagesOfReports(t)...)
	lines = append(lines, messagesOfState(t)...)
	messages.Check(t, lines, "fmt.Errorf", "errors.New", "unexpected", "problem.Problem", "addProblem")
}

// messagesOfReports provokes the problems of queries and permissions.
func messagesOfReports(t *testing.T) (lines []string) {
	t.Helper()
	client := newTestClient(t, Config{HTTPAddr: "http://consul:8500"})
	client.report = func(_ string, problems []problem.Problem) {
		for _, p := range problems {
			lines = append(lines, p.String())
		}
	}
	lacks := permissionChecker{client: client, missing: map[string]permission{`service:write on "edge"`: {}}}
	for _, serves := range []bool{false, true} {
		lacks.serves = func() bool { return serves }
		lacks.report()
	}
	m := newWatchManager(client, time.Minute)
	away := &callError{outcome: outcomeUnreachable, err: errors.New("connection refused")}
	m.logFailure(heartbeat, nil, away, failureContext{})
	m.logFailure(query{queryType: meshType}, nil, errors.New("consul answered 500"), failureContext{hasAnswer: true})
	m.logFailure(query{queryType: proxyDefaultsType}, nil, errors.New("consul answered 500"), failureContext{})
	now := time.Date(2026, 1, 31, 8, 30, 0, 0, time.UTC)
	clock := clockCheck{client: client}
	clock.observe(now, now.Add(2*time.Hour), now.Add(2*time.Hour))
	clock.observe(now.Add(2*time.Hour), now, now)
	own := &ownLogin{authMethod: "components", now: login{token: "x", expiry: now}}
	for _, at := range []time.Time{now.Add(-time.Second), now} {
		client.report("usher's login", own.problems(away, at))
	}
	own.unknown = true
	client.report("usher's login", own.problems(away, now.Add(-time.Second)))
	saved := time.Date(2026, 1, 31, 8, 30, 0, 0, time.UTC)
	m.logFailure(query{queryType: rootsType}, nil, errors.New("consul answered 500"), failureContext{hasAnswer: true, restored: saved})
	m.noteRestored(query{queryType: rootsType}, queryResult{value: &caRoots{}, err: away, answer: &answer{saved: saved}})
	m.logFailure(heartbeat, away, away, failureContext{})
	lines = append(lines, textOf(t, withoutLeader(t)))
	for _, payload := range []string{"", "{}"} {
		_, err := decodeAllowances([]byte(payload))
		lines = append(lines, textOf(t, err))
	}
	allowed := newAllowances(client, &memoryStore{}, time.Hour)
	allowed.reportRefused(true, errors.New("read-only file system"))
	slices.Sort(lines)
	return slices.Compact(lines)
}

// messagesOfState provokes what is wrong with saved states, and with the directory.
func messagesOfState(t *testing.T) (lines []string) {
	t.Helper()
	payloadOf := func(index, bodies string) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		_, err := z.Write([]byte(index + "\n" + bodies))
		if err := errors.Join(err, z.Close()); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	for _, index := range []string{"{", "{}", `{"Gateway": "edge", "Answers": [{"Type": "mesh", "Size": -1}]}`} {
		_, err := decodeSaved(payloadOf(index, ""), time.Now())
		lines = append(lines, textOf(t, err))
	}
	for _, key := range []string{"", "-----BEGIN EC PRIVATE KEY-----\n-----END EC PRIVATE KEY-----\n"} {
		_, err := restoreLeaf(&gateway.Leaf{KeyPEM: gateway.Secret(key)}, certRequest{}, time.Now())
		lines = append(lines, textOf(t, err))
	}
	lines = append(lines, errOtherCluster.Error(), textOf(t, checkSaved(&gateway.Leaf{ValidBefore: time.Date(2026, 1, 31, 8, 30, 0, 0, time.UTC)}, time.Now())))

	s := newManualWatch(t, 1)
	results := maps.Clone(s.subscription.results)
	delete(results, serviceQuery(leafType, gateway.ServiceName{Name: "edge"}))
	results[query{queryType: rootsType}] = queryResult{value: &caRoots{all: &gateway.Roots{}}, answer: &answer{saved: time.Now()}, err: errNoAnswerYet}
	for _, p := range buildSnapshot(input{id: s.id, now: time.Now(), results: results, keyless: true}, state{}).snapshot.Problems {
		lines = append(lines, p.String())
	}

	state := newSavedState(t, nil)
	dir := state.open(t)
	client := newTestClient(t, Config{HTTPAddr: "http://consul:8500", Logger: slog.New(errorRecorder{&lines})})
	client.report = func(_ string, problems []problem.Problem) {
		for _, p := range problems {
			lines = append(lines, strings.ReplaceAll(p.String(), state.path, "DIR"))
		}
	}
	for name, payload := range map[string][]byte{
		savedName(gateway.ID{Name: "edge"}): payloadOf(`{"Gateway": "edge", "Consul": ["http://other:8500"]}`, ""),
		savedPrefix + "other":               payloadOf(`{"Gateway": "edge"}`, ""),
	} {
		if err := dir.Write(name, payload); err != nil {
			t.Fatal(err)
		}
	}
	store := openStateStore(dir, client)
	store.begin(testGateway)
	store.replace(testGateway, resultsOf("one"), nil, testSnapshot)
	if err := dir.Close(); err != nil {
		t.Fatal(err)
	}
	store.writeAll()
	return lines
}

// errorRecorder adds the errors that are logged to a list.
type errorRecorder struct{ lines *[]string }

// Enabled implements slog.Handler.
func (errorRecorder) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (e errorRecorder) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "error" {
			*e.lines = append(*e.lines, a.Value.String())
		}
		return true
	})
	return nil
}

// WithAttrs implements slog.Handler.
func (e errorRecorder) WithAttrs([]slog.Attr) slog.Handler { return e }

// WithGroup implements slog.Handler.
func (e errorRecorder) WithGroup(string) slog.Handler { return e }

func messagesOfDataplanes(t *testing.T) (lines []string) {
	t.Helper()
	c := newFakeConsul(t)
	for _, path := range []string{"/v1/agent/self", kindPath, proxyPath} {
		c.set(path, reply{status: 500, body: "No cluster leader"})
	}
	client := c.client(t, slog.DiscardHandler)
	_, err := client.DialGRPC(t.Context())
	_, unknown := client.IsIngressGateway(t.Context(), gateway.ID{Name: "edge"})
	_, _, noProxy := client.ProxyOn(t.Context(), "n1", gateway.ID{}, "edge-1")
	_, _, noID := client.ProxyOn(t.Context(), "n1", gateway.ID{}, "`")
	for _, text := range []string{textOf(t, err), textOf(t, unknown), textOf(t, noProxy), textOf(t, noID)} {
		lines = append(lines, strings.ReplaceAll(text, c.url, "http://consul:8500"))
	}
	return lines
}

func messagesOfSettings(t *testing.T) (lines []string) {
	t.Helper()
	for _, test := range []struct {
		config Config
		env    vars
	}{
		{config: Config{HTTPAddr: "ftp://consul"}},
		{config: Config{HTTPAddr: "8500"}},
		{config: Config{HTTPAddr: ":8500"}},
		{config: Config{HTTPAddr: "http//consul:8500"}},
		{config: Config{HTTPAddr: "consul:"}},
		{config: Config{HTTPAddr: "consul:http"}},
		{config: Config{HTTPAddr: "consul:70000"}},
		{config: Config{HTTPAddr: "unix://"}},
		{config: Config{HTTPAddr: "http://consul:8500,consul:8500"}},
		{config: Config{HTTPAddr: "a:8500,b:8500", GRPCAddr: "a:8502,b:8502,c:8502"}},
		{config: Config{HTTPAddr: "http://consul:8500?token=x"}},
		{config: Config{HTTPAddr: "http://user:password@consul:8500"}},
		{env: vars{"CONSUL_HTTP_SSL": "maybe"}},
		{env: vars{"CONSUL_CACERT": "missing.pem"}},
		{env: vars{"CONSUL_CACERT": "/dev/null"}},
		{env: vars{"CONSUL_HTTP_TOKEN_FILE": "missing"}},
		{config: Config{LoginAuthMethod: "components"}, env: vars{"CONSUL_HTTP_TOKEN": "x"}},
		{config: Config{GRPCAddr: "consul"}},
		{config: Config{GRPCAddr: "http://consul:8502/x"}},
		{env: vars{"CONSUL_GRPC_ADDR": "ftp://consul:1"}},
	} {
		test.config.Getenv = test.env.get
		_, err := NewClient(test.config)
		lines = append(lines, textOf(t, err))
	}
	config := decoded(t, `{
		"envoy_gateway_no_default_bind": "perhaps", "max_request_headers_kb": 1.5, "xds_fetch_timeout_ms": "soon",
		"envoy_gateway_bind_addresses": {"a": "10.0.0.1", "b": {"address": 1, "port": "http"}},
		"envoy_mesh_gateway_bind_addresses": 1
	}`).(map[string]any)
	_, problems := proxyConfig(`service "edge" on node "a"`, config)
	delete(config, "envoy_gateway_bind_addresses")
	_, more := proxyConfig(`service "edge" on node "a"`, config)
	for _, p := range append(problems, more...) {
		lines = append(lines, p.String())
	}
	return lines
}

// textOf returns the text of an error that has to be there.
func textOf(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	return err.Error()
}

func messagesOfAnswers(t *testing.T) (lines []string) {
	t.Helper()
	for _, test := range []struct {
		queryType *queryType
		body      string
	}{
		{agentType, "x"},
		{agentType, "{}"},
		{rootsType, "x"},
		{rootsType, "{}"},
		{rootsType, `{"TrustDomain": "x", "Roots": [{}]}`},
		{leafType, "x"},
		{leafType, "{}"},
		{entriesType, "x"},
		{entriesType, "null"},
		{entriesType, "[{}]"},
		{proxyDefaultsType, "[{}]"},
		{servicesType, "x"},
		{servicesType, "null"},
		{servicesType, "[{}]"},
		{chainType, "x"},
		{chainType, "{}"},
		{chainType, `{"Chain": {"StartNode": "s", "Nodes": {"s": {}, "t": null}}}`},
		{chainType, `{"Chain": {"StartNode": "s", "Nodes": {"s": {}}, "Targets": {"t": null}}}`},
		{healthType, "[{}]"},
		{meshGatewayNamesType, "x"},
		{meshGatewayNamesType, "null"},
		{peeringType, "x"},
		{peeringType, "{}"},
		{podType, "[{}]"},
		{proxyType, "{}"},
		{proxyType, `{"Services": [{}]}`},
	} {
		_, err := test.queryType.decode(nil, response{body: []byte(test.body)})
		lines = append(lines, textOf(t, err))
	}
	for _, body := range []string{"x", "[]", `[{"Resource": "key"}]`} {
		_, err := readACLResponse([]byte(body), []aclCheck{{Resource: "service", Access: "write", Segment: "edge"}})
		lines = append(lines, textOf(t, err))
	}
	for _, err := range []error{
		ErrDenied, ErrUnknownToken, ErrBearerUnused, ErrBearerInvalid, ErrBearerExpired, ErrLoginRefused, errNoJWT, errLoginsClosed, errNotHeld, errLoginLost, errNotLoggedIn,
	} {
		lines = append(lines, err.Error())
	}
	for code, text := range map[int]string{401: "ACL support disabled", 403: "ACL not found"} {
		lines = append(lines, textOf(t, authorizeError(&callError{status: code, text: text})))
	}
	for _, err := range []error{errNoLeader, errAllFiltered, errTooLarge, errTooMuch, errTooManyChecks} {
		lines = append(lines, err.Error())
	}
	return lines
}

func messagesOfSnapshots(t *testing.T) (lines []string) {
	t.Helper()
	s := newManualWatch(t, 2)
	far := chain(service(1).Name)
	far.Targets["far"] = &gateway.Target{ID: "far", Service: "far", Datacenter: "dc2"}
	far.Targets["far"].MeshGateway.Mode = "remote"
	far.Targets["peer"] = &gateway.Target{ID: "peer", Service: "far", Peer: "east"}
	refused := func(q query) error {
		return q.withRemedy(&callError{outcome: outcomeDenied, err: errors.New("consul answered 403: Permission denied")})
	}
	missing := &callError{outcome: outcomeMissing, err: errors.New("consul answered 404: Peering not found for \"east\"")}
	names := partitionQuery(meshGatewayNamesType, "")
	names.filter, names.datacenter = `ServiceKind == "mesh-gateway"`, "dc2"
	newer := chain(service(1).Name)
	newer.unknown = []string{"Chain.Nodes.Newer"}
	peering := query{queryType: peeringType, name: "east", partition: gateway.DefaultTenancy}
	allEntries := query{queryType: entriesType, namespace: gateway.DefaultTenancy, partition: gateway.DefaultTenancy}
	services := query{queryType: servicesType, name: "edge", namespace: gateway.DefaultTenancy, partition: gateway.DefaultTenancy}
	for _, changed := range []map[query]queryResult{
		{serviceQuery(chainType, service(1)): {}},
		{serviceQuery(chainType, service(1)): {err: refused(serviceQuery(chainType, service(1)))}},
		{serviceQuery(chainType, service(1)): {value: chain(service(1).Name), err: refused(serviceQuery(chainType, service(1)))}},
		{s.health(1): {value: instanceAt(1), err: refused(s.health(1))}},
		{services: {err: errAllFiltered}},
		{allEntries: {value: &entries{unknown: map[string][]string{"edge": {"Defaults.Newer", "Listeners.Newer"}}}}},
		{partitionQuery(meshType, ""): {value: &mesh{unknown: []string{"TLS.Newer"}}}},
		{partitionQuery(proxyDefaultsType, ""): {value: &proxyDefaults{unknown: []string{"Newer"}}}},
		{serviceQuery(chainType, service(1)): {value: newer}},
		{serviceQuery(chainType, service(1)): {value: far}, names: {err: refused(names)}, peering: {}},
		{serviceQuery(chainType, service(1)): {value: far}, peering: {err: missing}},
		{serviceQuery(chainType, service(1)): {value: far}, peering: {value: &gateway.Roots{PEMs: []string{"pem"}}, err: refused(peering)}},
	} {
		results := maps.Clone(s.subscription.results)
		maps.Copy(results, changed)
		now, prev := time.Now(), s.state
		prev.last = nil // nothing is known from before
		in := input{id: s.id, now: now, results: results, options: WatcherOptions{HealthTimeout: time.Second, AnswerTimeout: time.Second}}
		in.now = now.Add(time.Minute)
		for _, p := range buildSnapshot(in, buildSnapshot(input{
			id: s.id, now: now, results: results, options: WatcherOptions{HealthTimeout: time.Second, AnswerTimeout: time.Second},
		}, prev).next).snapshot.Problems {
			lines = append(lines, p.String())
		}
	}
	c := newSnapshotBuild(input{id: s.id, now: time.Now()}, state{})
	c.setCertificate(&certState{failures: lastingFailures, err: errBusy, leaf: &gateway.Leaf{ValidBefore: time.Date(2026, 1, 31, 8, 30, 0, 0, time.UTC)}})
	c.addExpiries()
	lines = append(lines, messagesOfExpiries(t, c.id)...)
	for _, p := range c.snapshot.Problems {
		lines = append(lines, p.String())
	}
	far.Targets["none"] = nil
	s.update(serviceQuery(chainType, service(1)), queryResult{value: far})
	s.step(time.Now())
	panicked, _, _ := strings.Cut(s.state.last.Problems[0].String(), " at ") // what follows is a line of code
	return append(lines, panicked)
}

// messagesOfExpiries provokes what is said about a certificate, a root and a cluster peer at each stage of their life.
func messagesOfExpiries(t *testing.T, id gateway.ID) (lines []string) {
	t.Helper()
	begin, end := time.Date(2026, 1, 1, 8, 30, 0, 0, time.UTC), time.Date(2026, 1, 31, 8, 30, 0, 0, time.UTC)
	root := certificateOf(t, "Consul CA", "", begin, end)
	leaf := &gateway.Leaf{CertPEM: certificateOf(t, "edge", "old.consul", begin, end), ValidBefore: end}
	clients := *leaf
	for _, now := range []time.Time{begin.Add(-time.Hour), end.Add(-2 * 24 * time.Hour), end} {
		b := newSnapshotBuild(input{id: id, now: now}, state{})
		b.next.roots.signs = root
		b.snapshot.Peers = map[string]*gateway.Roots{"east": {PEMs: []string{root}}}
		b.snapshot.Leaf, b.snapshot.DownstreamLeaf, b.snapshot.Roots = leaf, &clients, &gateway.Roots{TrustDomain: "new.consul"}
		b.addExpiries()
		if now.Equal(end) {
			b.prev.since = map[string]time.Time{"a certificate of the trust domain new.consul": begin}
			b.keepTrustDomain()
		}
		for _, p := range b.snapshot.Problems {
			lines = append(lines, p.String())
		}
	}
	return lines
}

func messagesOfCertificates(t *testing.T) (lines []string) {
	t.Helper()
	for code, text := range map[codes.Code]string{
		codes.ResourceExhausted: "Operation rate limited",
		codes.Unavailable:       "connection refused",
		codes.Unimplemented:     "unknown service hashicorp.consul.connectca.ConnectCAService",
		codes.PermissionDenied:  "Permission denied",
		codes.Unauthenticated:   "ACL not found",
		codes.Internal:          "no connect CA roots",
	} {
		lines = append(lines, signError(status.Error(code, text), "dns:///10.0.0.1:8502", "token").Error())
	}
	ca := newFakeCA(t)
	sign := func(ctx context.Context, csr string) (string, error) { return ca.sign(ctx, agent{}, csr) }
	request := requestFor("one", "a.example")
	good, err := requestCertificate(t.Context(), request, sign)
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string]func(context.Context, string) (string, error){
		"not PEM": func(context.Context, string) (string, error) { return "", nil },
		"a key":   func(context.Context, string) (string, error) { return good.CertPEM, nil },
		"names": func(ctx context.Context, csr string) (string, error) {
			ca.drop = true
			defer func() { ca.drop = false }()
			return sign(ctx, csr)
		},
		"lifetime": func(ctx context.Context, csr string) (string, error) {
			ttl := ca.ttl
			ca.ttl = 0
			defer func() { ca.ttl = ttl }()
			return sign(ctx, csr)
		},
	}
	for _, answer := range answers {
		_, err := requestCertificate(t.Context(), request, answer)
		lines = append(lines, textOf(t, err))
	}
	_, err = requestCertificate(t.Context(), requestFor("one", "ü"), sign)
	lines = append(lines, textOf(t, err))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := newCSR(certRequest{uri: "spiffe://td.consul/ns/default/dc/dc1/svc/other"}, key)
	if err != nil {
		t.Fatal(err)
	}
	other, err := sign(t.Context(), csr)
	if err != nil {
		t.Fatal(err)
	}
	_, err = verifySigned(other, request, key)
	return append(lines, textOf(t, err))
}

// messagesOfRequests are those of requests without a usable answer.
func messagesOfRequests(t *testing.T) (lines []string) {
	t.Helper()
	for code, text := range map[int]string{
		http.StatusForbidden:       "ACL not found",
		http.StatusTooManyRequests: "Your IP is issuing too many concurrent connections, please rate limit your calls",
	} {
		lines = append(lines, textOf(t, askMesh(t, clientOf(t, refuse(code, text)))))
	}
	w := newFakeConsul(t).watcher(t)
	lines = append(lines, textOf(t, w.Ready()), textOf(t, w.Watch(t.Context(), gateway.ID{}, nil)), errNoAnswerYet.Error())
	synctest.Test(t, func(t *testing.T) {
		c := newTestClient(t, Config{HTTPAddr: "consul:8500"})
		c.watchHTTP.Transport, c.aclHTTP.Transport, c.watchdogHTTP.Transport = silent{}, silent{}, silent{}
		lines = append(lines, textOf(t, askMesh(t, c)))
		_, noAnswer := c.try(t.Context(), c.targets.current())
		lines = append(lines, textOf(t, noAnswer))
		two := newTestClient(t, Config{HTTPAddr: "consul:8500,https://other:8501"})
		two.watchdogHTTP.Transport = silent{}
		lines = append(lines, textOf(t, newWatchdog(two, newWatchManager(two, time.Minute)).useNext(t.Context(), errNoAnswerYet)))
		c.watchHTTP.Transport = stalled{}
		_, err := c.query(t.Context(), query{queryType: meshType}, 1, time.Minute)
		lines = append(lines, textOf(t, err))
		lines = append(lines, textOf(t, NewAuthorizer(c, AuthorizerOptions{}).Authorize(t.Context(), Caller{}, gateway.ID{Name: "edge"})))
		ctx, cancel := context.WithCancel(t.Context())
		w := NewWatcher(c, WatcherOptions{})
		done := make(chan error)
		go func() { done <- w.Run(ctx) }()
		synctest.Wait()
		lines = append(lines, textOf(t, w.Ready()))
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return lines
}

// messagesOfLogins are those of logins that fail.
func messagesOfLogins(t *testing.T) (lines []string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	logIn := func(status int, text, file string) {
		c := newTestClient(t, Config{HTTPAddr: "https://consul:8501", LoginAuthMethod: "components", LoginBearerTokenFile: file})
		c.aclHTTP.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
		})
		_, err := c.tokens.login.logIn(t.Context(), c)
		lines = append(lines, strings.ReplaceAll(textOf(t, err), dir, "DIR"))
	}
	logIn(http.StatusOK, "", filepath.Join(dir, "none"))
	logIn(http.StatusOK, "", file)
	if err := os.WriteFile(file, []byte("sesame"), 0o600); err != nil {
		t.Fatal(err)
	}
	logIn(http.StatusOK, "{}", file)
	logIn(http.StatusForbidden, "Permission denied", file)
	logIn(http.StatusUnauthorized, "ACL support disabled", file)
	logIn(http.StatusInternalServerError, "lookup failed: [invalid bearer token, Token has expired]", file)
	logIn(http.StatusInternalServerError, `auth method "components" not found`, file)
	logIn(http.StatusInternalServerError, "No cluster leader", file)
	return lines
}

// stalled sends the beginning of an answer.
type stalled struct{}

// RoundTrip implements http.RoundTripper.
func (stalled) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: stalledBody{r.Context()}}, nil
}

type stalledBody struct{ ctx context.Context }

// Read implements io.Reader.
func (b stalledBody) Read([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

// Close implements io.Closer.
func (stalledBody) Close() error { return nil }
