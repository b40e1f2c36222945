// Package demo runs the lab on one machine: a client, a load balancer that
// can send PROXY protocol v2, an Envoy that gets its configuration from Usher,
// and an HTTP service. Every part has an address of its own on loopback, so
// that what the access log and the service say is the truth and no pretence:
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
	"path/filepath"

	"github.com/oklog/run"
)

// Options say what to run. All but Stay are needed.
type Options struct {
	Envoy string // the Envoy binary: a path, or a name to be found in PATH
	// Stay keeps the lab running after the three requests until the context
	// ends.
	Stay bool
	Out  io.Writer // gets the text for the person who looks on
	// Serve runs Usher on the config files in dir, with its xDS server on
	// xdsAddr (ip:port, plain text), until ctx ends.
	Serve  func(ctx context.Context, dir, xdsAddr string) error
	Logger *slog.Logger
}

// Run makes the lab's three requests and writes to Out what came of them. It
// returns nil when all three went as they should, and with Stay when the
// context ended afterwards; any other error is one line. When it returns,
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

	socks, err := bind(ctx)
	if err != nil {
		return err
	}
	defer socks.close()
	l, err := newLab(dir, socks)
	if err != nil {
		return err
	}
	if l.envoy, err = newEnvoy(binary, dir, socks.xdsAddr, o.Logger); err != nil {
		return err
	}
	return l.run(ctx, o)
}

// run runs the parts until the first of them ends, which is the story if all
// goes well, and then ends the others.
func (l *lab) run(ctx context.Context, o Options) error {
	var g run.Group
	add := func(f func(context.Context) error) {
		ctx, cancel := context.WithCancel(ctx)
		g.Add(func() error { return f(ctx) }, func(error) { cancel() })
	}
	add(func(ctx context.Context) error { return l.echo.Run(ctx, l.socks.echo) })
	add(func(ctx context.Context) error { return l.balancer(false, o.Logger).Run(ctx, l.socks.plain) })
	add(func(ctx context.Context) error { return l.balancer(true, o.Logger).Run(ctx, l.socks.proxy) })
	add(func(ctx context.Context) error { return serve(ctx, o.Serve, l.configDir, l.socks.xdsAddr) })
	add(l.envoy.Run)
	var played error
	add(func(ctx context.Context) error {
		played = l.play(ctx, o)
		return played
	})
	if err := g.Run(); err != nil {
		return err
	}
	// When ctx ends, every part returns nil and any of them may be the first.
	return played
}

// serve runs Usher, and makes an error of an end that nobody asked for.
func serve(ctx context.Context, f func(context.Context, string, string) error, dir, xdsAddr string) error {
	err := f(ctx, dir, xdsAddr)
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("usher: %w", err)
	}
	return errors.New("usher ended by itself")
}

// newLab writes the configuration of the lab's beginning below dir.
func newLab(dir string, socks *sockets) (*lab, error) {
	l := &lab{
		dir:       dir,
		configDir: filepath.Join(dir, "config"),
		socks:     socks,
		echo:      newEcho(),
	}
	if err := os.Mkdir(l.configDir, 0o755); err != nil {
		return nil, fmt.Errorf("directory for the demo's config entries: %w", err)
	}
	if err := l.writeServices(); err != nil {
		return nil, err
	}
	return l, l.writeResources(modeUnset)
}
