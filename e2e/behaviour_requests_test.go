//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/e2e/lab"
)

// requestTimeout is the longest that a request of this test may take.
const requestTimeout = 10 * time.Second

// request is what the same client asks both gateways for, one request a
// connection.
type request struct {
	Method  string // GET when empty
	Host    string
	Path    string // "/" when empty
	Header  map[string]string
	Padding int    // the bytes of one more header
	Port    int    // 8080 when 0
	HTTP2   bool   // from the first byte
	GRPC    bool   // the health service's Check
	TLS     uint16 // the newest version that the client speaks; plain text when 0
	Script  string // the value of scriptHeader

	// Times is how often it is made, 1 when 0.
	Times int
	// Hold makes the requests wait for each other: that many reach the service
	// before the rest is made, and all get their answer once Refused of the rest
	// are refused.
	Hold, Refused int

	// Want is what comes of it: the status, and where a service answers, its
	// instance and the path that it saw. It makes sure that what is alike is also
	// right.
	Want string
	// Has are lines which the outcomes have among others.
	Has []string
	// Shares take the place of Want where chance decides: the share of each
	// outcome, 1 in all.
	Shares map[string]float64
}

func (r request) String() string {
	method := cmp.Or(r.Method, http.MethodGet)
	if r.GRPC {
		method = "Check"
	}
	return strings.TrimSpace(fmt.Sprintf("%s :%d %s%s %v %s", method, r.port(), r.Host, r.path(), r.Header, r.Script))
}

func (r request) path() string { return cmp.Or(r.Path, "/") }

func (r request) port() int { return cmp.Or(r.Port, 8080) }

func (r request) times() int { return cmp.Or(r.Times, 1) }

// header is what the client sends.
func (r request) header() http.Header {
	header := http.Header{"User-Agent": {"behaviour"}}
	if r.Script != "" {
		header.Set(scriptHeader, r.Script)
	}
	if r.Padding > 0 {
		header.Set("Padding", strings.Repeat("x", r.Padding))
	}
	for name, value := range r.Header {
		header.Set(name, value)
	}
	return header
}

// outcome is what came of one request.
type outcome struct {
	status string
	failed bool    // there was no answer, and status says why
	seen   *echoed // nil where no service answered
	lines  []string
}

// summary is what request.Want has.
func (o outcome) summary() string {
	if o.seen == nil {
		return o.status
	}
	text := o.status + " " + o.seen.Instance + " " + o.seen.Path
	if o.seen.Attempt > 1 {
		text += fmt.Sprint(" attempt ", o.seen.Attempt)
	}
	return text
}

// result is what one gateway made of a request. Its lines are those of the first
// outcome with each usual summary, and of the access log where the request was made
// once.
type result struct {
	counts map[string]int // by summary
	lines  []string
	err    error
}

func (r result) String() string {
	var out []string
	for _, summary := range slices.Sorted(maps.Keys(r.counts)) {
		if n := r.counts[summary]; n > 1 {
			summary = fmt.Sprint(n, " x ", summary)
		}
		out = append(out, summary)
	}
	return strings.Join(out, ", ")
}

// wantSame makes a request to both gateways at once, and demands the same of both.
func (s *behaviourStory) wantSame(t *testing.T, r request) {
	t.Helper()
	usher, consul := s.sendBoth(r)
	if err := errors.Join(usher.err, consul.err); err != nil {
		t.Errorf("%v: %v", r, err)
		return
	}
	if err := firstDifference(usher.lines, consul.lines); err != nil {
		t.Errorf("%v: %v", r, err)
	}
	for name, got := range map[string]result{"Usher": usher, "Consul's own xDS": consul} {
		if err := r.wants(got); err != nil {
			t.Errorf("%v: on %s %v", r, name, err)
		}
	}
}

// sendBoth makes a request to both gateways at once.
func (s *behaviourStory) sendBoth(r request) (usher, consul result) {
	done := make(chan result, 1)
	go func() { done <- s.sendTo(s.OnConsul, r) }()
	usher = s.sendTo(s.OnUsher, r)
	return usher, <-done
}

// wants says what of a result is not as the request has it.
func (r request) wants(got result) error {
	for _, line := range r.Has {
		if !slices.Contains(got.lines, line) {
			return fmt.Errorf("no %q in\n%s", line, strings.Join(got.lines, "\n"))
		}
	}
	if r.Shares == nil {
		if got.String() != r.Want {
			return fmt.Errorf("got %q, want %q", got, r.Want)
		}
		return nil
	}
	for summary, count := range got.counts {
		p := r.Shares[summary]
		// Five standard deviations are more than chance explains; the two are for
		// shares so small that there is no such thing.
		expected := p * float64(r.times())
		most := 5*math.Sqrt(expected*(1-p)) + 2
		if p == 0 || math.Abs(float64(count)-expected) > most {
			return fmt.Errorf("%d of %d got %s, want a share of %.2f", count, r.times(), summary, p)
		}
	}
	return nil
}

// usual reports whether every gateway gives the outcome at least once.
func (r request) usual(summary string) bool {
	const rare = 0.05
	return r.Shares == nil || r.Shares[summary] >= rare
}

