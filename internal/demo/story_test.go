package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeGateway is a stage on which every request comes out as written.
type fakeGateway struct {
	results []result
	calls   []string
	err     error // of the change of mode
}

func (s *fakeGateway) request(_ context.Context, header bool) (result, error) {
	s.calls = append(s.calls, fmt.Sprintf("request with header %t", header))
	if len(s.results) == 0 {
		return result{}, errors.New("no more results")
	}
	next := s.results[0]
	s.results = s.results[1:]
	return next, nil
}

func (s *fakeGateway) setStrict(context.Context) (time.Duration, error) {
	s.calls = append(s.calls, "strict")
	return 12 * time.Millisecond, s.err
}

// expectedResults gives the results of a lab that works.
func expectedResults() []result {
	return []result{
		{status: 200, body: "hello world", reached: true, log: logEntry{remote: "127.0.0.2:40001", code: 200}},
		{status: 400, body: "Bad Request", log: logEntry{remote: "127.0.0.2:40002", code: 400}},
		{
			status: 200, body: "hello world", reached: true, forwardedFor: []string{"127.0.0.7"},
			log: logEntry{remote: "127.0.0.7:50003", direct: "127.0.0.2:40003", code: 200},
		},
	}
}

func TestTheStoryPrintsWhatClientLogAndServiceGot(t *testing.T) {
	var out bytes.Buffer
	g := &fakeGateway{results: expectedResults()}
	if err := runScenes(t.Context(), g, &out); err != nil {
		t.Fatal(err)
	}
	const want = `
1. mode off, the balancer sends no PROXY header
   client got   200 OK "hello world"
   access log   response_code 200, downstream_remote_address 127.0.0.2:40001 (the load balancer)
   service got  no x-forwarded-for

2. mode off, the balancer sends a PROXY v2 header
   client got   400 Bad Request
   access log   response_code 400, downstream_remote_address 127.0.0.2:40002 (the load balancer)
   service got  nothing: the request did not reach it

Set usher.proxy_protocol.mode = "strict" in proxy-defaults: Envoy applied it after 12 ms, without a restart.

3. mode strict, the balancer sends a PROXY v2 header
   client got   200 OK "hello world"
   access log   response_code 200, downstream_remote_address 127.0.0.7:50003 (the client)
                downstream_direct_remote_address 127.0.0.2:40003 (the load balancer)
   service got  x-forwarded-for: 127.0.0.7
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	calls := []string{"request with header false", "request with header true", "strict", "request with header true"}
	if diff := cmp.Diff(calls, g.calls); diff != "" {
		t.Errorf("what was done (-want +got):\n%s", diff)
	}
}

func TestAnUnexpectedResultIsOneClearError(t *testing.T) {
	for name, tc := range map[string]struct {
		request int // counted from 0
		spoil   func(*result)
		want    string
	}{
		"status":         {0, func(o *result) { o.status = 503 }, "the client got status 503, expected 200"},
		"body":           {0, func(o *result) { o.body = "bye" }, `the client got body "bye", expected "hello world"`},
		"logged code":    {1, func(o *result) { o.log.code = 0 }, "the logged response_code is 0, expected 400"},
		"no refusal":     {1, func(o *result) { o.status = 200 }, "the client got status 200, expected 400"},
		"got through":    {1, func(o *result) { o.reached = true }, "the request reached the service: true, expected false"},
		"logged address": {2, func(o *result) { o.log.remote = "127.0.0.2:1" }, "the logged downstream_remote_address is 127.0.0.2:1, expected 127.0.0.7"},
		"no direct":      {2, func(o *result) { o.log.direct = "" }, "the logged downstream_direct_remote_address is missing, expected 127.0.0.2"},
		"extra direct":   {0, func(o *result) { o.log.direct = "127.0.0.2:1" }, "the logged downstream_direct_remote_address is 127.0.0.2:1, expected missing"},
		"forwarded":      {2, func(o *result) { o.forwardedFor = nil }, "the service got no x-forwarded-for, expected x-forwarded-for: 127.0.0.7"},
	} {
		t.Run(name, func(t *testing.T) {
			results := expectedResults()
			tc.spoil(&results[tc.request])
			g := &fakeGateway{results: results}
			var out bytes.Buffer
			err := runScenes(t.Context(), g, &out)
			want := fmt.Sprintf("request %d (%s): %s", tc.request+1, scenes[tc.request].title, tc.want)
			if err == nil || err.Error() != want {
				t.Errorf("got error %v\nwant      %s", err, want)
			}
			if left := 2 - tc.request; len(g.results) != left {
				t.Errorf("%d requests are left, want %d: the story ends at the error", len(g.results), left)
			}
			if !strings.Contains(out.String(), fmt.Sprintf("\n%d. ", tc.request+1)) {
				t.Errorf("the request that went wrong is not described:\n%s", out.String())
			}
		})
	}
}

func TestAModeThatIsNotAppliedEndsTheStory(t *testing.T) {
	g := &fakeGateway{results: expectedResults(), err: errors.New("not there after 30s")}
	if err := runScenes(t.Context(), g, &bytes.Buffer{}); !errors.Is(err, g.err) {
		t.Errorf("got error %v, want %v", err, g.err)
	}
}
