package doctor

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/usherproxy/usher/internal/evidence"
	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/probe"
	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/status"
)

// traffic is what shows whether connections to the listener begin with a PROXY header: evidence, one line each.
type traffic struct {
	with, without []string
	refused       []string // connections whose header has a version that the listener does not accept
	unreadable    []string // connections that the listener reads as broken requests, although it looks for headers
	stopped       []string // probes that the load balancer does not let through to a permissive listener
	closed        []string // probes through the load balancer that a strict listener, or the load balancer itself, closes
	trusted       []string // connections with a PROXY header from trusted_cidrs
	untrusted     []string // connections from outside trusted_cidrs
	fewUntrusted  bool     // and too few of them to show that they are a load balancer's
	few           []string // connections that do not fit the mode, and too few of them to show what the load balancer sends
}

// mode is the mode of the listener, by the probe, or else by Usher; empty if neither knows it.
func (f *Facts) mode() string {
	if r, ok := f.probed(); ok && r.Conclusion.Finding == probe.AddedHeader {
		return string(probe.Off)
	} else if ok && r.Conclusion.Mode != "" {
		return r.Conclusion.Mode
	}
	return f.modeInForce()
}

// modeInForce is the mode of the listener that Usher sends; empty if it is not known, or if instances differ.
func (f *Facts) modeInForce() string {
	mode := ""
	for _, l := range f.usherListeners() {
		if mode != "" && l.InForce != mode {
			return ""
		}
		mode = l.InForce
	}
	return mode
}

// usherListeners are the listeners on the port that Usher has for the gateway.
func (f *Facts) usherListeners() (all []status.Listener) {
	if f.Usher.Facts == nil {
		return nil
	}
	for _, g := range f.Usher.Facts.Gateways {
		for _, l := range g.Listeners {
			if g.Name == f.Gateway.String() && l.Port == f.Port {
				all = append(all, l)
			}
		}
	}
	return all
}

// traffic collects the evidence of all sources.
func (f *Facts) traffic() traffic {
	var t traffic
	f.addProbes(&t)
	f.addCounters(&t)
	f.addReports(&t)
	f.addService(&t)
	return t
}

// addProbes adds what a probe through the load balancer shows: whether it adds a header to the probe's connections.
func (f *Facts) addProbes(t *traffic) {
	if r, ok := f.probed(); ok && r.Conclusion.Finding == probe.AddedHeader {
		t.with = append(t.with, "the probe: "+r.Meaning.Headline)
	}
	through, ok := firstResult(f.Balancer)
	if !ok {
		return
	}
	line := "the probe through the load balancer: " + through.Meaning.Headline
	c := through.Conclusion
	switch f.mode() + " " + string(c.Finding) {
	case "off " + string(probe.AddedHeader), "strict " + string(probe.Off):
		t.with = append(t.with, line)
	case "permissive " + string(probe.Off):
		if through.EnvoyRefusedHeader() { // it has read another one before
			t.with = append(t.with, line)
		} else {
			t.stopped = append(t.stopped, line)
		}
	case "off " + string(probe.Off), "permissive " + string(probe.Permissive), "strict " + string(probe.Strict):
		t.without = append(t.without, line)
	case "strict " + string(probe.ClosesAll), "strict " + string(probe.ClosesLater), "strict " + string(probe.Untrusted):
		t.closed = append(t.closed, line)
	}
}

// kind says what a counter of Envoy counts.
type kind string

const (
	withHeader  kind = "connections with a PROXY header"
	served      kind = "connections without a PROXY header that were served"
	closed      kind = "connections without a PROXY header that were closed"
	refused     kind = "connections whose PROXY header has a version that is not accepted"
	unreadable  kind = "connections that are no HTTP"
	requests    kind = "connections of clients"
	handshakes  kind = "TLS handshakes that failed"
	completed   kind = "TLS handshakes that succeeded"
	anotherKind kind = ""

	protocolError = "downstream_cx_protocol_error"
)

