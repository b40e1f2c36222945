package demo

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
)

func TestTheServiceReportsTheHeadersOfARequestAndResponds(t *testing.T) {
	requests := make(chan string, 1)
	addr := start(t, func(ctx context.Context, ln net.Listener) error { return runService(ctx, ln, requests) })
	req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/any/path", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-For", "127.0.0.7")
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || string(body) != "hello world" {
		t.Errorf("got %d %q, want 200 %q", resp.StatusCode, body, "hello world")
	}
	if got := <-requests; got != "x-forwarded-for: 127.0.0.7" {
		t.Errorf("the service got %q, want the header", got)
	}
}

// start runs a part on a loopback port of its own until the test ends, and
// gives its address. The test fails if the part fails.
func start(t *testing.T, run func(context.Context, net.Listener) error) string {
	t.Helper()
	ln := openPort(t, "127.0.0.1")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v, want nil", err)
		}
	})
	return ln.Addr().String()
}

func openPort(t *testing.T, ip string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}
