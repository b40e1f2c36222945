//go:build e2e

package conformance

func (g *generator) router(name string, subsets, later []string) {
	if g.maybe(50) {
		return
	}
	var routes []any
	for range 1 + g.IntN(4) {
		route := object{}
		if match := g.match(); len(match) > 0 {
			route["Match"] = object{"HTTP": match}
		}
		to := pick(g, g.destinations(subsets, later)...)
		g.some(
			30,
			func() { to["RequestTimeout"] = g.duration() },
			func() { to["IdleTimeout"] = pick(g, g.duration(), "-1s") },
			func() { to["NumRetries"] = 1 + g.IntN(5) },
			func() { to["RetryOnConnectFailure"] = true },
			func() { to["RetryOn"] = []string{"reset", pick(g, "5xx", "connect-failure")} },
			func() { to["RetryOnStatusCodes"] = []int{500 + g.IntN(9)} },
		)
		if path := match(route); path {
			g.some(40, func() { to["PrefixRewrite"] = pick(g, "/rewritten", "/") })
		}
		g.headers(to)
		route["Destination"] = to
		routes = append(routes, route)
	}
	g.entry(object{"Kind": "service-router", "Name": name, "Routes": routes})
}

// match reports whether a route matches by a path that can be rewritten.
func match(route object) bool {
	m, _ := route["Match"].(object)
	http, _ := m["HTTP"].(object)
	return http["PathPrefix"] != nil || http["PathExact"] != nil
}

func (g *generator) match() object {
	m := object{}
	g.some(
		70,
		func() {
			m[pick(g, "PathExact", "PathPrefix", "PathRegex")] = pick(g, "/", "/a", "/b/c")
			g.some(30, func() { m["CaseInsensitive"] = true })
		},
	)
	g.some(
		30,
		func() { m["Methods"] = []string{"GET", "PUT"}[:1+g.IntN(2)] },
		func() {
			m["Header"] = []any{
				object{"Name": "x-a", pick(g, "Exact", "Prefix", "Suffix", "Regex"): "v", "Invert": g.maybe(30)},
				object{"Name": "x-b", "Present": true, "Invert": g.maybe(30)},
			}
		},
		func() {
			m["QueryParam"] = []any{object{"Name": "a", pick(g, "Exact", "Regex"): "v"}, object{"Name": "b", "Present": true}}
		},
	)
	return m
}

// headers adds header modifiers to what can have them.
func (g *generator) headers(to object) {
	for _, field := range []string{"RequestHeaders", "ResponseHeaders"} {
		modifiers := object{}
		g.some(
			20,
			func() { modifiers["Add"] = object{"x-add-1": "a", "x-add-2": "b"} },
			func() { modifiers["Set"] = object{"x-set-1": "a", "x-set-2": "%PROTOCOL%"} },
			func() { modifiers["Remove"] = []string{"x-gone-2", "x-gone-1"} },
		)
		if len(modifiers) > 0 {
			to[field] = modifiers
		}
	}
}
