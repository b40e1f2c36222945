package controlplane

import (
	"cmp"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/listeners"
	"github.com/usherproxy/usher/xds"
)

// Problems knows all current problems. It logs each problem once when it begins and once when it is over, even if
// several gateways have it, and counts the problems. It implements xds.Observer. Use NewProblems. Any goroutine may call
// the methods.
type Problems struct {
	log      *slog.Logger
	count    *prometheus.GaugeVec
	rejected *prometheus.GaugeVec
	nacks    *prometheus.CounterVec
	heldBack *prometheus.GaugeVec

	mu         sync.Mutex                              // guards what follows
	known      map[string]map[string][]problem.Problem // by gateway and source of the origin; sorted, without duplicates
	origins    map[problem.Problem]int                 // how many origins have a problem, whatever its At
	shared     map[problem.Problem]int                 // how many sources that serve all gateways have a problem
	rejections map[string]map[*rejection]struct{}      // by gateway
	lacking    map[gateway.ID]map[*xds.Node][]string   // the listeners that are held back, of Envoys that do not have them
}

// origin is where problems come from: the worker of a gateway, its Envoys, or a source that serves all gateways.
type origin struct{ gateway, source string } // one of them is empty, except with fromEnvoys

// fromEnvoys is the source of what the Envoys of a gateway lack.
const fromEnvoys = "envoys"

// rejection is an update that an Envoy rejects. Its stream logs it.
type rejection struct {
	gateway string
	typ     xds.Type
	problem problem.Problem
}

// Reported is a current problem.
type Reported struct {
	Gateway string // that has it; empty: Usher itself
	problem.Problem
}

// NewProblems registers the metrics of the problems. The series of a gateway are removed with its last Envoy.
func NewProblems(log *slog.Logger, r prometheus.Registerer) *Problems {
	p := &Problems{
		log: log,
		count: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_config_problems",
			Help: "Current problems, by gateway (empty: Usher's own files) and severity. " +
				"outage: a listener serves nothing, or an Envoy gets nothing. degraded: the last valid configuration is in use, or a part is left out. " +
				"notice: it may be meant.",
		}, []string{"gateway", "severity"}),
		rejected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_xds_rejected",
			Help: "Envoys that reject an update and keep the version before, by gateway and type. The log has Envoy's reason.",
		}, []string{"gateway", "type"}),
		nacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "usher_xds_nacks_total", Help: "Responses that Envoys rejected (NACK), by gateway and type. A series begins with the first one.",
		}, []string{"gateway", "type"}),
		heldBack: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_held_back_listeners",
			Help: "Envoys that serve nothing on a port, because its listener is held back and they have no version of it from before.",
		}, []string{"gateway", "port"}),
		known:      map[string]map[string][]problem.Problem{},
		origins:    map[problem.Problem]int{},
		shared:     map[problem.Problem]int{},
		rejections: map[string]map[*rejection]struct{}{},
		lacking:    map[gateway.ID]map[*xds.Node][]string{},
	}
	r.MustRegister(p.count, p.rejected, p.nacks, p.heldBack)
	return p
}

// Report replaces the problems of a source that serves all gateways, such as a file.
func (p *Problems) Report(source string, problems []problem.Problem) {
	p.replace(origin{source: source}, problems)
}

// ReportLogged is Report for a source that logs its problems itself.
func (p *Problems) ReportLogged(source string, problems []problem.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.store(origin{source: source}, normalized(problems))
}

// ReportCertificate replaces the problems of Usher's own certificate: its expiry, and new files that are rejected, which
// their reader logs.
func (p *Problems) ReportCertificate(expiry, rejected []problem.Problem) {
	p.Report("the certificate", expiry)
	p.ReportLogged("new files of the certificate", rejected)
}

// Current returns all current problems, the worst first, each once: a problem that a source for all gateways has is not
// repeated for a gateway.
func (p *Problems) Current() []Reported {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []Reported
	for gateway := range p.known {
		for known := range p.ownOf(gateway) {
			all = append(all, Reported{gateway, known})
		}
	}
	for gateway, rejections := range p.rejections {
		for r := range rejections {
			all = append(all, Reported{gateway, r.problem})
		}
	}
	slices.SortFunc(all, func(a, b Reported) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.Gateway, b.Gateway), problem.Compare(a.Problem, b.Problem))
	})
	return all
}

// setGateway replaces the problems of a gateway.
func (p *Problems) setGateway(id gateway.ID, problems []problem.Problem) {
	p.replace(origin{gateway: id.String()}, problems)
}

// removeGateway removes the problems of a gateway without Envoys. They are neither current nor over, so it logs
// nothing.
func (p *Problems) removeGateway(id gateway.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.store(origin{gateway: id.String()}, nil)
	p.forget(origin{gateway: id.String()})
	p.count.DeletePartialMatch(prometheus.Labels{"gateway": id.String()})
	p.nacks.DeletePartialMatch(prometheus.Labels{"gateway": id.String()})
}

