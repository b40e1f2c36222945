package demo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// host is the name that the client asks the gateway for.
const host = "static-server.ingress.consul"

// ask is the client: one request on a connection of its own from clientIP to
// addr. It gives the status and the body of the answer. It does without
// http.Client, which takes an answer that comes before it has sent its request
// for a mistake and asks again; a gateway that is given a PROXY header which
// it does not know answers that early.
func ask(ctx context.Context, addr string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/", http.NoBody)
	if err != nil {
		return 0, "", err
	}
	req.Close = true
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientIP)}}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, "", fmt.Errorf("client: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	status, body, err := exchange(conn, req)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return 0, "", fmt.Errorf("client: %w", err)
	}
	return status, body, nil
}

func exchange(conn net.Conn, req *http.Request) (int, string, error) {
	if err := req.Write(conn); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}
