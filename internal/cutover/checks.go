package cutover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/usherproxy/usher/internal/resourcediff"
)

// The checks that Options.Accept may name: with each, it is known what can be lost.
const (
	KernelCheck      = "kernel"
	EndpointsCheck   = "endpoints"
	PortsCheck       = "ports"
	ModesCheck       = "modes"
	DifferencesCheck = "differences"
)

// Acceptable are the names for Options.Accept.
var Acceptable = []string{KernelCheck, EndpointsCheck, PortsCheck, ModesCheck, DifferencesCheck}

// check is what one check sees.
type check struct {
	name    string
	sees    string
	problem error // why requests would be lost; nil if none would
}

// migrateReq is the kernel's setting that moves queued connections.
const migrateReq = "net.ipv4.tcp_migrate_req"

// checkKernel reads the setting that moves the connections in the queues of a listener that is closed to another listener on
// its port (https://docs.kernel.org/networking/ip-sysctl.html).
func checkKernel(path string) check {
	c := check{name: KernelCheck}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.problem = fmt.Errorf("this kernel has no %s, which came with Linux 5.14: the connections that wait in the old Envoy's queues fail; "+
			"upgrade the kernel", migrateReq)
	case err != nil:
		c.problem = fmt.Errorf("%s cannot be read: %w", migrateReq, err)
	case strings.TrimSpace(string(text)) != "1":
		c.problem = fmt.Errorf("%[1]s is %[2]s, so the connections that wait in the old Envoy's queues fail; run sysctl -w %[1]s=1, and write "+
			"%[1]s = 1 into /etc/sysctl.d/60-usher.conf to keep it", migrateReq, strings.TrimSpace(string(text)))
	default:
		c.sees = migrateReq + " is 1: queued connections move to the new Envoy"
	}
	return c
}

// checkStats wants the old Envoy to count what shows that it has no connection any more.
func checkStats(s stats) check {
	c := check{name: "statistics", sees: "the old Envoy counts its connections"}
	if !s.complete() {
		c.problem = errors.New("the old Envoy does not count its connections, because the stats_config of its bootstrap leaves out listener.* or " +
			"listener_manager.*: it could not be seen when it has none; move it by hand")
	}
	return c
}

// checkEndpoints wants the new Envoy to get endpoints where the old one has healthy ones: it serves as soon as it listens.
func checkEndpoints(old stats, after resourcediff.Resources) check {
	c := check{name: EndpointsCheck, sees: "the new Envoy gets endpoints where the old one has healthy ones"}
	if lost := withoutTarget(old, after); len(lost) > 0 {
		c.problem = fmt.Errorf("the new Envoy would get no healthy endpoint of %s, and requests to it would fail; "+
			"look at its instances in Consul, and at the problems of the xDS server", some(lost))
	}
	return c
}

// checkPorts wants the new Envoy to serve each address of the old one, and both to be able to do so at the same time.
func checkPorts(old, after resourcediff.Resources) check {
	c := check{name: PortsCheck}
	was, will := listen(old), listen(after)
	var missing, alone []string
	for _, address := range sorted(was) {
		if will[address] == nil {
			missing = append(missing, address)
		} else if !sharesPorts(was[address]) || !sharesPorts(will[address]) {
			alone = append(alone, address)
		}
	}
	switch {
	case len(was) == 0:
		c.problem = errors.New("the old Envoy serves no listener; is --old the address of its admin interface, and does it have its configuration?")
	case len(missing) > 0:
		c.problem = fmt.Errorf("the new Envoy would not listen on %s, only on: %s; correct the gateway's registration, or what holds the listener back",
			list(missing), list(sorted(will)))
	case len(alone) > 0:
		c.problem = fmt.Errorf("SO_REUSEPORT is off for %s, so two Envoys cannot listen there at the same time", list(alone))
	default:
		c.sees = "both listen on " + list(sorted(was))
	}
	return c
}

