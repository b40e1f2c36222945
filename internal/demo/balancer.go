package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	proxyproto "github.com/pires/go-proxyproto"
)

// balancer relays TCP connections as a network load balancer with IP targets
// does: to the target it shows an address of its own, not the client's.
type balancer struct {
	ip     net.IP // it connects to the target from here
	target string // host:port
	// header puts a PROXY protocol v2 header with the client's address in
	// front of what the client sends
	// (https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt).
	header bool
	logger *slog.Logger
}

// Run relays what comes in on ln until ctx ends, and then ends every
// connection. It closes ln.
func (b *balancer) Run(ctx context.Context, ln net.Listener) error {
	var relays sync.WaitGroup
	defer relays.Wait()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		client, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				client.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("balancer on %s: %w", ln.Addr(), err)
		}
		relays.Go(func() {
			if err := b.relay(ctx, client); err != nil && ctx.Err() == nil {
				b.logger.Debug("balancer lost a connection", "client", client.RemoteAddr().String(), "error", err)
			}
		})
	}
}

// relay connects a client with the target until both have said all, one of
// them broke off, or ctx ended.
func (b *balancer) relay(ctx context.Context, client net.Conn) error {
	defer client.Close()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: b.ip}}
	target, err := dialer.DialContext(ctx, "tcp", b.target)
	if err != nil {
		return err
	}
	defer target.Close()
	breakOff := func() {
		client.Close()
		target.Close()
	}
	stop := context.AfterFunc(ctx, breakOff)
	defer stop()

	if b.header {
		h := proxyproto.HeaderProxyFromAddrs(2, client.RemoteAddr(), client.LocalAddr())
		if _, err := h.WriteTo(target); err != nil {
			return fmt.Errorf("PROXY header: %w", err)
		}
	}
	var there, back error
	var both sync.WaitGroup
	both.Go(func() { there = forward(target, client, breakOff) })
	both.Go(func() { back = forward(client, target, breakOff) })
	both.Wait()
	return errors.Join(there, back)
}

// forward copies until from has said all, and tells to so. It breaks off both
// directions when either connection fails.
func forward(to, from net.Conn, breakOff func()) error {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.(*net.TCPConn).CloseWrite()
	}
	if err != nil {
		breakOff()
	}
	return err
}
