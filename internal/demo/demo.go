// Package demo runs the lab on one machine: a client, a load balancer that can send PROXY protocol v2, an Envoy that
// gets its configuration from Usher, and an HTTP service. Every part has a separate address on loopback, so that
// the access log and the service show real addresses:
//
//	client 127.0.0.7 --> balancer 127.0.0.2 --> gateway 127.0.0.1 --> service 127.0.0.1
//	                                              ^
//	                               config files --> Usher
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"

	"github.com/oklog/run"
)

// Options say what to run. All but Stay are required.
type Options struct {
	Envoy string    // the Envoy binary: a path, or a name to look up in PATH
	Stay  bool      // keep the lab running after the three requests until the context ends
	Out   io.Writer // receives the text for the user
	// Serve runs Usher on the config files in dir, with its xDS server on xdsAddr (ip:port, plain text), until ctx
	// ends.
	Serve  func(ctx context.Context, dir, xdsAddr string) error
	Logger *slog.Logger
}

// Run makes the lab's three requests and writes their results to Out. It returns nil when all three gave the
// expected result, and with Stay when the context ended afterwards; any other error is one line. When it returns,
// everything that it started has ended.
func Run(ctx context.Context, o Options) error {
	binary, err := exec.LookPath(o.Envoy)
	if err != nil {
		return noEnvoy(err)
	}
	dir, err := os.MkdirTemp("", "usher-demo-")
	if err != nil {
		return fmt.Errorf("directory for the demo: %w", err)
	}
	defer os.RemoveAll(dir)

	p, err := listen(ctx)
	if err != nil {
		return err
	}
	defer p.close()
	l, err := newLab(dir, p)
	if err != nil {
		return err
	}
	if l.envoy, err = newEnvoy(binary, dir, p.xdsAddr, o.Logger); err != nil {
		return err
	}
	return l.run(ctx, o)
}

// run runs all parts. When the first of them ends, which is the story unless something fails, it ends the others.
func (l *lab) run(ctx context.Context, o Options) error {
	var g run.Group
	add := func(f func(context.Context) error) {
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error { return f(ctx) }, func(error) { cancel() })
	}
	plain := &balancer{target: l.gatewayAddr(), logger: o.Logger}
	proxy := &balancer{target: l.gatewayAddr(), logger: o.Logger, header: true}
	add(func(ctx context.Context) error { return runService(ctx, l.ports.service, l.requests) })
	add(func(ctx context.Context) error { return plain.run(ctx, l.ports.plain) })
	add(func(ctx context.Context) error { return proxy.run(ctx, l.ports.proxy) })
	add(func(ctx context.Context) error { return serve(ctx, o.Serve, l.configDir, l.ports.xdsAddr) })
	add(l.envoy.run)
	var result error
	add(func(ctx context.Context) error {
		result = l.runStory(ctx, o)
		return result
	})
	if err := g.Run(); err != nil {
		return err
	}
	// When ctx ends, every part returns nil and any of them may be the first.
	return result
}

// serve runs Usher. If Usher ends before ctx does, that is an error.
func serve(ctx context.Context, f func(context.Context, string, string) error, dir, xdsAddr string) error {
	err := f(ctx, dir, xdsAddr)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("usher: %w", err)
	}
	return errors.New("usher stopped unexpectedly")
}
