package controlplane

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/xds"
)

// Problems logs each problem once when it begins and once when it is over, even if several gateways have it, and
// counts the problems. Use NewProblems. Any goroutine may call the methods.
type Problems struct {
	log      *slog.Logger
	count    *prometheus.GaugeVec
	rejected *prometheus.GaugeVec

	mu         sync.Mutex                   // guards what follows
	known      map[origin][]problem.Problem // sorted, without duplicates
	rejections map[rejection]int            // how many Envoys reject an update
}

// origin is where problems come from: the worker of a gateway, or a source that serves all gateways.
type origin struct{ gateway, source string } // one of them is empty

// rejection names the updates of one type that Envoys of a gateway reject. Each counts as a problem of the gateway.
// Its stream logs it.
type rejection struct {
	gateway string
	typ     xds.Type
}

// NewProblems registers the metrics of the problems. The series of a gateway are removed with its last Envoy.
func NewProblems(log *slog.Logger, r prometheus.Registerer) *Problems {
	p := &Problems{
		log: log,
		count: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_config_problems",
			Help: "Current problems, by gateway (empty: Usher's own files). " +
				"Envoys keep the last valid configuration; a listener that never had one is held back.",
		}, []string{"gateway"}),
		rejected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_xds_rejected",
			Help: "Envoys that reject the last update and keep the version before, by gateway and type. The log has Envoy's reason.",
		}, []string{"gateway", "type"}),
		known:      map[origin][]problem.Problem{},
		rejections: map[rejection]int{},
	}
	r.MustRegister(p.count, p.rejected)
	return p
}

// Report replaces the problems of a source that serves all gateways, such as a file.
func (p *Problems) Report(source string, problems []problem.Problem) {
	p.replace(origin{source: source}, problems)
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
	delete(p.known, origin{gateway: id.String()})
	p.count.DeleteLabelValues(id.String())
}

// Rejected implements xds.Rejections.
func (p *Problems) Rejected(n xds.Node, t xds.Type, _ xds.Rejection) (clearReport func()) {
	id, _ := GatewayOf(n) // no error: a node with a stream has a gateway
	r := rejection{gateway: id.String(), typ: t}
	p.addRejections(r, 1)
	return func() { p.addRejections(r, -1) }
}

func (p *Problems) addRejections(r rejection, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rejections[r] += n
	if p.rejections[r] > 0 {
		p.rejected.WithLabelValues(r.gateway, r.typ.String()).Set(float64(p.rejections[r]))
	} else {
		delete(p.rejections, r)
		p.rejected.DeleteLabelValues(r.gateway, r.typ.String())
	}
	p.updateCount(r.gateway)
}

// updateCount updates the gauge of a gateway, or with an empty name the one of the other problems. The caller holds mu.
func (p *Problems) updateCount(gateway string) {
	var n int
	for o, problems := range p.known {
		if o.gateway == gateway {
			n += len(problems)
		}
	}
	for r, envoys := range p.rejections {
		if r.gateway == gateway {
			n += envoys
		}
	}
	p.count.WithLabelValues(gateway).Set(float64(n))
}

// replace replaces the problems of an origin and logs the difference.
func (p *Problems) replace(o origin, problems []problem.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	problems = slices.SortedFunc(slices.Values(problems), func(a, b problem.Problem) int {
		return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.What, b.What))
	})
	problems = slices.Compact(problems)
	log := p.log
	if o.gateway != "" {
		log = log.With("gateway", o.gateway)
	}
	for _, problem := range problems {
		if !p.isKnown(problem) {
			log.Error("problem", "where", problem.Where, "what", problem.What)
		}
	}
	before := p.known[o]
	p.known[o] = problems
	for _, problem := range before {
		if !p.isKnown(problem) {
			log.Info("problem over", "where", problem.Where, "what", problem.What)
		}
	}
	p.updateCount(o.gateway)
}

func (p *Problems) isKnown(problem problem.Problem) bool {
	for _, known := range p.known {
		if slices.Contains(known, problem) {
			return true
		}
	}
	return false
}
