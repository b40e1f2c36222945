//go:build e2e

package main

import (
	"context"
	"net"
)

// usherServer is a running Usher in front of the bench's Consul.
type usherServer struct {
	*process
	addr string // of its xDS
}

// startUsher starts Usher, which may take its time to listen.
func startUsher(ctx context.Context, o options, c *consulServer) (*usherServer, error) {
	addr := net.JoinHostPort(c.ip, "18000")
	p, err := launch(ctx, c.dir, "usher", []string{
		o.usherBin, "serve", "--xds-addr", addr, "--admin-addr", net.JoinHostPort(c.ip, "18001"), "--log-level", "warn",
	}, []string{"CONSUL_HTTP_ADDR=" + c.url, "CONSUL_CACERT=" + c.id.ca})
	if err != nil {
		return nil, err
	}
	return &usherServer{process: p, addr: addr}, nil
}
