package control

import (
	"cmp"
	"log/slog"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/gateway"
)

// Problems says each problem once when it comes and once when it goes, however
// many gateways it concerns and whoever finds it, and counts them. Use
// NewProblems; the methods may be called from any goroutine.
type Problems struct {
	log   *slog.Logger
	count *prometheus.GaugeVec

	mu    sync.Mutex
	known map[owner][]gateway.Problem // sorted, without doubles
}

// owner is who has problems: a gateway, or a source of facts about them all.
type owner struct {
	gateway, source string // one of them
}

// NewProblems registers the metric of the problems. Its only label is the
// gateway, and a gateway's series goes away with its last Envoy.
func NewProblems(log *slog.Logger, r prometheus.Registerer) *Problems {
	p := &Problems{
		log: log,
		count: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_config_problems",
			Help: "Problems in the configuration that somebody has to mend, by the gateway that they concern, or without a gateway where they are those of Usher's own files; " +
				"the last good configuration stays meanwhile.",
		}, []string{"gateway"}),
		known: map[owner][]gateway.Problem{},
	}
	r.MustRegister(p.count)
	return p
}

// Report replaces the problems of a source that is not one gateway's, such as a
// file.
func (p *Problems) Report(source string, problems []gateway.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.update(owner{source: source}, problems)
	var n int
	for o, problems := range p.known {
		if o.source != "" {
			n += len(problems)
		}
	}
	p.count.WithLabelValues("").Set(float64(n))
}

// ofGateway replaces the problems of a gateway.
func (p *Problems) ofGateway(id gateway.ID, problems []gateway.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := owner{gateway: id.String()}
	p.update(o, problems)
	p.count.WithLabelValues(o.gateway).Set(float64(len(p.known[o])))
}

// forget drops the problems of a gateway that nobody asks for any more: they
// are neither there nor mended.
func (p *Problems) forget(id gateway.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, owner{gateway: id.String()})
	p.count.DeleteLabelValues(id.String())
}

func (p *Problems) update(o owner, problems []gateway.Problem) {
	problems = slices.Clone(problems)
	slices.SortFunc(problems, func(a, b gateway.Problem) int {
		return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.What, b.What))
	})
	problems = slices.Compact(problems)
	log := p.log
	if o.gateway != "" {
		log = log.With("gateway", o.gateway)
	}
	for _, problem := range problems {
		if !p.has(problem) {
			log.Error("bad configuration", "where", problem.Where, "what", problem.What)
		}
	}
	before := p.known[o]
	p.known[o] = problems
	for _, problem := range before {
		if !p.has(problem) {
			log.Info("configuration mended", "where", problem.Where, "what", problem.What)
		}
	}
}

func (p *Problems) has(problem gateway.Problem) bool {
	for _, known := range p.known {
		if slices.Contains(known, problem) {
			return true
		}
	}
	return false
}
