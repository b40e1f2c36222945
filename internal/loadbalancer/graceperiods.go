package loadbalancer

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/gateway"
)

// graces are those that last now, for everybody who wants to see how long. The
// methods may be called from any goroutine.
type graces struct {
	described *prometheus.Desc

	mu   sync.Mutex
	ends map[gateway.KubernetesService]map[int]time.Time // by the listener's port
}

func newGraces() *graces {
	return &graces{
		described: prometheus.NewDesc(
			"usher_kubernetes_grace_end_timestamp_seconds",
			"When a listener stops taking connections both with and without a PROXY header, because its load balancer has had the time to follow its Service.",
			[]string{"namespace", "service", "port"}, nil,
		),
		ends: map[gateway.KubernetesService]map[int]time.Time{},
	}
}

// set replaces those of a Service; ends is not modified afterwards.
func (g *graces) set(id gateway.KubernetesService, ends map[int]time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(ends) == 0 {
		delete(g.ends, id)
		return
	}
	g.ends[id] = ends
}

// Describe implements prometheus.Collector.
func (g *graces) Describe(out chan<- *prometheus.Desc) { out <- g.described }

// Collect implements prometheus.Collector.
func (g *graces) Collect(out chan<- prometheus.Metric) {
	for _, one := range g.list() {
		out <- prometheus.MustNewConstMetric(g.described, prometheus.GaugeValue, float64(one.end.Unix()),
			one.service.Namespace, one.service.Name, strconv.Itoa(one.port))
	}
}

// grace is one that lasts.
type grace struct {
	service gateway.KubernetesService
	port    int // 0: all listeners that no port of the Service leads to
	end     time.Time
}

// list gives all, by Service and port.
func (g *graces) list() []grace {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []grace
	for id, ends := range g.ends {
		for port, end := range ends {
			out = append(out, grace{service: id, port: port, end: end})
		}
	}
	slices.SortFunc(out, func(a, b grace) int {
		return cmp.Or(cmp.Compare(a.service.Namespace, b.service.Namespace), cmp.Compare(a.service.Name, b.service.Name), a.port-b.port)
	})
	return out
}

// remark says how long each of them still lasts, in one line; "" if none does.
func (g *graces) remark(now time.Time) string {
	var out []string
	for _, one := range g.list() {
		listener := "listener " + strconv.Itoa(one.port)
		if one.port == 0 {
			listener = "other listeners"
		}
		out = append(out, fmt.Sprintf("%s behind Service %s/%s: %s more, until %s",
			listener, one.service.Namespace, one.service.Name, one.end.Sub(now).Round(time.Second), one.end.UTC().Format(time.RFC3339)))
	}
	if out == nil {
		return ""
	}
	return "taken with and without a PROXY header, while the load balancer follows its Service: " + strings.Join(out, "; ")
}
