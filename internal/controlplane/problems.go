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

// Problems says each problem once when it comes and once when it goes, however
// many gateways it concerns and whoever finds it, and counts them. Use
// NewProblems; the methods may be called from any goroutine.
type Problems struct {
	log   *slog.Logger
	count *prometheus.GaugeVec

	mu    sync.Mutex
	known map[origin][]problem.Problem // sorted, without doubles
	// rejected counts, by gateway and type, the Envoys that refuse an update.
	rejected *prometheus.GaugeVec
}

// owner is the origin of problems: a gateway's worker, a source of facts about all
// gateways, or an Envoy that refuses an update.
type origin struct {
	gateway   string // empty if the problems concern no single gateway
	source    string
	rejection *xds.Rejection
	typ       xds.Type // the type of the rejected update
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
		known: map[origin][]problem.Problem{},
		rejected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "usher_xds_rejected",
			Help: "Envoys that refuse what they were sent last and go on with what they accepted before, by gateway and type; the log has Envoy's words.",
		}, []string{"gateway", "type"}),
	}
	r.MustRegister(p.count, p.rejected)
	return p
}

// Report replaces the problems of a source that is not one gateway's, such as a
// file.
func (p *Problems) Report(source string, problems []problem.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replace(origin{source: source}, problems)
	p.updateGauge("")
}

// ofGateway replaces the problems of a gateway.
func (p *Problems) setGateway(id gateway.ID, problems []problem.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replace(origin{gateway: id.String()}, problems)
	p.updateGauge(id.String())
}

// show updates the gauge of a gateway. An empty name stands for the problems of no
// single gateway. The caller holds mu.
func (p *Problems) updateGauge(gateway string) {
	var n int
	for o, problems := range p.known {
		if o.gateway == gateway {
			n += len(problems)
		}
	}
	p.count.WithLabelValues(gateway).Set(float64(n))
}

// forget drops the problems of a gateway that nobody asks for any more: they
// are neither there nor mended.
func (p *Problems) removeGateway(id gateway.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, origin{gateway: id.String()})
	p.count.DeleteLabelValues(id.String())
}

// Rejected implements xds.Rejections. While an Envoy refuses an update, its gateway
// has a problem.
func (p *Problems) Rejected(n xds.Node, t xds.Type, r xds.Rejection) (over func()) {
	id, _ := GatewayOf(n) // never fails: a node with a stream has a gateway
	o := origin{gateway: id.String(), rejection: &r, typ: t}
	p.mu.Lock()
	defer p.mu.Unlock()
	// No log here: the stream has logged it already.
	p.known[o] = []problem.Problem{{
		Where: fmt.Sprintf("Envoy %q at %s", n.ID, describeAddress(n.Peer)),
		What: fmt.Sprintf("refuses version %.12s of type %s (%s) and goes on with what it accepted before: %s",
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

// showRejections updates the gauges that count o. The caller holds mu.
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
			log.Info("configuration mended", "where", problem.Where, "what", problem.What)
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
