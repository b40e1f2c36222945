package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	host     = "static-server.ingress.consul" // that the client requests
	greeting = "hello world"                  // the body of every response of the service
)

// service is the lab's HTTP service. It reports the headers of each request.
type service struct {
	// requests holds the headers of one request, from before its response. The
	// next request waits until they were read.
	requests chan http.Header
}

func newService() *service { return &service{requests: make(chan http.Header, 1)} }

// run serves on ln until ctx ends. It closes ln.
func (s *service) run(ctx context.Context, ln net.Listener) error {
	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("service on %s: %w", ln.Addr(), err)
	}
	return nil
}

// ServeHTTP responds with the greeting.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case s.requests <- r.Header.Clone():
		_, _ = io.WriteString(w, greeting) // fails if the client is gone
	case <-r.Context().Done():
	}
}

// get is the client: it makes one request to addr, on a new connection
// from clientIP, and returns the status and the body of the response.
//
// It does not use http.Client. That takes a response that comes before the end
// of the request for an error and sends the request again. A gateway that gets
// a PROXY header in mode off responds that early.
func get(ctx context.Context, addr string) (status int, body string, err error) {
	defer func() {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			err = fmt.Errorf("client: %w", err)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/", http.NoBody)
	if err != nil {
		return 0, "", err
	}
	req.Close = true
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientIP)}}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if err := req.Write(conn); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}
