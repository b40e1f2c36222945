package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

const (
	host     = "static-server.ingress.consul" // that the client requests
	greeting = "hello world"                  // the body of every response of the service
)

// runService runs the lab's HTTP service on ln until ctx ends. It closes ln. requests receives the X-Forwarded-For of
// each request before the response.
func runService(ctx context.Context, ln net.Listener, requests chan<- string) error {
	greet := func(w http.ResponseWriter, r *http.Request) {
		received := noForwardedFor
		if values := r.Header.Values("X-Forwarded-For"); len(values) > 0 {
			received = "x-forwarded-for: " + strings.Join(values, ", ")
		}
		select {
		case requests <- received:
			_, _ = io.WriteString(w, greeting) // fails if the client is gone
		case <-r.Context().Done():
		}
	}
	server := &http.Server{Handler: http.HandlerFunc(greet), ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("service on %s: %w", ln.Addr(), err)
	}
	return nil
}

// get is the client: it makes one request to addr, on a new connection from clientIP, and returns the status
// of the response, and the body of a good one.
//
// It does not use http.Client. That takes a response that comes before the end of the request for an error and sends
// the request again. A gateway that gets a PROXY header in mode off responds that early.
func get(ctx context.Context, addr string) (response string, err error) {
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
		return "", err
	}
	req.Close = true
	conn, err := dial(ctx, clientIP, addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if err := req.Write(conn); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	response = fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	if resp.StatusCode == http.StatusOK {
		response += fmt.Sprintf(" %q", body)
	}
	return response, err
}
