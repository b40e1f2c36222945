package demo

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// outcome is what came of one request.
type outcome struct {
	status       int
	body         string
	logged       logEntry
	reached      bool     // the service got the request
	forwardedFor []string // the X-Forwarded-For headers at the service
}

// stage is what the story plays on: the lab, or a test's.
type stage interface {
	request(ctx context.Context, header bool) (outcome, error)
	makeStrict(ctx context.Context) (time.Duration, error)
}

// scene is one request of the story.
type scene struct {
	title  string
	header bool    // the balancer sends a PROXY header
	strict bool    // the gateway's mode is strict
	want   outcome // with addresses that have no port
}

// scenes are the lab's three requests. The mode only ever changes to strict.
var scenes = []scene{
	{
		title: "mode off, the balancer sends no PROXY header",
		want:  outcome{status: 200, body: greeting, logged: logEntry{remote: balancerIP, code: 200}, reached: true},
	},
	{
		title:  "mode off, the balancer sends a PROXY v2 header",
		header: true,
		want:   outcome{status: 400, logged: logEntry{remote: balancerIP, code: 400}},
	},
	{
		title:  "mode strict, the balancer sends a PROXY v2 header",
		header: true,
		strict: true,
		want: outcome{
			status: 200, body: greeting, reached: true, forwardedFor: []string{clientIP},
			logged: logEntry{remote: clientIP, direct: balancerIP, code: 200},
		},
	},
}

func introduce(out io.Writer, gatewayAddr string) {
	fmt.Fprintf(out, "client %s --> load balancer %s --> gateway (Envoy) %s --> service static-server\n", clientIP, balancerIP, gatewayAddr)
	fmt.Fprintf(out, "The client asks for http://%s/ three times.\n", host)
}

// tell plays the scenes and writes what came of each. It ends with an error at
// the first that does not go as it should.
func tell(ctx context.Context, on stage, out io.Writer) error {
	strict := false
	for i, s := range scenes {
		if s.strict && !strict {
			took, err := on.makeStrict(ctx)
			if err != nil {
				return err
			}
			strict = true
			fmt.Fprintf(out, "\nproxy-defaults now says usher.proxy_protocol.mode = %q; Envoy has it after %d ms, without a restart\n", modeStrict, took.Milliseconds())
		}
		fmt.Fprintf(out, "\n%d. %s\n", i+1, s.title)
		got, err := on.request(ctx, s.header)
		if err != nil {
			return fmt.Errorf("request %d (%s): %w", i+1, s.title, err)
		}
		describe(out, got)
		if wrong := difference(s.want, got); wrong != "" {
			return fmt.Errorf("request %d (%s): %s", i+1, s.title, wrong)
		}
	}
	return nil
}

// describe writes what client, access log and service have to say.
func describe(out io.Writer, o outcome) {
	answer := fmt.Sprintf("%d %s", o.status, http.StatusText(o.status))
	if o.status == http.StatusOK {
		answer += fmt.Sprintf(" %q", o.body)
	}
	fmt.Fprintf(out, "   client got   %s\n", answer)
	fmt.Fprintf(out, "   access log   response_code %d, downstream_remote_address %s\n", o.logged.code, describeAddr(o.logged.remote))
	if o.logged.direct != "" {
		fmt.Fprintf(out, "                downstream_direct_remote_address %s\n", describeAddr(o.logged.direct))
	}
	saw := "nothing, the request did not come so far"
	if o.reached {
		saw = describeForwardedFor(o.forwardedFor)
	}
	fmt.Fprintf(out, "   service saw  %s\n", saw)
}

// describeAddr adds whose address it is.
func describeAddr(addr string) string {
	switch hostOf(addr) {
	case clientIP:
		return addr + " (the client)"
	case balancerIP:
		return addr + " (the load balancer)"
	}
	return addr
}

func describeForwardedFor(values []string) string {
	if len(values) == 0 {
		return "no x-forwarded-for"
	}
	return "x-forwarded-for: " + strings.Join(values, ", ")
}

// difference says on one line what is not as it should be; "" means nothing.
func difference(want, got outcome) string {
	differ := func(what string, want, got any) string {
		return fmt.Sprintf("%s is %v, it should be %v", what, got, want)
	}
	switch {
	case got.status != want.status:
		return differ("the client's answer", want.status, got.status)
	case want.body != "" && got.body != want.body:
		return differ("the answer's body", fmt.Sprintf("%q", want.body), fmt.Sprintf("%q", got.body))
	case got.logged.code != want.logged.code:
		return differ("the logged response_code", want.logged.code, got.logged.code)
	case hostOf(got.logged.remote) != want.logged.remote:
		return differ("the logged downstream_remote_address", want.logged.remote, got.logged.remote)
	case hostOf(got.logged.direct) != want.logged.direct:
		return differ("the logged downstream_direct_remote_address", orNothing(want.logged.direct), orNothing(got.logged.direct))
	case got.reached != want.reached:
		return differ("that the service got the request", want.reached, got.reached)
	case !slices.Equal(got.forwardedFor, want.forwardedFor):
		return differ("what the service saw", describeForwardedFor(want.forwardedFor), describeForwardedFor(got.forwardedFor))
	}
	return ""
}

// hostOf gives the address without its port.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}
