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

// script is a stage on which every request comes out as written.
type script struct {
	outcomes []outcome
	calls    []string
	err      error // of the change of mode
}

func (s *script) request(_ context.Context, header bool) (outcome, error) {
	s.calls = append(s.calls, fmt.Sprintf("request with header %t", header))
	if len(s.outcomes) == 0 {
		return outcome{}, errors.New("no more outcomes")
	}
	next := s.outcomes[0]
	s.outcomes = s.outcomes[1:]
	return next, nil
}

func (s *script) makeStrict(context.Context) (time.Duration, error) {
	s.calls = append(s.calls, "strict")
	return 12 * time.Millisecond, s.err
}

// asItShould gives the outcomes of a lab that works.
func asItShould() []outcome {
	return []outcome{
		{status: 200, body: "hello world", reached: true, logged: logEntry{remote: "127.0.0.2:40001", code: 200}},
		{status: 400, body: "Bad Request", logged: logEntry{remote: "127.0.0.2:40002", code: 400}},
		{
			status: 200, body: "hello world", reached: true, forwardedFor: []string{"127.0.0.7"},
			logged: logEntry{remote: "127.0.0.7:50003", direct: "127.0.0.2:40003", code: 200},
		},
	}
}

func TestTheStoryPrintsWhatClientLogAndServiceSay(t *testing.T) {
	var out bytes.Buffer
	on := &script{outcomes: asItShould()}
	if err := tell(t.Context(), on, &out); err != nil {
		t.Fatal(err)
	}
	const want = `
1. mode off, the balancer sends no PROXY header
   client got   200 OK "hello world"
   access log   response_code 200, downstream_remote_address 127.0.0.2:40001 (the load balancer)
   service saw  no x-forwarded-for

2. mode off, the balancer sends a PROXY v2 header
   client got   400 Bad Request
   access log   response_code 400, downstream_remote_address 127.0.0.2:40002 (the load balancer)
   service saw  nothing, the request did not come so far

proxy-defaults now says usher.proxy_protocol.mode = "strict"; Envoy has it after 12 ms, without a restart

3. mode strict, the balancer sends a PROXY v2 header
   client got   200 OK "hello world"
   access log   response_code 200, downstream_remote_address 127.0.0.7:50003 (the client)
                downstream_direct_remote_address 127.0.0.2:40003 (the load balancer)
   service saw  x-forwarded-for: 127.0.0.7
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	calls := []string{"request with header false", "request with header true", "strict", "request with header true"}
	if diff := cmp.Diff(calls, on.calls); diff != "" {
		t.Errorf("what was done (-want +got):\n%s", diff)
	}
}

func TestWhatDiffersFromTheStoryIsOneClearError(t *testing.T) {
	for name, tc := range map[string]struct {
		request int // counted from 0
		spoil   func(*outcome)
		want    string
	}{
		"status":         {0, func(o *outcome) { o.status = 503 }, "the client's answer is 503, it should be 200"},
		"body":           {0, func(o *outcome) { o.body = "bye" }, `the answer's body is "bye", it should be "hello world"`},
		"logged code":    {1, func(o *outcome) { o.logged.code = 0 }, "the logged response_code is 0, it should be 400"},
		"no refusal":     {1, func(o *outcome) { o.status = 200 }, "the client's answer is 200, it should be 400"},
		"got through":    {1, func(o *outcome) { o.reached = true }, "that the service got the request is true, it should be false"},
		"logged address": {2, func(o *outcome) { o.logged.remote = "127.0.0.2:1" }, "the logged downstream_remote_address is 127.0.0.2:1, it should be 127.0.0.7"},
		"no direct":      {2, func(o *outcome) { o.logged.direct = "" }, "the logged downstream_direct_remote_address is nothing, it should be 127.0.0.2"},
		"extra direct":   {0, func(o *outcome) { o.logged.direct = "127.0.0.2:1" }, "the logged downstream_direct_remote_address is 127.0.0.2:1, it should be nothing"},
		"forwarded":      {2, func(o *outcome) { o.forwardedFor = nil }, "what the service saw is no x-forwarded-for, it should be x-forwarded-for: 127.0.0.7"},
	} {
		t.Run(name, func(t *testing.T) {
			outcomes := asItShould()
			tc.spoil(&outcomes[tc.request])
			on := &script{outcomes: outcomes}
			var out bytes.Buffer
			err := tell(t.Context(), on, &out)
			want := fmt.Sprintf("request %d (%s): %s", tc.request+1, scenes[tc.request].title, tc.want)
			if err == nil || err.Error() != want {
				t.Errorf("got error %v\nwant      %s", err, want)
			}
			if left := 2 - tc.request; len(on.outcomes) != left {
				t.Errorf("%d requests are left, want %d: the story ends at the error", len(on.outcomes), left)
			}
			if !strings.Contains(out.String(), fmt.Sprintf("\n%d. ", tc.request+1)) {
				t.Errorf("the request that went wrong is not described:\n%s", out.String())
			}
		})
	}
}

func TestAModeThatDoesNotArriveEndsTheStory(t *testing.T) {
	on := &script{outcomes: asItShould(), err: errors.New("not there after 30s")}
	if err := tell(t.Context(), on, &bytes.Buffer{}); !errors.Is(err, on.err) {
		t.Errorf("got error %v, want %v", err, on.err)
	}
}
