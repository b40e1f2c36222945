//go:build e2e

package main

import (
	"bytes"
	"context"
	"fmt"
	"time"
)

// woken is the outcome of a bare blocking query.
type woken struct {
	at  time.Time
	err error
}

// watchPort waits for a port at a service with bare blocking queries: the
// soonest at which anybody can learn of it from Consul's HTTP API. It sends one
// outcome at most a context's life later.
func (c *consulServer) watchPort(ctx context.Context, service string, port int) <-chan woken {
	out := make(chan woken, 1)
	go func() {
		at, err := c.awaitPort(ctx, service, port)
		out <- woken{at, err}
	}()
	return out
}

func (c *consulServer) awaitPort(ctx context.Context, service string, port int) (time.Time, error) {
	path := "/v1/health/connect/" + service + "?stale"
	wanted := fmt.Appendf(nil, `"Port":%d`, port)
	index := "0"
	for {
		body, next, err := c.get(ctx, path+"&wait=5m&index="+index)
		if err != nil {
			return time.Time{}, err
		}
		if bytes.Contains(body, wanted) {
			return time.Now(), nil
		}
		index = next
	}
}
