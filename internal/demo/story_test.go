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
	const greeted, nothing = `200 OK "hello world"`, "nothing: the request did not reach it"
	return []result{
		{greeted, logEntry{Remote: "127.0.0.2:40001", Code: 200}, "no x-forwarded-for"},
		{"400 Bad Request", logEntry{Remote: "127.0.0.2:40002", Code: 400}, nothing},
		{greeted, logEntry{Remote: "127.0.0.7:50003", Direct: "127.0.0.2:40003", Code: 200}, "x-forwarded-for: 127.0.0.7"},
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
	expected := []string{
		`client got 200 OK "hello world"; access log response_code 200, downstream_remote_address 127.0.0.2 (the load balancer); service got no x-forwarded-for`,
		"client got 400 Bad Request; access log response_code 400, downstream_remote_address 127.0.0.2 (the load balancer); service got nothing: the request did not reach it",
		`client got 200 OK "hello world"; access log response_code 200, downstream_remote_address 127.0.0.7 (the client); ` +
			"downstream_direct_remote_address 127.0.0.2 (the load balancer); service got x-forwarded-for: 127.0.0.7",
	}
	for name, tc := range map[string]struct {
		request int // counted from 0
		spoil   func(*result)
	}{
		"status":         {0, func(r *result) { r.response = "503 Service Unavailable" }},
		"body":           {0, func(r *result) { r.response = `200 OK "bye"` }},
		"logged code":    {1, func(r *result) { r.log.Code = 0 }},
		"no refusal":     {1, func(r *result) { r.response = `200 OK "Bad Request"` }},
		"got through":    {1, func(r *result) { r.service = "no x-forwarded-for" }},
		"logged address": {2, func(r *result) { r.log.Remote = "127.0.0.2:1" }},
		"no direct":      {2, func(r *result) { r.log.Direct = "" }},
		"extra direct":   {0, func(r *result) { r.log.Direct = "127.0.0.2:1" }},
		"forwarded":      {2, func(r *result) { r.service = "no x-forwarded-for" }},
	} {
		t.Run(name, func(t *testing.T) {
			results := expectedResults()
			tc.spoil(&results[tc.request])
			g := &fakeGateway{results: results}
			var out bytes.Buffer
			err := runScenes(t.Context(), g, &out)
			want := fmt.Sprintf("request %d (%s): expected: %s", tc.request+1, scenes[tc.request].title, expected[tc.request])
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