// Rejected implements xds.Observer.
func (p *Problems) Rejected(n xds.Node, t xds.Type, r xds.Rejection) (clearReport func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, _ := GatewayOf(n) // no error: a node with a stream has a gateway
	report := &rejection{gateway: id.String(), typ: t, problem: rejectionProblem(n, t, r)}
	add(p.rejections, report.gateway, report, struct{}{})
	p.updateRejected(report)
	if !r.Repeated {
		p.nacks.WithLabelValues(report.gateway, t.String()).Inc()
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		remove(p.rejections, report.gateway, report)
		p.updateRejected(report)
	}
}

// rejectionProblem returns the problem of an Envoy that rejects its latest update.
func rejectionProblem(n xds.Node, t xds.Type, r xds.Rejection) problem.Problem {
	severity, keeps := problem.Degraded, "it keeps what it had before it connected"
	switch {
	case t == xds.Listener && len(r.Missing) > 0:
		severity, keeps = problem.Outage, "it has no earlier version of "+strings.Join(r.Missing, ", ")+", and serves nothing there"
	case !r.AcceptedAt.IsZero():
		keeps = "it keeps the version that it accepted at " + r.AcceptedAt.UTC().Format(time.RFC3339)
	}
	return problem.Problem{
		Where: describeEnvoy(n),
		What: fmt.Sprintf("it rejects the update of %s %s: %s; %s. Correct what Envoy names",
			t, strings.Join(xds.FirstNames(r.Resources), ", "), strings.TrimSuffix(r.Message, "."), keeps),
		Severity: severity,
	}
}

// updateRejected updates the metrics after a change of a rejection. The caller holds mu.
func (p *Problems) updateRejected(changed *rejection) {
	envoys := 0
	for r := range p.rejections[changed.gateway] {
		if r.typ == changed.typ {
			envoys++
		}
	}
	if envoys > 0 {
		p.rejected.WithLabelValues(changed.gateway, changed.typ.String()).Set(float64(envoys))
	} else {
		p.rejected.DeleteLabelValues(changed.gateway, changed.typ.String())
	}
	p.countGateway(changed.gateway)
}

// HeldBack implements xds.Observer.
func (p *Problems) HeldBack(n *xds.Node, names []string, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, _ := GatewayOf(*n) // no error: a node with a stream has a gateway
	if len(names) > 0 {
		add(p.lacking, id, n, names)
	} else {
		remove(p.lacking, id, n)
	}
	byPort := p.heldBackPorts(id)
	p.heldBack.DeletePartialMatch(prometheus.Labels{"gateway": id.String()})
	var problems []problem.Problem
	for port, envoys := range byPort {
		p.heldBack.WithLabelValues(id.String(), port).Set(float64(len(envoys)))
		problems = append(problems, heldBackProblem(id, port, envoys))
	}
	o := origin{gateway: id.String(), source: fromEnvoys}
	before := p.set(o, problems)
	for _, old := range before {
		stays := slices.ContainsFunc(p.list(o), func(now problem.Problem) bool { return now.Where == old.Where })
		if !ended && !stays { // the last of these Envoys that disconnects corrects nothing
			p.logOver(o, old)
		}
	}
}

// heldBackPorts returns descriptions of the Envoys of a gateway that lack a listener, by its port. The caller holds mu.
func (p *Problems) heldBackPorts(id gateway.ID) map[string][]string {
	byPort := map[string][]string{}
	for n, names := range p.lacking[id] {
		ports := map[string]bool{}
		for _, name := range names {
			if !listeners.IsLoopback(name) { // what clients reach may be there, without it
				ports[listeners.PortOf(name)] = true
			}
		}
		for port := range ports {
			byPort[port] = append(byPort[port], describeEnvoy(*n))
		}
	}
	return byPort
}

// heldBackProblem returns the problem of Envoys that have no listener on a port.
func heldBackProblem(id gateway.ID, port string, envoys []string) problem.Problem {
	return problem.Problem{
		Where:    "gateway " + id.String() + ": listener " + port,
		What:     "it is held back, and there is no valid version of it from before; " + listEnvoys(envoys) + ": nothing is served there until the other problems of this gateway are corrected",
		Severity: problem.Outage,
	}
}

// listEnvoys lists descriptions of Envoys: the first few, so that the text stays short, and changes rarely.
func listEnvoys(envoys []string) string {
	const most = 3
	slices.Sort(envoys)
	who := strings.Join(envoys[:min(most, len(envoys))], ", ")
	if len(envoys) > most {
		who += " and others"
	}
	return who
}

// list returns the problems of an origin. The caller holds mu.
func (p *Problems) list(o origin) []problem.Problem { return p.known[o.gateway][o.source] }

