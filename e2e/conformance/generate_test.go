//go:build e2e

package conformance

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/usherproxy/usher/e2e/lab"
)

// object is a JSON object in Consul's spelling.
type object = map[string]any

// generator makes valid cases at random. The same seed and number give the same
// case.
//
// Where Consul's own answer is random or a crash, it makes no such case: a
// service that two listeners or two chains reach has the limits of whichever
// Consul's map gives first, so services have limits of their own only where
// chains do not meet; and limits with failover end Consul's stream, so a case
// has one of them.
type generator struct {
	*rand.Rand

	meet     bool // chains lead to services of other chains
	failover bool
	limits   bool
	tls      string          // of the gateway: "", "leaf" or "sds"
	splits   map[string]int  // how many splitters in a row begin at a service
	subsets  map[string]bool // the services that have the subsets v1 and v2
	entries  []map[string]any
}

func generate(seed uint64, number int) lab.GatewayCase {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, uint64(number))), splits: map[string]int{}, subsets: map[string]bool{}}
	g.meet = g.maybe(70)
	g.failover = g.meet && g.maybe(50)
	g.limits = !g.failover
	g.tls = pick(g, "", "", "leaf", "sds")
	c := lab.GatewayCase{Name: fmt.Sprintf("%d-%d", seed, number), Services: map[string][]map[string]any{}, Gateway: g.registration()}

	var listeners []any
	for i, protocol := range []string{"http", "http2", "grpc", "tcp"} {
		if i > 0 && g.maybe(50) { // http is always there
			continue
		}
		names := g.services(c, protocol)
		listeners = append(listeners, g.listener(8000+i, protocol, names))
		if g.meet && g.maybe(30) {
			listeners = append(listeners, g.listener(9000+i, protocol, names))
		}
	}
	g.proxyDefaults()
	g.mesh()
	g.ingress(listeners)
	c.Entries = g.entries
	c.Nothing = !slices.ContainsFunc(listeners, func(l any) bool { return servesService(c, l) })
	return c
}

// servesService reports whether there is anything for a listener to serve: a wildcard
// stands for the services that are registered.
func servesService(c lab.GatewayCase, listener any) bool {
	l := listener.(object)
	for _, service := range l["Services"].([]any) {
		if service.(object)["Name"] != "*" {
			return true
		}
	}
	for name := range c.Services {
		if strings.HasPrefix(name, fmt.Sprint(l["Protocol"], "-")) {
			return true
		}
	}
	return false
}

