package controlplane

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/xds"
)

// Problems logs each problem once when it begins and once when it is over, even if
// several gateways have it, and counts the problems. Use NewProblems. Any goroutine may
// call the methods.
type Problems struct {
	log   *slog.Logger
	count *prometheus.GaugeVec

	mu    sync.Mutex
	known map[origin][]problem.Problem // sorted, without duplicates
	// rejected counts, by gateway and type, the Envoys that refuse an update.
	rejected *prometheus.GaugeVec
}

// origin is where problems come from: the worker of a gateway, a source that serves all
// gateways, or an Envoy that refuses an update.
type origin struct {
	gateway   string // empty if the problems concern no single gateway
	source    string
	rejection *xds.Rejection
	typ       xds.Type // of the rejected update
}

// NewProblems registers the metrics of the problems. The series of a gateway are removed
// with its last Envoy.
func NewProblems(log *slog.Logger, r prometheus.Registerer) *Problems {
	p := &Problems{
		log: log,
		count: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_config_problems",
			Help: "Problems in the configuration, by gateway; without a gateway, those in Usher's own files. " +
				"Until a problem is corrected, the last valid configuration stays in use. The log has each problem.",
		}, []string{"gateway"}),
		known: map[origin][]problem.Problem{},
		rejected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_xds_rejected",
			Help: "Envoys that refuse the last update that Usher sent and keep the one before, by gateway and type. The log has Envoy's reason.",
		}, []string{"gateway", "type"}),
	}
	r.MustRegister(p.count, p.rejected)
	return p
}

// Report replaces the problems of a source that serves all gateways, such as a file.
func (p *Problems) Report(source string, problems []problem.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replace(origin{source: source}, problems)
	p.updateGauge("")
}

// setGateway replaces the problems of a gateway.
func (p *Problems) setGateway(id gateway.ID, problems []problem.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replace(origin{gateway: id.String()}, problems)
	p.updateGauge(id.String())
}

// removeGateway removes the problems of a gateway without Envoys. They are neither
// current nor over, so it logs nothing.
func (p *Problems) removeGateway(id gateway.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, origin{gateway: id.String()})
	p.count.DeleteLabelValues(id.String())
}

// updateGauge updates the gauge of a gateway, or with an empty name the one of problems
// that concern no single gateway. The caller holds mu.
func (p *Problems) updateGauge(gateway string) {
	var n int
	for o, problems := range p.known {
		if o.gateway == gateway {
			n += len(problems)
		}
	}
	p.count.WithLabelValues(gateway).Set(float64(n))
}

// Rejected implements xds.Rejections. While an Envoy refuses an update, its gateway has
// a problem.
func (p *Problems) Rejected(n xds.Node, t xds.Type, r xds.Rejection) (over func()) {
	id, _ := GatewayOf(n) // no error: a node with a stream has a gateway
	o := origin{gateway: id.String(), rejection: &r, typ: t}
	p.mu.Lock()
	defer p.mu.Unlock()
	// The stream has already logged the rejection.
	p.known[o] = []problem.Problem{{
		Where: fmt.Sprintf("Envoy %q at %s", n.ID, describeAddress(n.Peer)),
		What: fmt.Sprintf("it refuses version %.12s of type %s (%s) and keeps the version before: %s",
			r.Version, t, strings.Join(r.Resources, ", "), r.Message),
	}}
	p.updateRejectedGauge(o)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.known, o)
		p.updateRejectedGauge(o)
	}
}

// updateRejectedGauge updates the gauges that count a rejection. The caller holds mu.
func (p *Problems) updateRejectedGauge(o origin) {
	p.updateGauge(o.gateway)
	var n int
	for other := range p.known {
		if other.rejection != nil && other.gateway == o.gateway && other.typ == o.typ {
			n++
		}
	}
	if n == 0 {
		p.rejected.DeleteLabelValues(o.gateway, o.typ.String())
		return
	}
	p.rejected.WithLabelValues(o.gateway, o.typ.String()).Set(float64(n))
}

// replace replaces the problems of an origin and logs the difference. The caller holds
// mu.
func (p *Problems) replace(o origin, problems []problem.Problem) {
	problems = slices.Clone(problems)
	slices.SortFunc(problems, func(a, b problem.Problem) int {
		return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.What, b.What))
	})
	problems = slices.Compact(problems)
	log := p.log
	if o.gateway != "" {
		log = log.With("gateway", o.gateway)
	}
	for _, problem := range problems {
		if !p.isKnown(problem) {
			log.Error("bad configuration", "where", problem.Where, "what", problem.What)
		}
	}
	before := p.known[o]
	p.known[o] = problems
	for _, problem := range before {
		if !p.isKnown(problem) {
			log.Info("configuration corrected", "where", problem.Where, "what", problem.What)
		}
	}
}

func (p *Problems) isKnown(problem problem.Problem) bool {
	for _, known := range p.known {
		if slices.Contains(known, problem) {
			return true
		}
	}
	return false
}
