package cutover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/usherproxy/usher/internal/resourcediff"
)

// How often to look at an Envoy, and how often at most to say what is seen.
const (
	pollInterval = 100 * time.Millisecond
	sayInterval  = 5 * time.Second
)

// poll looks until there is nothing to wait for, and says now and then what it is. It gives up after the timeout, with a
// hint.
func (c *cutover) poll(ctx context.Context, step, hint string, look func(context.Context) (waits string, err error)) error {
	deadline := time.Now().Add(c.Timeout)
	var said string
	var next time.Time
	for {
		looking, cancel := c.look(ctx)
		waits, err := look(looking)
		cancel()
		now := time.Now()
		switch {
		case err != nil || waits == "":
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case now.After(deadline):
			return fmt.Errorf("after %v, %s; %s", c.Timeout, waits, hint)
		case waits != said && now.After(next):
			c.say(step, "wait: %s", waits)
			said, next = waits, now.Add(sayInterval)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollInterval):
		}
	}
}

// newRuns reports whether the new Envoy runs; it is an error if that cannot serve.
func (c *cutover) newRuns(ctx context.Context, old *envoy) (bool, error) {
	info, _, err := c.ask(ctx, c.New)
	switch {
	case err != nil:
		return true, fmt.Errorf("the new Envoy does not answer: %w", err)
	case info == nil:
		return false, nil
	}
	ctx, cancel := c.look(ctx)
	defer cancel()
	s, err := readStats(ctx, c.New)
	if err != nil {
		return true, err
	}
	return true, c.useless(old, &envoy{ServerInfo: *info, stats: s})
}

// start starts the new Envoy, unless it runs.
func (c *cutover) start(runs bool) error {
	if runs {
		c.say("start", "%s runs already", c.New)
		return nil
	}
	if c.Start == nil {
		c.say("start", "start the new Envoy now %s", c.Target.Hint())
		return nil
	}
	c.say("start", "run: %s", c.Start.Line)
	return c.Start.start()
}

// useless returns an error if the new Envoy drains: it takes no connection, and does not begin to do so again.
func (c *cutover) useless(old, now *envoy) error {
	if !now.drains() {
		return nil
	}
	c.serves = "only the old Envoy accepts connections"
	if len(old.addresses) == 0 || old.stats.stopped() {
		c.serves = "no Envoy accepts connections"
	}
	return fmt.Errorf("the Envoy at --new %s drains, and cannot serve again; end it, and run this again", c.New)
}

// waitForNew waits until the new Envoy serves everything.
func (c *cutover) waitForNew(ctx context.Context, old *envoy) error {
	c.serves = "the old Envoy serves, and the new one beside it where it has a listener; run the same command to go on"
	if old.stats.stopped() {
		c.serves = "the old Envoy drains, and only the new one accepts connections; run the same command to go on"
	}
	err := c.poll(ctx, "new", "read the log of the new Envoy", func(ctx context.Context) (string, error) {
		if err := c.Start.failed(); err != nil {
			return "", err
		}
		now, err := observe(ctx, c.New)
		if err != nil {
			return c.noAnswer(err), nil
		}
		waits, err := c.unready(ctx, old, now)
		if waits != "" {
			waits = "the new Envoy " + waits
		}
		return waits, err
	})
	if err != nil {
		return err
	}
	c.say("new", "ok: it serves everything that %s sends, and accepts connections", c.Target)
	return nil
}

// noAnswer says that the new Envoy does not answer, which is so for a while after its start.
func (c *cutover) noAnswer(err error) string {
	if c.Start.started() && errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Sprintf("the new Envoy starts, and does not answer at %s (--new) yet", c.New)
	}
	return fmt.Sprintf("the new Envoy does not answer: %v", err)
}

// getsConnections ends what is said about an Envoy that listens and serves something else than the old one.
const getsConnections = "it gets connections already, and requests on them can fail until you end it"