func (g *generator) maybe(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

// some calls each function with that probability.
func (g *generator) some(percent int, set ...func()) {
	for _, f := range set {
		if g.maybe(percent) {
			f()
		}
	}
}

func (g *generator) entry(e object) { g.entries = append(g.entries, e) }

// services makes one to four services of a protocol, with their instances and
// chains. A service leads to later ones only, so that nothing goes in circles.
func (g *generator) services(c lab.GatewayCase, protocol string) []string {
	var names []string
	for i := range 1 + g.IntN(4) {
		names = append(names, fmt.Sprintf("%s-%c", protocol, 'a'+i))
	}
	for i, name := range slices.Backward(names) {
		for range g.IntN(4) {
			c.Services[name] = append(c.Services[name], g.instance())
		}
		later := names[i+1:]
		if !g.meet {
			later = nil
		}
		if g.serviceDefaults(name, protocol) {
			continue
		}
		subsets := g.resolver(name, later)
		if protocol == "tcp" {
			continue
		}
		g.splitter(name, subsets, later)
		g.router(name, subsets, later)
	}
	return names
}

func (g *generator) instance() object {
	i := object{}
	g.some(
		40,
		func() { i["Status"] = pick(g, "passing", "warning", "critical") },
		func() { i["Weights"] = object{"Passing": 1 + g.IntN(200), "Warning": g.IntN(3)} },
		func() { i["Meta"] = object{"version": pick(g, "v1", "v2")} },
		func() { i["Port"] = 20000 + g.IntN(1000) },
	)
	return i
}

// serviceDefaults reports whether the service is one outside of the mesh, which can
// have no chain and be part of none.
func (g *generator) serviceDefaults(name, protocol string) bool {
	e := object{"Kind": "service-defaults", "Name": name, "Protocol": protocol}
	external := !g.meet && g.maybe(20)
	if external {
		e["ExternalSNI"] = name + ".example.com"
	}
	g.entry(e)
	return external
}

// resolver returns the subsets that the service has.
func (g *generator) resolver(name string, later []string) []string {
	e := object{"Kind": "service-resolver", "Name": name}
	if len(later) > 0 && g.maybe(15) {
		to := pick(g, later...)
		redirect := object{"Service": to}
		if g.subsets[to] && g.maybe(50) {
			redirect["ServiceSubset"] = "v1"
		}
		e["Redirect"] = redirect
		g.splits[name] = g.splits[to]
		g.entry(e)
		return nil
	}
	var subsets []string
	g.some(
		40,
		func() { e["ConnectTimeout"] = g.duration() },
		func() { e["RequestTimeout"] = g.duration() },
		func() { e["LoadBalancer"] = g.loadBalancer() },
		func() {
			subsets = []string{"v1", "v2"}
			e["Subsets"] = object{
				"v1": object{"Filter": "Service.Meta.version == v1", "OnlyPassing": g.maybe(50)},
				"v2": object{"Filter": "Service.Meta.version == v2"},
			}
			g.some(50, func() { e["DefaultSubset"] = pick(g, subsets...) })
		},
	)
	if g.failover && g.maybe(60) {
		e["Failover"] = g.failoverTo(subsets, later)
	}
	if len(e) == 2 {
		return nil
	}
	if e["Failover"] == nil {
		delete(e, "Failover")
	}
	g.subsets[name] = len(subsets) > 0
	g.entry(e)
	return subsets
}

// failoverTo returns nil when there is nothing to fail over to.
func (g *generator) failoverTo(subsets, later []string) any {
	from := "*"
	if len(subsets) > 0 && g.maybe(50) {
		from = "v1"
	}
	switch {
	case len(later) > 0 && g.maybe(50):
		return object{from: object{"Service": pick(g, later...)}}
	case from == "v1" && g.maybe(50):
		return object{from: object{"ServiceSubset": "v2"}}
	case len(later) > 0:
		targets := []any{object{"Service": later[0]}}
		if from == "v1" {
			targets = append(targets, object{"ServiceSubset": "v2"})
		}
		return object{from: object{"Targets": targets}}
	}
	return nil
}

func (g *generator) loadBalancer() object {
	lb := object{"Policy": pick(g, "", "random", "round_robin", "least_request", "ring_hash", "maglev")}
	switch lb["Policy"] {
	case "least_request":
		g.some(70, func() { lb["LeastRequestConfig"] = object{"ChoiceCount": 2 + g.IntN(5)} })
	case "ring_hash":
		g.some(70, func() {
			lb["RingHashConfig"] = object{"MinimumRingSize": 1 + g.IntN(100), "MaximumRingSize": 200 + g.IntN(100)}
		})
		lb["HashPolicies"] = g.hashPolicies()
	case "maglev":
		lb["HashPolicies"] = g.hashPolicies()
	}
	return lb
}

func (g *generator) hashPolicies() []any {
	var out []any
	for range 1 + g.IntN(3) {
		p := object{"Terminal": g.maybe(50)}
		switch pick(g, "ip", "header", "cookie", "query_parameter") {
		case "ip":
			p["SourceIP"] = true
		case "header":
			p["Field"], p["FieldValue"] = "header", "x-user"
		case "query_parameter":
			p["Field"], p["FieldValue"] = "query_parameter", "user"
		case "cookie":
			p["Field"], p["FieldValue"] = "cookie", "user"
			g.some(
				70,
				func() {
					p["CookieConfig"] = pick(g, object{"Session": true, "Path": "/a"}, object{"TTL": g.duration(), "Path": "/"})
				},
			)
		}
		out = append(out, p)
	}
	return out
}

func (g *generator) splitter(name string, subsets, later []string) {
	if g.maybe(60) || len(subsets)+len(later) == 0 {
		return
	}
	var legs []any
	row := 1
	for _, to := range g.destinations(subsets, later) {
		next := g.splits[fmt.Sprint(to["Service"])]
		if next > 1 || len(legs) == 3 {
			continue
		}
		row = max(row, 1+next)
		g.headers(to)
		fillHeaders(to)
		legs = append(legs, to)
	}
	g.splits[name] = row
	left := 10000
	for i, l := range legs {
		share := left
		if i < len(legs)-1 {
			share = g.IntN(left + 1)
		}
		left -= share
		l.(object)["Weight"] = float64(share) / 100
	}
	g.entry(object{"Kind": "service-splitter", "Name": name, "Splits": legs})
}

// destinations are where a service can lead to, itself first.
func (g *generator) destinations(subsets, later []string) []object {
	out := []object{{}}
	if len(subsets) > 0 {
		out = []object{{"ServiceSubset": "v1"}, {"ServiceSubset": "v2"}}
	}
	for _, name := range later {
		out = append(out, object{"Service": name})
	}
	return out
}

// fillHeaders gives the modifiers of a splitter's leg something of both kinds:
// Consul 1.22.0 ends with a panic where a splitter leads to another one, and
// only one of the two adds, or sets, a header.
func fillHeaders(to object) {
	for _, field := range []string{"RequestHeaders", "ResponseHeaders"} {
		if modifiers, ok := to[field].(object); ok {
			modifiers["Add"] = object{"x-add-1": "a"}
			modifiers["Set"] = object{"x-set-1": "a"}
		}
	}
}

func (g *generator) duration() string { return fmt.Sprintf("%dms", 1+g.IntN(20000)) }
