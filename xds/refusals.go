package xds

import "time"

// refusals thins out the log lines about one peer: one at once, and then one a
// minute with the number of those that it stands for.
type refusals struct {
	logged time.Time // when the last line was written
	count  int       // since then
	last   refusal
}

// refusal is why something of a peer's was refused.
type refusal struct {
	address, reason string
	token           Token
}

// refuse counts what was refused because of a limit, and logs it. The caller
// holds mu.
func (a *admission) countLimit(c *connection, limit, reason string, token Token) {
	a.metrics.limited.WithLabelValues(limit).Inc()
	a.logRefusal(c, token, reason+" (limit "+limit+")")
}

// limit is refuse for a caller that does not hold mu.
func (a *admission) reportLimit(c *connection, limit string, token Token, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.countLimit(c, limit, reason, token)
}

// deny logs why a stream was refused, which counts against its peer.
func (a *admission) reportDenial(c *connection, token Token, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.caller.denied.Allow()
	a.logRefusal(c, token, reason)
}

// turnAway logs why a stream was refused that may be anybody's.
func (a *admission) reportRefusal(c *connection, token Token, reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.logRefusal(c, token, reason)
}

func (a *admission) logRefusal(c *connection, token Token, reason string) {
	r := &c.caller.refusals
	r.count++
	r.last = refusal{address: addressOf(c), reason: reason, token: token}
	wait := refusalLogTime - time.Since(r.logged)
	switch {
	case wait <= 0:
		a.writeRefusals(r)
	case r.count == 1:
		time.AfterFunc(wait, func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.writeRefusals(r)
		})
	}
}

func (a *admission) writeRefusals(r *refusals) {
	if !a.logLimiter.Allow() {
		return // they are counted, and stand in the peer's next line
	}
	a.log.Warn("envoy refused", "peer", r.last.address, "count", r.count, "token", r.last.token, "error", r.last.reason)
	r.logged, r.count = time.Now(), 0
}

func addressOf(c *connection) string {
	if a := clientAddr(c.RemoteAddr()); a.IsValid() {
		return a.String()
	}
	return "unix socket"
}