// unready returns what the new Envoy still lacks to take all connections of the old one; an error if waiting is no use.
func (c *cutover) unready(ctx context.Context, old, now *envoy) (string, error) {
	if err := c.useless(old, now); err != nil {
		return "", err
	}
	for _, name := range sorted(now.refused) {
		return "", fmt.Errorf("the new Envoy refuses the listener %s: %s; if its address is in use, run the new Envoy as the user of the old one",
			name, now.refused[name])
	}
	missing := slices.DeleteFunc(slices.Clone(old.addresses), func(a string) bool { return slices.Contains(now.addresses, a) })
	switch {
	case now.State != "LIVE":
		return "is " + now.State, nil
	case now.stats["listener_manager.total_listeners_warming"] > 0 || now.stats["cluster_manager.warming_clusters"] > 0:
		return "waits for parts of its configuration", nil
	case len(missing) > 0 && !slices.Contains(c.Accept, PortsCheck):
		return "does not listen on " + list(missing), nil
	}
	if lost := withoutEndpoints(old.stats, now.stats); len(lost) > 0 {
		return "has no healthy endpoint of " + some(lost) + "; " + getsConnections, nil
	}
	_, target, err := c.fetch(ctx, now)
	if err != nil {
		return "", err
	}
	if wrong := wrongModes(now.resources, target); wrong != "" {
		return wrong + fmt.Sprintf("; is it configured by %s? Start it %s", c.Target, c.Target.Hint()) + "; " + getsConnections, nil
	}
	if differs := describe(resourcediff.Compare(target, now.resources)); len(differs) > 0 {
		return fmt.Sprintf("does not have what %s sends: %s", c.Target, some(differs)), nil
	}
	return "", nil
}

// wrongModes says which listener of an Envoy does not treat PROXY headers as its xDS server wants it to; "" if none.
func wrongModes(has, wants resourcediff.Resources) string {
	configured := listen(has)
	for address, listener := range maps.All(listen(wants)) {
		if has, want := modeOf(configured[address]), modeOf(listener); has != want {
			return fmt.Sprintf("is %s on %s, and not %s", has, address, want)
		}
	}
	return ""
}

// drain makes the old Envoy stop to accept connections and close the open ones, and waits until it has none.
func (c *cutover) drain(ctx context.Context) error {
	c.serves = "the new Envoy accepts connections, and the old one does until it has closed its listeners; run the same command to go on"
	if err := c.postDrain(ctx); err != nil {
		return err
	}
	c.say("drain", "the old Envoy closes its listeners, and each open connection after its next answer")
	idle := false
	return c.poll(ctx, "drain", "to wait no longer, end the old Envoy, which closes them: "+c.endHint(), func(ctx context.Context) (string, error) {
		now, err := readStats(ctx, c.Old)
		switch {
		case err != nil && ctx.Err() != nil:
			return fmt.Sprintf("the old Envoy does not answer: %v", err), nil
		case err != nil:
			c.serves = "only the new Envoy serves"
			return "", fmt.Errorf("the old Envoy has ended before its connections have: %w", err)
		case !now.stopped():
			return "the old Envoy still closes its listeners", nil
		}
		c.serves = "the new Envoy serves all new connections, and the old one what it has; run the same command to go on"
		// Envoy does not read its gauges at one moment: a connection whose PROXY header comes just then is in neither.
		before := idle
		idle = len(now.open()) == 0
		if idle && !before {
			return "the old Envoy seems to have no connection any more", nil
		}
		return openText(now.open()), nil
	})
}

// postDrain asks the old Envoy to drain.
func (c *cutover) postDrain(ctx context.Context) error {
	ctx, cancel := c.look(ctx)
	defer cancel()
	for _, path := range []string{"/drain_listeners", "/healthcheck/fail"} {
		if err := c.Old.Post(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

// openText says how many connections are open; "" if there are none.
func openText(open map[string]int) string {
	var parts []string
	for _, name := range sorted(open) {
		parts = append(parts, fmt.Sprintf("%d on %s", open[name], name))
	}
	if len(parts) == 0 {
		return ""
	}
	return "the old Envoy has open connections: " + strings.Join(parts, ", ")
}

// endHint says how to end the old Envoy.
func (c *cutover) endHint() string {
	if c.Stop != nil {
		return c.Stop.Line
	}
	return fmt.Sprintf("systemctl disable --now with its unit, or curl -X POST %s/quitquitquit", c.Old)
}

// stop ends the old Envoy, or says how to do that.
func (c *cutover) stop(ctx context.Context) error {
	c.serves = "the new Envoy serves, and the old one has no connection any more"
	if c.Stop == nil {
		c.say("done", "the old Envoy has no connection any more; end it: %s", c.endHint())
		return nil
	}
	c.say("stop", "run: %s", c.Stop.Line)
	if err := c.Stop.start(); err != nil {
		return err
	}
	err := c.poll(ctx, "stop", "something may start it again", func(ctx context.Context) (string, error) {
		if err := c.Stop.failed(); err != nil {
			return "", err
		}
		switch info, _, err := c.ask(ctx, c.Old); {
		case err != nil:
			return fmt.Sprintf("the old Envoy does not answer, and has not ended: %v", err), nil
		case info != nil:
			return "the old Envoy still answers", nil
		}
		return "", nil
	})
	if err == nil {
		c.say("done", "the old Envoy had no connection any more, and has ended")
	}
	return err
}