// ownOf returns the problems of a gateway that no source for all gateways has; with an empty name those of these sources.
// The caller holds mu.
func (p *Problems) ownOf(gateway string) iter.Seq[problem.Problem] {
	return func(yield func(problem.Problem) bool) {
		for _, list := range p.known[gateway] {
			for _, known := range list {
				if (gateway == "" || p.shared[known] == 0) && !yield(known) {
					return
				}
			}
		}
	}
}

// updateCount updates the gauges after a change of an origin. Those of every gateway depend on sources for all. The caller
// holds mu.
func (p *Problems) updateCount(changed origin) {
	if changed.gateway != "" {
		p.countGateway(changed.gateway)
		return
	}
	for gateway := range p.known {
		p.countGateway(gateway)
	}
}

// countGateway updates the gauges of a gateway, or with an empty name those of the other problems. The caller holds mu.
func (p *Problems) countGateway(gateway string) {
	count := map[problem.Severity]int{}
	for known := range p.ownOf(gateway) {
		count[known.Severity]++
	}
	for r := range p.rejections[gateway] {
		count[r.problem.Severity]++
	}
	for _, s := range problem.Severities {
		p.count.WithLabelValues(gateway, s.String()).Set(float64(count[s]))
	}
}

// replace replaces the problems of an origin and logs the difference.
func (p *Problems) replace(o origin, problems []problem.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, old := range p.set(o, problems) {
		p.logOver(o, old)
	}
}

// set replaces the problems of an origin, logs those that are new, and returns those from before. The caller holds mu.
func (p *Problems) set(o origin, problems []problem.Problem) (before []problem.Problem) {
	problems = normalized(problems)
	for _, problem := range problems {
		if !p.isKnown(problem) {
			p.logBegin(o, problem)
		}
	}
	before = p.list(o)
	p.store(o, problems)
	if len(problems) == 0 && o.source == fromEnvoys {
		p.forget(o)
	}
	return before
}

// normalized returns problems in the form in which they are stored.
func normalized(problems []problem.Problem) []problem.Problem {
	return slices.Compact(slices.SortedFunc(slices.Values(problems), problem.Compare))
}

// store stores the problems of an origin and updates the metrics, unless they are the same as before. The caller holds mu.
func (p *Problems) store(o origin, problems []problem.Problem) {
	before, isKnown := p.known[o.gateway][o.source]
	if isKnown && slices.Equal(before, problems) {
		return
	}
	p.countOrigins(o, before, -1)
	p.countOrigins(o, problems, +1)
	add(p.known, o.gateway, o.source, problems)
	p.updateCount(o)
}

// countOrigins adds a number to that of the origins of each problem. The caller holds mu.
func (p *Problems) countOrigins(o origin, problems []problem.Problem, n int) {
	for _, one := range problems {
		if o.gateway == "" {
			addCount(p.shared, one, n)
		}
		addCount(p.origins, withoutPlace(one), n)
	}
}

// forget removes an origin without problems. The caller holds mu.
func (p *Problems) forget(o origin) { remove(p.known, o.gateway, o.source) }

// add sets an entry of a map in a map.
func add[O, K comparable, V any](m map[O]map[K]V, outer O, key K, v V) {
	if m[outer] == nil {
		m[outer] = map[K]V{}
	}
	m[outer][key] = v
}

// remove removes an entry of a map in a map, and that map with its last entry.
func remove[O, K comparable, V any](m map[O]map[K]V, outer O, key K) {
	delete(m[outer], key)
	if len(m[outer]) == 0 {
		delete(m, outer)
	}
}

// addCount adds a number to a count, and removes it at zero.
func addCount(counts map[problem.Problem]int, of problem.Problem, n int) {
	if counts[of] += n; counts[of] == 0 {
		delete(counts, of)
	}
}

// withoutPlace returns a problem that is equal in another column of its line: Where names the line.
func withoutPlace(p problem.Problem) problem.Problem {
	p.At = problem.Position{}
	return p
}

// logBegin logs a problem at the level of its severity.
func (p *Problems) logBegin(o origin, begun problem.Problem) {
	log := p.logger(o)
	write := log.Warn
	switch begun.Severity {
	case problem.Outage:
		write = log.Error
	case problem.Notice:
		write = log.Info
	}
	write("problem", "where", begun.Where, "what", begun.What, "severity", begun.Severity)
}

// logOver logs that a problem is over, unless it is known with whatever severity. The caller holds mu.
func (p *Problems) logOver(o origin, old problem.Problem) {
	for _, s := range problem.Severities {
		other := old
		if other.Severity = s; p.isKnown(other) {
			return
		}
	}
	p.logger(o).Info("problem over", "where", old.Where, "what", old.What)
}

func (p *Problems) logger(o origin) *slog.Logger {
	if o.gateway != "" {
		return p.log.With("gateway", o.gateway)
	}
	return p.log
}

// isKnown reports whether a problem is known, perhaps in another column of its line.
func (p *Problems) isKnown(of problem.Problem) bool { return p.origins[withoutPlace(of)] > 0 }
