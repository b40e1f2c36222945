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

// result is what one request led to.
type result struct {
	status       int
	body         string
	log          logEntry
	reached      bool     // the service got the request
	forwardedFor []string // the X-Forwarded-For headers at the service
}

// gateway makes requests and changes the mode. It is the lab, or a test's fake.
type gateway interface {
	request(ctx context.Context, header bool) (result, error)
	setStrict(ctx context.Context) (time.Duration, error)
}

// scene is one request of the story.
type scene struct {
	title  string
	header bool   // the balancer sends a PROXY header
	strict bool   // the gateway's mode is strict
	want   result // with addresses that have no port
}

// scenes are the lab's three requests. The mode changes to strict and never back.
var scenes = []scene{
	{
		title: "mode off, the balancer sends no PROXY header",
		want:  result{status: 200, body: greeting, log: logEntry{remote: balancerIP, code: 200}, reached: true},
	},
	{
		title:  "mode off, the balancer sends a PROXY v2 header",
		header: true,
		want:   result{status: 400, log: logEntry{remote: balancerIP, code: 400}},
	},
	{
		title:  "mode strict, the balancer sends a PROXY v2 header",
		header: true,
		strict: true,
		want: result{
			status: 200, body: greeting, reached: true, forwardedFor: []string{clientIP},
			log: logEntry{remote: clientIP, direct: balancerIP, code: 200},
		},
	},
}

func printTopology(out io.Writer, gatewayAddr string) {
	fmt.Fprintf(out, "client %s --> load balancer %s --> gateway (Envoy) %s --> service static-server\n", clientIP, balancerIP, gatewayAddr)
	fmt.Fprintf(out, "The client requests http://%s/ three times.\n", host)
}

// runScenes makes the requests and prints their results. It returns an error at
// the first result that is not the expected one.
func runScenes(ctx context.Context, g gateway, out io.Writer) error {
	strict := false
	for i, s := range scenes {
		if s.strict && !strict {
			took, err := g.setStrict(ctx)
			if err != nil {
				return err
			}
			strict = true
			fmt.Fprintf(out, "\nSet usher.proxy_protocol.mode = %q in proxy-defaults: Envoy applied it after %d ms, without a restart.\n",
				modeStrict, took.Milliseconds())
		}
		fmt.Fprintf(out, "\n%d. %s\n", i+1, s.title)
		got, err := g.request(ctx, s.header)
		if err != nil {
			return fmt.Errorf("request %d (%s): %w", i+1, s.title, err)
		}
		got.print(out)
		if wrong := difference(s.want, got); wrong != "" {
			return fmt.Errorf("request %d (%s): %s", i+1, s.title, wrong)
		}
	}
	return nil
}

// print prints what the client, the access log and the service got.
func (r result) print(out io.Writer) {
	response := fmt.Sprintf("%d %s", r.status, http.StatusText(r.status))
	if r.status == http.StatusOK {
		response += fmt.Sprintf(" %q", r.body)
	}
	fmt.Fprintf(out, "   client got   %s\n", response)
	fmt.Fprintf(out, "   access log   response_code %d, downstream_remote_address %s\n", r.log.code, withOwner(r.log.remote))
	if r.log.direct != "" {
		fmt.Fprintf(out, "                downstream_direct_remote_address %s\n", withOwner(r.log.direct))
	}
	received := "nothing: the request did not reach it"
	if r.reached {
		received = formatForwardedFor(r.forwardedFor)
	}
	fmt.Fprintf(out, "   service got  %s\n", received)
}

// withOwner adds whose address it is.
func withOwner(addr string) string {
	switch hostOf(addr) {
	case clientIP:
		return addr + " (the client)"
	case balancerIP:
		return addr + " (the load balancer)"
	}
	return addr
}

func formatForwardedFor(values []string) string {
	if len(values) == 0 {
		return "no x-forwarded-for"
	}
	return "x-forwarded-for: " + strings.Join(values, ", ")
}

// difference says in one line what differs from the expected result; "" means
// nothing.
func difference(want, got result) string {
	orNone := func(s string) string {
		if s == "" {
			return "missing"
		}
		return s
	}
	for _, c := range []struct {
		what      string
		same      bool
		want, got any
	}{
		{"the client got status", got.status == want.status, want.status, got.status},
		{"the client got body", want.body == "" || got.body == want.body, fmt.Sprintf("%q", want.body), fmt.Sprintf("%q", got.body)},
		{"the logged response_code is", got.log.code == want.log.code, want.log.code, got.log.code},
		{"the logged downstream_remote_address is", hostOf(got.log.remote) == want.log.remote, want.log.remote, got.log.remote},
		{
			"the logged downstream_direct_remote_address is", hostOf(got.log.direct) == want.log.direct,
			orNone(want.log.direct), orNone(got.log.direct),
		},
		{"the request reached the service:", got.reached == want.reached, want.reached, got.reached},
		{
			"the service got", slices.Equal(got.forwardedFor, want.forwardedFor),
			formatForwardedFor(want.forwardedFor), formatForwardedFor(got.forwardedFor),
		},
	} {
		if !c.same {
			return fmt.Sprintf("%s %v, expected %v", c.what, c.got, c.want)
		}
	}
	return ""
}

// hostOf returns the address without its port.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
