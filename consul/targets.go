package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/consul/api"
)

// target is one of Consul's agents that the settings name.
type target struct {
	http address
	grpc grpcTarget // the zero value: on the host of the HTTP API, with the port that the agent reports
}

func (t *target) String() string { return t.http.String() }

// targets are the agents in the order of the settings. One of them is in use, for everything that the client sends. The
// watchdog changes it, and before the watchdog runs, FindAnswering. Any goroutine may read it.
type targets struct {
	all     []*target
	inUse   atomic.Pointer[target]
	suspect chan struct{} // receives when the one in use did not answer a query; its capacity is 1
}

func newTargets(all []*target) *targets {
	t := &targets{all: all, suspect: make(chan struct{}, 1)}
	t.inUse.Store(all[0])
	return t
}

func (t *targets) current() *target { return t.inUse.Load() }

// others returns those that are not in use: first the ones after it, then those before it.
func (t *targets) others() []*target {
	i := slices.Index(t.all, t.current())
	return append(slices.Clone(t.all[i+1:]), t.all[:i]...)
}

// any reports whether one of them is as f says.
func (t *targets) any(f func(address) bool) bool {
	return slices.ContainsFunc(t.all, func(t *target) bool { return f(t.http) })
}

func isPlain(a address) bool { return a.scheme == "http" }

// targets reads the addresses of the HTTP API and of the gRPC port: the flags, or else Consul's environment variables. Each
// is a list with commas.
func (env environment) targets(httpFlag, grpcFlag string, logger *slog.Logger) (*targets, error) {
	addresses, err := env.httpAddresses(httpFlag)
	if err != nil {
		return nil, err
	}
	ports, err := env.grpc(grpcFlag, logger)
	if err != nil {
		return nil, err
	}
	if len(ports) > 1 && len(ports) != len(addresses) {
		return nil, fmt.Errorf("--consul-grpc-addr or %s has %d addresses, and --consul-http-addr or %s has %d; name one for each address of the HTTP API, or one for all",
			api.GRPCAddrEnvName, len(ports), api.HTTPAddrEnvName, len(addresses))
	}
	var all []*target
	for i, a := range addresses {
		t := &target{http: a}
		if len(ports) > 0 {
			t.grpc = ports[min(i, len(ports)-1)]
		}
		all = append(all, t)
	}
	return newTargets(all), nil
}

// httpAddresses returns the addresses of the HTTP API. CONSUL_HTTP_SSL changes http to https, and not a unix socket.
func (env environment) httpAddresses(flag string) (list []address, err error) {
	ssl, err := env.bool(api.HTTPSSLEnvName, false)
	if err != nil {
		return nil, err
	}
	from, text := "--consul-http-addr", flag
	if text == "" {
		from, text = api.HTTPAddrEnvName, cmp.Or(env(api.HTTPAddrEnvName), defaultHTTPAddr)
	}
	for _, s := range splitList(text) {
		a, err := parseAddress(s)
		if err == nil && ssl && a.scheme == "http" {
			a.scheme = "https"
		}
		if err == nil && slices.Contains(list, a) {
			err = errors.New("the list has this address twice; remove one of them")
		}
		if err != nil {
			return nil, addressError(from, text, s, err)
		}
		list = append(list, a)
	}
	return list, nil
}

// splitList returns the parts of a list with commas.
func splitList(text string) []string {
	parts := strings.Split(text, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}

// tryAll sends the watchdog's query to agents at the same time. It returns why each of them did not answer, in their order;
// nil for one that did.
func (c *Client) tryAll(ctx context.Context, list []*target) []error {
	results := make([]error, len(list))
	var all sync.WaitGroup
	for i, t := range list {
		all.Go(func() { _, results[i] = c.try(ctx, t) })
	}
	all.Wait()
	return results
}

// try sends the watchdog's query to an agent.
func (c *Client) try(ctx context.Context, t *target) (response, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, watchdogTimeout, noAnswer(watchdogTimeout))
	defer cancel()
	return c.sendBy(ctx, route{t, c.watchdogHTTP}, heartbeat, 0, 0)
}

// FindAnswering makes the client use the first of its addresses that answers. Without an answer, it leaves the first. It is
// for a client without a Watcher, which does the same all the time.
func (c *Client) FindAnswering(ctx context.Context) {
	if len(c.targets.all) == 1 {
		return
	}
	defer c.watchdogHTTP.CloseIdleConnections()
	for i, err := range c.tryAll(ctx, c.targets.all) {
		if err == nil {
			c.targets.inUse.Store(c.targets.all[i])
			return
		}
	}
}

// Generation returns a number that changes when the client uses another address.
func (c *Client) Generation() int { return slices.Index(c.targets.all, c.targets.current()) }