// sendTo makes a request, and waits for the access log of it.
func (s *behaviourStory) sendTo(g *lab.LoadedGateway, r request) result {
	mark, err := loggedPaths(g)
	if err != nil {
		return result{err: err}
	}
	outcomes := s.sendAll(g, r)
	out := result{counts: map[string]int{}}
	answers := 0
	for _, o := range outcomes {
		if !o.failed {
			answers++
		}
		summary := o.summary()
		if out.counts[summary]++; out.counts[summary] == 1 && r.usual(summary) {
			out.lines = append(out.lines, o.lines...)
		}
	}
	entries, err := accessLogSince(g, mark, answers)
	if r.times() == 1 {
		out.lines = append(out.lines, loggedLines(entries)...)
	}
	out.err = err
	return out
}

// sendAll makes a request as often as it says: one after the other, or in two
// parts at once where some are held. The outcomes are sorted by their summary.
func (s *behaviourStory) sendAll(g *lab.LoadedGateway, r request) []outcome {
	var outcomes []outcome
	if r.Hold > 0 {
		outcomes = s.sendHeld(g, r)
	} else {
		for range r.times() {
			outcomes = append(outcomes, s.send(g, r))
		}
	}
	slices.SortStableFunc(outcomes, func(a, b outcome) int { return cmp.Compare(a.summary(), b.summary()) })
	return outcomes
}

// sendHeld makes requests of which some are held until others are refused.
func (s *behaviourStory) sendHeld(g *lab.LoadedGateway, r request) []outcome {
	var outcomes []outcome
	done := make(chan outcome, r.Times)
	start := func(n int) {
		for range n {
			go func() { done <- s.send(g, r) }()
		}
	}
	hold := s.mesh.hold(g.Host)
	start(r.Hold)
	for range r.Hold {
		select {
		case <-hold.arrived:
		case o := <-done: // refused too early; Want shows it
			outcomes = append(outcomes, o)
		}
	}
	start(r.Times - r.Hold)
	for range r.Refused {
		outcomes = append(outcomes, <-done)
	}
	close(hold.released)
	for len(outcomes) < r.Times {
		outcomes = append(outcomes, <-done)
	}
	return outcomes
}

// send makes a request.
func (s *behaviourStory) send(g *lab.LoadedGateway, r request) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	do := s.sendHTTP
	if r.GRPC {
		do = s.sendCheck
	}
	out, err := do(ctx, g, r)
	if err != nil {
		text := unvaried(err.Error())
		return outcome{status: text, failed: true, lines: []string{"answer: none: " + text}}
	}
	return out
}

// tls is how the client speaks TLS. It wants a certificate of the mesh for
// whatever name: Go takes no name with a dot at its end, as Consul writes them.
func (s *behaviourStory) tls(r request) *tls.Config {
	return &tls.Config{
		ServerName: r.Host, MinVersion: tls.VersionTLS10, MaxVersion: r.TLS, InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: s.mesh.roots})
			return err
		},
	}
}

func (s *behaviourStory) sendHTTP(ctx context.Context, g *lab.LoadedGateway, r request) (outcome, error) {
	transport := &http.Transport{
		DialContext: s.Client.Dial, DisableKeepAlives: true, DisableCompression: true, Protocols: new(http.Protocols),
		TLSClientConfig: s.tls(r),
	}
	transport.Protocols.SetHTTP1(!r.HTTP2)
	transport.Protocols.SetUnencryptedHTTP2(r.HTTP2)
	defer transport.CloseIdleConnections()
	scheme := "http"
	if r.TLS != 0 {
		scheme = "https"
	}
	asked, err := http.NewRequestWithContext(ctx, r.Method, scheme+"://"+g.Host.Addr(r.port())+r.path(), nil)
	if err != nil {
		return outcome{}, err
	}
	asked.Host, asked.Header = r.Host, r.header()
	response, err := transport.RoundTrip(asked)
	if err != nil {
		return outcome{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return outcome{}, err
	}
	out := newOutcome(fmt.Sprint(response.StatusCode), response.Proto, string(body), response.Header)
	if response.TLS != nil {
		out.lines = append(out.lines, connectionLines("answer", *response.TLS)...)
	}
	return out, nil
}

// sendCheck calls the health service with gRPC's own client.
func (s *behaviourStory) sendCheck(ctx context.Context, g *lab.LoadedGateway, r request) (outcome, error) {
	security := insecure.NewCredentials()
	if r.TLS != 0 {
		security = credentials.NewTLS(s.tls(r))
	}
	conn, err := grpc.NewClient("passthrough:///"+g.Host.Addr(r.port()),
		grpc.WithTransportCredentials(security), grpc.WithAuthority(r.Host),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return s.Client.Dial(ctx, "tcp", address)
		}))
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	for name, value := range r.Header {
		ctx = metadata.AppendToOutgoingContext(ctx, name, value)
	}
	var header, trailer metadata.MD
	_, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil && len(header)+len(trailer) == 0 {
		return outcome{}, err
	}
	body := strings.Join(header[seenMetadata], "")
	delete(header, seenMetadata)
	out := newOutcome(status.Code(err).String(), "gRPC", body, header)
	out.lines = append(out.lines, headerLines("trailer", trailer)...)
	return out, nil
}

// newOutcome describes an answer; its body is a service's or the gateway's own.
func newOutcome(code, protocol, body string, header map[string][]string) outcome {
	out := outcome{status: code, lines: []string{"answer: status " + code, "answer: protocol " + protocol}}
	out.lines = append(out.lines, headerLines("answer", header)...)
	var seen echoed
	if json.Unmarshal([]byte(body), &seen) != nil {
		out.lines = append(out.lines, masked("answer", "body", body))
		return out
	}
	out.seen = &seen
	out.lines = append(out.lines, seen.lines()...)
	return out
}
