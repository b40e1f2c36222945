// Package cutover replaces a running Envoy of a gateway by another one, without losing a request:
//
//	check what would be lost -> start the new Envoy -> wait until it serves -> drain the old one -> wait until it is idle
//
// Both Envoys listen on the same ports for a while, and the kernel divides the connections between them. Each step finds
// out what is done already, so a cutover that was interrupted goes on when it is run again.
package cutover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/usherproxy/usher/internal/envoyadmin"
	"github.com/usherproxy/usher/internal/resourcediff"
)

// Options describe a cutover. All fields are required, unless they say otherwise.
type Options struct {
	Old, New envoyadmin.Client
	Target   Target // what configures the new Envoy
	// Start starts the new Envoy, and Stop ends the old one when it has no connection any more. Where one is nil, the
	// operator does it, who gets a line about it.
	Start, Stop *Command

	Accept  []string      // the checks that may fail, of Acceptable
	Watch   time.Duration // how long to count connections, where the mode before and after makes it necessary
	Timeout time.Duration // how long to wait for the new Envoy, and how long for the connections of the old one
	DryRun  bool          // only check
	Sysctl  string        // path of the kernel's setting; "" is the usual one
	Out     io.Writer     // gets a line for each step

	patience time.Duration // how long an Envoy and the target may take for the answers of one look; 0 is 30 seconds
}

// Target is an xDS server.
type Target interface {
	fmt.Stringer // such as "Usher at http://127.0.0.1:18000"
	// Ready returns why it cannot serve Envoys.
	Ready(ctx context.Context) error
	// Fetch returns what an Envoy would get that has this node and these many listeners now.
	Fetch(ctx context.Context, node *corev3.Node, listeners int) (resourcediff.Resources, error)
	// Hint says how an Envoy is started that this server configures.
	Hint() string
}

// cutover is one run.
type cutover struct {
	Options
	serves  string   // which Envoy serves requests at this moment, and what to do then: the end of every error
	refused []string // the checks that have failed
}

// Run does what is left to do. An error says which Envoy serves requests then.
func (o Options) Run(ctx context.Context) error {
	if o.Sysctl == "" {
		o.Sysctl = "/proc/sys/" + strings.ReplaceAll(migrateReq, ".", "/")
	}
	o.patience = cmp.Or(o.patience, 30*time.Second)
	c := &cutover{Options: o, serves: "nothing has changed"}
	err := c.run(ctx)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted; %s", c.serves)
	}
	return fmt.Errorf("%w; %s", err, c.serves)
}

func (c *cutover) run(ctx context.Context) error {
	info, gone, err := c.ask(ctx, c.Old)
	switch {
	case err != nil:
		return fmt.Errorf("the old Envoy does not answer: %w", err)
	case info == nil:
		return c.withoutOld(ctx, gone)
	}
	old, err := c.observe(ctx, c.Old)
	if err != nil {
		return err
	}
	c.say("old", "%s: Envoy %s of %s, listens on %s", c.Old, old.Release(), old.Node.GetId(), list(old.addresses))
	runs, err := c.newRuns(ctx, old)
	if err != nil {
		return err
	}
	if old.stats.stopped() {
		c.say("old", "it drains already")
	} else if err := c.preflight(ctx, old); err != nil {
		return err
	}
	if c.DryRun {
		c.sayPlan()
		return nil
	}
	if err := c.start(runs); err != nil {
		return err
	}
	if err := c.waitForNew(ctx, old); err != nil {
		return err
	}
	if err := c.drain(ctx); err != nil {
		return err
	}
	return c.stop(ctx)
}

// look gives something that asks Envoys its time.
func (c *cutover) look(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.patience)
}

// ask asks an Envoy what it is. No info is an Envoy that does not run, and gone says why; an Envoy that takes too long for
// the answer runs, and is an error.
func (c *cutover) ask(ctx context.Context, admin envoyadmin.Client) (info *envoyadmin.ServerInfo, gone, err error) {
	ctx, cancel := c.look(ctx)
	defer cancel()
	answer, err := admin.ServerInfo(ctx)
	switch {
	case err == nil:
		return &answer, nil, nil
	case ctx.Err() != nil:
		return nil, nil, err
	}
	return nil, err, nil
}

