package demo

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	proxyproto "github.com/pires/go-proxyproto"
	"golang.org/x/sync/errgroup"
)

// balancer relays TCP connections as a network load balancer with IP targets does: the target sees balancerIP, not
// the client's address.
type balancer struct {
	target string // host:port
	// header puts a PROXY protocol v2 header with the client's address in front of the client's bytes
	// (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt).
	header bool
	logger *slog.Logger
}

// run relays connections to ln until ctx ends, and then closes all of them. It closes ln.
func (b *balancer) run(ctx context.Context, ln net.Listener) error {
	var relays sync.WaitGroup
	defer relays.Wait()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	for {
		client, err := ln.Accept()
		switch {
		case err == nil:
			relays.Go(func() {
				if err := b.relay(ctx, client); err != nil && ctx.Err() == nil {
					b.logger.Debug("balancer lost a connection", "client", client.RemoteAddr().String(), "error", err)
				}
			})
		case ctx.Err() != nil:
			return nil
		default:
			return fmt.Errorf("balancer on %s: %w", ln.Addr(), err)
		}
	}
}

// relay connects a client with the target until both have sent everything, one of them fails, or ctx ends.
func (b *balancer) relay(ctx context.Context, client net.Conn) error {
	defer client.Close()
	target, err := dial(ctx, balancerIP, b.target)
	if err != nil {
		return err
	}
	defer target.Close()
	directions, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, func() {
		client.Close()
		target.Close()
	})()
	if b.header {
		h := proxyproto.HeaderProxyFromAddrs(2, client.RemoteAddr(), client.LocalAddr())
		if _, err := h.WriteTo(target); err != nil {
			return fmt.Errorf("PROXY header: %w", err)
		}
	}
	// An end of one direction is passed on, and the other one goes on.
	forward := func(to, from net.Conn) error {
		if _, err := io.Copy(to, from); err != nil {
			return err
		}
		return to.(*net.TCPConn).CloseWrite()
	}
	directions.Go(func() error { return forward(target, client) })
	directions.Go(func() error { return forward(client, target) })
	return directions.Wait()
}

// dial connects to an address from a local IP address.
func dial(ctx context.Context, fromIP, to string) (net.Conn, error) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(fromIP)}}
	return dialer.DialContext(ctx, "tcp", to)
}