var (
	proxyCounter    = regexp.MustCompile(`^proxy_proto\.(?:(.+)\.)?(not_found_allowed|not_found_disallowed|versions\.v[12]\.(?:found|disallowed))$`)
	httpCounter     = regexp.MustCompile(`^http\.ingress_upstream_([0-9]+)(?:_.*)?\.(downstream_cx_total|` + protocolError + `)$`)
	listenerCounter = regexp.MustCompile(`^listener\..*_([0-9]+)\.ssl\.(connection_error|handshake)$`)
)

// kindOf returns what a counter counts on the listener's port. A listener that is off looks for no headers, and counts none.
func (f *Facts) kindOf(name string) kind {
	number := strconv.Itoa(f.Port)
	if m := proxyCounter.FindStringSubmatch(name); m != nil {
		if f.mode() == string(settings.Off) || !strings.HasSuffix(m[1], "_"+number) && (m[1] != "" || !f.onlyHeaders()) {
			return anotherKind
		}
		switch m[2] {
		case "not_found_allowed":
			return served
		case "not_found_disallowed":
			return closed
		case "versions.v1.disallowed", "versions.v2.disallowed":
			return refused
		}
		return withHeader
	}
	if m := httpCounter.FindStringSubmatch(name); m != nil && m[1] == number {
		if m[2] == protocolError {
			return unreadable
		}
		return requests
	}
	if m := listenerCounter.FindStringSubmatch(name); m != nil && m[1] == number {
		if m[2] == "handshake" {
			return completed
		}
		return handshakes
	}
	return anotherKind
}

// onlyHeaders reports whether no other listener of the gateway looks for headers. Envoy before 1.31 counts for all of them
// together.
func (f *Facts) onlyHeaders() bool {
	ports := map[int]bool{}
	if u := f.Usher.Facts; u != nil {
		for _, g := range u.Gateways {
			for _, l := range g.Listeners {
				if g.Name == f.Gateway.String() && l.InForce != string(settings.Off) {
					ports[l.Port] = true
				}
			}
		}
	}
	if len(ports) > 0 {
		return len(ports) == 1 && ports[f.Port]
	}
	c := f.Consul.Facts
	return c != nil && c.Entry != nil && len(c.Entry.Listeners) == 1
}

// growth returns by how much the counters of a kind have grown, and the evidence.
func (f *Facts) growth(of kind) (n uint64, evidence string) {
	e := f.Envoy.Facts
	if e == nil {
		return 0, ""
	}
	var names []string
	for name, after := range e.After {
		if before := e.Before[name]; f.kindOf(name) == of && after > before {
			n += after - before
			names = append(names, fmt.Sprintf("%s: %d, then %d", name, before, after))
		}
	}
	slices.Sort(names)
	return n, fmt.Sprintf("Envoy's counters, within %v: %d %s (%s)", e.Over, n, of, strings.Join(names, "; "))
}

// total returns how much the counters of a kind have counted, and the evidence.
func (f *Facts) total(of kind) (n uint64, evidence string) {
	if f.Envoy.Facts == nil {
		return 0, ""
	}
	var names []string
	for name, count := range f.Envoy.Facts.Before {
		if f.kindOf(name) == of && count > 0 {
			n += count
			names = append(names, fmt.Sprintf("%s: %d", name, count))
		}
	}
	slices.Sort(names)
	return n, "Envoy's counters, since it started: " + strings.Join(names, "; ")
}

// addCounters adds what Envoy has counted between two moments.
func (f *Facts) addCounters(t *traffic) {
	if n, line := f.growth(withHeader); n > 0 {
		t.with = append(t.with, line)
	}
	rejected, line := f.growth(refused)
	t.add(&t.refused, line, rejected, 0)
	if n, line := f.growth(served); n > 0 {
		t.without = append(t.without, line)
	}
	unannounced, line := f.growth(closed)
	t.add(&t.without, line, unannounced, 0)
	f.addBroken(t)
}

