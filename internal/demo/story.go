package demo

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// result is what one request led to.
type result struct {
	response string // that the client got
	log      logEntry
	service  string // what the service got
}

// What the client and the service got.
const (
	okResponse     = `200 OK "` + greeting + `"`
	noForwardedFor = "no x-forwarded-for"
	notReached     = "nothing: the request did not reach it"
)

// gateway makes requests and changes the mode. It is the lab, or a test's fake.
type gateway interface {
	request(ctx context.Context, header bool) (result, error)
	setStrict(ctx context.Context) (time.Duration, error)
}

// scene is one request of the story.
type scene struct {
	title  string
	header bool   // the balancer sends a PROXY header
	strict bool   // the gateway's mode changes to strict before
	want   result // with addresses that have no port
}

// scenes are the lab's three requests.
var scenes = []scene{{
	title: "mode off, the balancer sends no PROXY header",
	want:  result{okResponse, logEntry{Remote: balancerIP, Code: 200}, noForwardedFor},
}, {
	title:  "mode off, the balancer sends a PROXY v2 header",
	header: true,
	want:   result{"400 Bad Request", logEntry{Remote: balancerIP, Code: 400}, notReached},
}, {
	title:  "mode strict, the balancer sends a PROXY v2 header",
	header: true,
	strict: true,
	want:   result{okResponse, logEntry{Remote: clientIP, Direct: balancerIP, Code: 200}, "x-forwarded-for: " + clientIP},
}}

// runScenes makes the requests and prints their results. It returns an error at the first result that is not the
// expected one.
func runScenes(ctx context.Context, g gateway, out io.Writer) error {
	for i, s := range scenes {
		if s.strict {
			took, err := g.setStrict(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "\nSet usher.proxy_protocol.mode = %q in proxy-defaults: Envoy applied it after %d ms, without a restart.\n",
				modeStrict, took.Milliseconds())
		}
		fmt.Fprintf(out, "\n%d. %s\n", i+1, s.title)
		got, err := g.request(ctx, s.header)
		if err != nil {
			return fmt.Errorf("request %d (%s): %w", i+1, s.title, err)
		}
		for _, line := range got.lines() {
			fmt.Fprintf(out, "   %s\n", line)
		}
		got.log.Remote, got.log.Direct = hostOf(got.log.Remote), hostOf(got.log.Direct)
		if got != s.want {
			want := strings.Fields(strings.Join(s.want.lines(), ";\n"))
			return fmt.Errorf("request %d (%s): expected: %s", i+1, s.title, strings.Join(want, " "))
		}
	}
	return nil
}

// lines returns what the client, the access log and the service got.
func (r result) lines() []string {
	lines := []string{
		"client got   " + r.response,
		fmt.Sprintf("access log   response_code %d, downstream_remote_address %s", r.log.Code, withOwner(r.log.Remote)),
	}
	if r.log.Direct != "" {
		lines = append(lines, "             downstream_direct_remote_address "+withOwner(r.log.Direct))
	}
	return append(lines, "service got  "+r.service)
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

// hostOf returns the address without its port.
func hostOf(addr string) string {
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return addr
}