// checkModes compares what the listeners do with PROXY headers before and after. Where that depends on what comes now, it
// asks seen how many connections come to a listener with a header and without one.
func checkModes(old, after resourcediff.Resources, seen func(listener map[string]any) (traffic, error)) check {
	c := check{name: ModesCheck}
	was, will := listen(old), listen(after)
	var changes []string
	for _, address := range sorted(was) {
		if will[address] == nil {
			continue // checkPorts says so
		}
		from, to := modeOf(was[address]), modeOf(will[address])
		if from == to {
			changes = append(changes, fmt.Sprintf("%s stays %s", address, to))
			continue
		}
		changes = append(changes, fmt.Sprintf("%s: %s -> %s", address, from, to))
		if err := loses(from, to, func() (traffic, error) { return seen(was[address]) }); err != nil {
			c.problem = fmt.Errorf("%s: %s -> %s: %w", address, from, to, err)
			return c
		}
	}
	c.sees = strings.Join(changes, ", ")
	return c
}

// traffic is how many connections came in a time.
type traffic struct{ with, without int }

// loses returns why a change of the mode loses requests.
func loses(from, to mode, seen func() (traffic, error)) error {
	switch {
	case to == permissive:
		return nil
	case from == off:
		return errors.New("what the old Envoy serves now has no header, and strict closes such connections; " +
			`set mode = "permissive", and strict once the load balancer sends headers`)
	case from == strict:
		return errors.New("the load balancer sends headers, and every request would be answered 400; " +
			`set mode = "permissive", switch PROXY protocol off at the balancer, and run this again`)
	}
	now, err := seen()
	switch {
	case err != nil:
		return err
	case to == off && now.with > 0:
		return fmt.Errorf("connections with a PROXY header came just now (%d), and requests on them would be answered 400; "+
			"switch PROXY protocol off at the load balancer, and run this again", now.with)
	case to == strict && now.without > 0:
		return fmt.Errorf("connections without a PROXY header came just now (%d), and strict closes them; "+
			"switch PROXY protocol on at the load balancer, and run this again", now.without)
	case now == traffic{}:
		return errors.New("no connection came just now, so it is not known what the load balancer sends; " +
			"run this again while connections come through it")
	}
	return nil
}

// watch looks at the old Envoy's counters at the beginning and at the end of a time.
type watch struct{ before, after stats }

// watch counts the connections that come to the old Envoy in a time.
func (c *cutover) watch(ctx context.Context) (w watch, err error) {
	if w.before, err = c.stats(ctx); err != nil {
		return w, err
	}
	c.say("watch", "the connections to the old Envoy for %v", c.Watch)
	select {
	case <-ctx.Done():
		return w, ctx.Err()
	case <-time.After(c.Watch):
	}
	w.after, err = c.stats(ctx)
	return w, err
}

// seen returns how many of the connections came to a listener. All listeners have one watch, which begins with the first.
func (c *cutover) seen(ctx context.Context) func(listener map[string]any) (traffic, error) {
	watched := sync.OnceValues(func() (watch, error) { return c.watch(ctx) })
	return func(listener map[string]any) (traffic, error) {
		w, err := watched()
		if err != nil {
			return traffic{}, err
		}
		before, _ := w.before.headers(listener)
		after, ok := w.after.headers(listener)
		if !ok {
			return traffic{}, errors.New("this Envoy does not count PROXY headers; find out what the load balancer sends")
		}
		t := traffic{after.with - before.with, after.without - before.without}
		c.say("watch", "%s: %d with a PROXY header, %d without", addressOf(listener), t.with, t.without)
		return t, nil
	}
}

// stats are those of the old Envoy.
func (c *cutover) stats(ctx context.Context) (stats, error) {
	ctx, cancel := c.look(ctx)
	defer cancel()
	return readStats(ctx, c.Old)
}

// checkDifferences wants nothing else to change than the PROXY filter and what follows from it.
func checkDifferences(old, after resourcediff.Resources) check {
	c := check{name: DifferencesCheck, sees: "none but PROXY filters and what follows from them"}
	if found := unexpected(old, after); len(found) > 0 {
		c.problem = fmt.Errorf("other things change, too: %s; look at them with usher diff", some(found))
	}
	return c
}

// list joins names.
func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// maxListed is how many differences a line has.
const maxListed = 3

// some joins the first names of many.
func some(names []string) string {
	if len(names) <= maxListed {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:maxListed], ", "), len(names)-maxListed)
}