// addBroken adds the connections that Envoy could not read, against the others. A strict listener has read a header before.
func (f *Facts) addBroken(t *traffic) {
	if f.mode() == string(settings.Strict) {
		return
	}
	var failed uint64
	if f.mode() == string(settings.Off) && f.speaksTLS() {
		var line string
		failed, line = f.growth(handshakes)
		succeeded, _ := f.growth(completed)
		t.add(&t.with, line, failed, succeeded)
	}
	broken, line := f.growth(unreadable)
	all, lineOfAll := f.growth(requests)
	good := all - min(all, broken+failed)
	if f.mode() == string(settings.Off) {
		t.add(&t.with, line, broken, good)
	} else {
		t.add(&t.unreadable, line, broken, good)
	}
	if good > 0 && f.mode() == string(settings.Off) {
		t.without = append(t.without, lineOfAll)
	}
}

// add adds evidence to a list if most connections do not fit the mode, and otherwise to those that are too few.
func (t *traffic) add(list *[]string, line string, unfit, others uint64) {
	most := evidence.Summary{Malformed: evidence.Tally{Count: int(unfit)}, WithoutHeader: evidence.Tally{Count: int(others)}}.MostlyMalformed()
	switch {
	case most:
		*list = append(*list, line)
	case unfit > 0:
		t.few = append(t.few, line)
	}
}

func (f *Facts) speaksTLS() bool {
	r, ok := f.probed()
	return ok && r.Conclusion.TLS
}

// addReports adds what Envoys have reported to Usher between two moments, and what Usher concludes from earlier reports.
func (f *Facts) addReports(t *traffic) {
	u := f.Usher.Facts
	if u == nil {
		return
	}
	n := map[string]uint64{}
	for of, after := range u.After {
		if of.GatewayPort == (GatewayPort{f.Gateway.String(), f.Port}) {
			n[of.Type] = after - min(u.Before[of], after)
		}
	}
	line := func(of string) string {
		return fmt.Sprintf("connections that Envoys have just reported to Usher: %d of the type %s", n[of], of)
	}
	if n["header"] > 0 {
		t.trusted = append(t.trusted, line("header"))
	}
	if n["untrusted"] > 0 {
		t.untrusted, t.fewUntrusted = append(t.untrusted, line("untrusted")), n["untrusted"] <= evidence.FewConnections
	}
	if f.Envoy.Facts == nil { // which counts them itself, without a delay
		t.with = append(t.with, t.trusted...)
		t.add(&t.with, line("malformed"), n["malformed"], n["no_header"])
		if n["no_header"] > 0 {
			t.without = append(t.without, line("no_header"))
		}
		t.add(&t.without, line("refused"), n["refused"], 0)
	}
	for _, p := range u.Problems {
		switch {
		case !f.isAboutConnections(p):
		case strings.HasPrefix(p.What, "its mode is off"):
			t.with = append(t.with, "Usher: "+p.Where+": "+p.What)
		default:
			t.without = append(t.without, "Usher: "+p.Where+": "+p.What)
		}
	}
}

// isAboutConnections reports whether a problem of Usher is that the connections to the listener do not fit its mode.
func (f *Facts) isAboutConnections(p status.Problem) bool {
	return p.Where == "gateway "+f.Gateway.String()+": "+f.listener() && strings.Contains(p.What, "a PROXY header")
}

// addService adds what the Service in Kubernetes asks its load balancer for.
func (f *Facts) addService(t *traffic) {
	if f.Plan.Facts == nil || f.Plan.Facts.Service == (gateway.KubernetesService{}) {
		return
	}
	name := f.Plan.Facts.Service.Namespace + "/" + f.Plan.Facts.Service.Name
	switch f.Plan.Facts.ServiceModes[f.Port] {
	case settings.Strict, settings.Permissive:
		t.with = append(t.with, "the Service "+name+" in Kubernetes switches PROXY headers on")
	case settings.Off:
		t.without = append(t.without, "the Service "+name+" in Kubernetes switches no PROXY headers on")
	}
}
