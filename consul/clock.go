package consul

import (
	"fmt"
	"time"

	"github.com/usherproxy/usher/internal/problem"
)

// clockTolerance is by how much this machine's clock may differ from Consul's. Consul makes its certificates valid a
// minute before it signs them, because clocks differ; half of that is for the machines of Envoys and services.
const clockTolerance = 30 * time.Second

// clockCheck compares this machine's clock with that of the Consul agent, which is in each of its answers. It belongs to
// the watchdog's goroutine.
type clockCheck struct {
	client   *Client
	address  string        // of the agent, as the problem says; empty: there is none
	reported time.Duration // by how much this machine's clock is ahead, as the problem says
}

// aheadOf returns by how much this machine's clock is certainly ahead of a server's: negative if it is behind, and 0 if
// they may agree. The answer with the server's time, which has whole seconds, came between begin and end.
func aheadOf(server, begin, end time.Time) time.Duration {
	begin, end = begin.Round(0), end.Round(0)
	switch {
	case server.Add(time.Second).Before(begin):
		return begin.Sub(server.Add(time.Second))
	case server.After(end):
		return end.Sub(server)
	}
	return 0
}

// observe compares the clocks. A time that is zero is not known.
func (c *clockCheck) observe(server, begin, end time.Time) {
	if server.IsZero() {
		return
	}
	ahead := aheadOf(server, begin, end).Round(10 * time.Second)
	enough := clockTolerance
	if c.address != "" {
		enough = clockTolerance * 2 / 3 // less, so that it does not come and go
	}
	switch differs, address := ahead.Abs() > enough, c.client.Address(); {
	case differs && (address != c.address || (ahead-c.reported).Abs() > clockTolerance):
		c.address, c.reported = address, ahead
		p := c.problem()
		c.client.logger.Warn("problem", "where", p.Where, "what", p.What, "severity", p.Severity)
		c.client.report("the clock", []problem.Problem{p})
	case !differs && c.address != "":
		c.client.logger.Info("problem over", "where", c.problem().Where, "what", "it agrees with the clock of Consul's agent again")
		c.address = ""
		c.client.report("the clock", nil)
	}
}

// problem returns the problem of a clock that differs.
func (c *clockCheck) problem() problem.Problem {
	word := "ahead of"
	if c.reported < 0 {
		word = "behind"
	}
	return problem.Problem{
		Where: "the clock of this machine",
		What: fmt.Sprintf("it is %s %s the clock of the Consul agent at %s; so Usher sees certificates and service account tokens expire at the wrong time, "+
			"and a certificate may not be valid yet where it is used; correct the clocks (NTP) of both machines", c.reported.Abs(), word, c.address),
		Severity: problem.Degraded,
	}
}
