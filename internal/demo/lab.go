package demo

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"
)

// lab holds the parts together and makes requests.
type lab struct {
	dir       string // for what the demo writes
	configDir string // below dir: what Usher reads
	socks     *sockets
	echo      *echo
	envoy     *envoy
	admin     admin // known once Envoy is up
}

func (l *lab) balancer(header bool, logger *slog.Logger) *balancer {
	return &balancer{ip: net.ParseIP(balancerIP), target: l.gatewayAddr(), header: header, logger: logger}
}

func (l *lab) gatewayAddr() string {
	return fmt.Sprintf("%s:%d", gatewayIP, l.socks.gatewayPort)
}

// balancerAddr is where the balancer takes the connections that it gives a
// header, or those that it gives none.
func (l *lab) balancerAddr(header bool) string {
	if header {
		return l.socks.proxy.Addr().String()
	}
	return l.socks.plain.Addr().String()
}

// play waits for the gateway, tells the story and, if it is to stay, shows
// what happens until ctx ends.
func (l *lab) play(ctx context.Context, o Options) error {
	if err := l.waitForGateway(ctx); err != nil {
		return err
	}
	introduce(o.Out, l.gatewayAddr())
	if err := tell(ctx, l, o.Out); err != nil {
		return err
	}
	if !o.Stay {
		return nil
	}
	l.invite(o.Out)
	return l.follow(ctx, o.Out)
}

// waitForGateway waits until Envoy serves the listener that Usher sent.
func (l *lab) waitForGateway(ctx context.Context) error {
	a, err := l.envoy.admin(ctx)
	if err != nil {
		return err
	}
	l.admin = a
	if err := await(ctx, "the gateway's first configuration", a.ready); err != nil {
		return err
	}
	return await(ctx, "the gateway's listener", func(ctx context.Context) (bool, error) {
		s, err := a.listener(ctx, l.socks.gatewayPort)
		if err != nil || !s.active {
			return false, err
		}
		taken, err := a.listenersTaken(ctx)
		return taken > 0, err
	})
}

// makeStrict changes the mode in the config files and waits until the change
// has reached Envoy's workers. It gives the time that this took.
func (l *lab) makeStrict(ctx context.Context) (time.Duration, error) {
	before, err := l.admin.listenersTaken(ctx)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := l.writeResources(modeStrict); err != nil {
		return 0, err
	}
	err = await(ctx, "the change of mode in Envoy", func(ctx context.Context) (bool, error) {
		s, err := l.admin.listener(ctx, l.socks.gatewayPort)
		if err != nil || !s.proxyProtocol {
			return false, err
		}
		taken, err := l.admin.listenersTaken(ctx)
		return taken > before, err
	})
	return time.Since(begin), err
}

// request makes one request through the balancer and gathers what client, log
// and service have to say of it.
func (l *lab) request(ctx context.Context, header bool) (outcome, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer or no access log line after %s", patience))
	defer cancel()
	var got outcome
	var err error
	if got.status, got.body, err = ask(ctx, l.balancerAddr(header)); err != nil {
		return outcome{}, err
	}
	// The service has told what it saw before it answered, and Envoy logs
	// after it has passed the answer on: once the line is there, nothing more
	// comes.
	select {
	case line := <-l.envoy.access:
		if got.logged, err = parseLogEntry(line); err != nil {
			return outcome{}, err
		}
	case <-ctx.Done():
		return outcome{}, context.Cause(ctx)
	}
	select {
	case h := <-l.echo.seen:
		got.reached = true
		got.forwardedFor = h.Values("X-Forwarded-For")
	default:
	}
	return got, nil
}

// invite says how to go on by hand.
func (l *lab) invite(out io.Writer) {
	curl := func(header bool) string {
		return fmt.Sprintf("curl --interface %s -H 'Host: %s' http://%s/", clientIP, host, l.balancerAddr(header))
	}
	fmt.Fprintf(out, `
Everything keeps running; Ctrl-C ends it. Ask the gateway yourself,
  through the balancer with PROXY protocol v2:
    %s
  and through the balancer without it, which the gateway refuses now:
    %s
The configuration is in %s; what you change there counts at once.
What the access log and the service say:
`, curl(true), curl(false), l.configDir)
}

// follow shows what the access log and the service say until ctx ends.
func (l *lab) follow(ctx context.Context, out io.Writer) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case line := <-l.envoy.access:
			fmt.Fprintf(out, "access log   %s\n", line)
		case h := <-l.echo.seen:
			fmt.Fprintf(out, "service saw  %s\n", describeForwardedFor(h.Values("X-Forwarded-For")))
		}
	}
}
