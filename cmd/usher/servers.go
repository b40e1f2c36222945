package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/usherproxy/usher/internal/dataplane"
	"github.com/usherproxy/usher/xds"
)

// servers are the servers for Envoys, for consul-dataplanes and for Kubernetes, with the ports that they have bound.
type servers struct {
	xds         *xds.Server
	xdsListener net.Listener
	// dataplane and its port are nil without --dataplane-addr.
	dataplane         *dataplane.Server
	dataplaneListener net.Listener
	webhook           *webhook // nil without --webhook-addr
	transport         transport
}

// newServers returns the xDS server and, if the flags ask for it, the webhook. It binds their ports.
func newServers(ctx context.Context, o serveOptions, like xds.Options, t transport) (*servers, error) {
	l, err := listen(ctx, o.xdsAddr)
	if err != nil {
		return nil, fmt.Errorf("--xds-addr %s: %w", o.xdsAddr, err)
	}
	hook, err := o.webhook.listen(ctx, t, like.Logger)
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return &servers{xds: xds.NewServer(like), xdsListener: l, webhook: hook, transport: t}, nil
}

// serve returns when all servers have stopped or are drained; the webhook does not drain. An error of one stops the others.
func (s *servers) serve() error {
	var all errgroup.Group
	start := func(serve func(net.Listener) error, l net.Listener) {
		all.Go(func() error {
			err := serve(l)
			if err != nil {
				s.stop()
			}
			return err
		})
	}
	start(s.xds.Serve, s.xdsListener)
	if s.dataplane != nil {
		start(s.dataplane.Serve, s.dataplaneListener)
	}
	if s.webhook != nil {
		start(s.webhook.serve, s.webhook.listener)
	}
	return all.Wait()
}

// stop ends all streams and connections.
func (s *servers) stop() {
	if s.dataplane != nil {
		s.dataplane.Stop()
	}
	if s.webhook != nil {
		s.webhook.stop()
	}
	s.xds.Stop()
}

// drain drains the servers at the same time, as xds.Server.Drain does. In the dataplane server, the streams of gateways end
// with those of the xDS server.
func (s *servers) drain(ctx context.Context, over time.Duration) {
	var all sync.WaitGroup
	all.Go(func() { s.xds.Drain(ctx, over) })
	if s.dataplane != nil {
		all.Go(func() { s.dataplane.Drain(ctx, over) })
	}
	all.Wait()
}

// close releases the ports of servers that do not serve.
func (s *servers) close() {
	_ = s.xdsListener.Close()
	if s.dataplaneListener != nil {
		_ = s.dataplaneListener.Close()
	}
	if s.webhook != nil {
		_ = s.webhook.listener.Close()
	}
}

// addresses returns the ports for a log.
func (s *servers) addresses() []any {
	addresses := []any{"xds", s.xdsListener.Addr().String()}
	if s.dataplaneListener != nil {
		addresses = append(addresses, "dataplane", s.dataplaneListener.Addr().String())
	}
	if s.webhook != nil {
		addresses = append(addresses, "webhook", s.webhook.listener.Addr().String())
	}
	return addresses
}