// observe asks an Envoy for everything.
func (c *cutover) observe(ctx context.Context, admin envoyadmin.Client) (*envoy, error) {
	ctx, cancel := c.look(ctx)
	defer cancel()
	return observe(ctx, admin)
}

// say prints a line about a step.
func (c *cutover) say(step, format string, args ...any) {
	fmt.Fprintf(c.Out, "%-12s %s\n", step, fmt.Sprintf(format, args...))
}

// withoutOld is the run in which no old Envoy answers: it has ended after an earlier run, or it is somewhere else.
func (c *cutover) withoutOld(ctx context.Context, gone error) error {
	old := &envoy{}
	now, err := c.observe(ctx, c.New)
	if err != nil {
		return fmt.Errorf("no Envoy answers: --old: %w; --new: %w", gone, err)
	}
	c.say("old", "no Envoy answers at --old %s: it has ended, or the address is wrong", c.Old)
	c.serves = "no Envoy answers at --old"
	waits, err := c.unready(ctx, old, now)
	if err == nil && waits != "" {
		err = errors.New("the new Envoy " + waits)
	}
	if err != nil {
		return err
	}
	c.say("done", "if the old Envoy has ended, nothing is left to do: %s serves %s, configured by %s", c.New, list(now.addresses), c.Target)
	return nil
}

// preflight makes all checks, says what each one sees, and returns an error if one has failed that the operator does not
// accept.
func (c *cutover) preflight(ctx context.Context, old *envoy) error {
	c.judge(checkKernel(c.Sysctl))
	c.judge(checkStats(old.stats))
	all, after, err := c.fetch(ctx, old)
	c.judge(check{name: "target", sees: c.Target.String() + " would serve the new Envoy", problem: err})
	if err == nil {
		c.judge(checkEndpoints(old.stats, all))
		c.judge(checkPorts(old.resources, after))
		c.judge(checkDifferences(old.resources, after))
		c.judge(checkModes(old.resources, after, c.seen(ctx)))
	}
	if len(c.refused) > 0 {
		return fmt.Errorf("requests could be lost, see above: %s", strings.Join(c.refused, ", "))
	}
	return nil
}

// judge prints a check, and remembers one that has failed and that the operator does not accept.
func (c *cutover) judge(found check) {
	switch {
	case found.problem == nil:
		c.say(found.name, "ok: %s", found.sees)
	case slices.Contains(c.Accept, found.name):
		c.say(found.name, "accepted: %v", found.problem)
	default:
		c.say(found.name, "REFUSED: %v", found.problem)
		c.refused = append(c.refused, found.name)
	}
}

// fetch returns all that the target would send to an Envoy, and that of it which an Envoy shows, in canonical form.
func (c *cutover) fetch(ctx context.Context, e *envoy) (all, shown resourcediff.Resources, err error) {
	ctx, cancel := c.look(ctx)
	defer cancel()
	if err := c.Target.Ready(ctx); err != nil {
		return nil, nil, err
	}
	if all, err = c.Target.Fetch(ctx, e.Node, len(listen(e.resources))); err != nil {
		return nil, nil, err
	}
	shown, err = canonical(all)
	return all, shown, err
}

func (c *cutover) sayPlan() {
	start := "wait until you start the new Envoy " + c.Target.Hint()
	if c.Start != nil {
		start = "run: " + c.Start.Line
	}
	c.say("plan", "%s", start)
	c.say("plan", "wait up to %v until %s serves what %s sends", c.Timeout, c.New, c.Target)
	c.say("plan", "drain %s: it accepts no connections, and closes each open one after its next answer", c.Old)
	c.say("plan", "wait up to %v until it has no connection", c.Timeout)
	if c.Stop == nil {
		c.say("plan", "say how to end it: %s", c.endHint())
		return
	}
	c.say("plan", "run: %s", c.Stop.Line)
}
