package configdir

import "slices"

// checkIntentions applies the rules of
// https://developer.hashicorp.com/consul/docs/reference/config-entry/service-intentions.
func checkIntentions(d *decoder, e *entry[serviceIntentions]) {
	if len(e.spec.Sources) == 0 {
		e.problem(d, steps("Sources"), "there is no source; add one")
	}
	seen := map[string]place{}
	for i := range e.spec.Sources {
		s, at := &e.spec.Sources[i], steps("Sources", i)
		e.onlyDefault(d, at, s.Namespace, s.Partition)
		if s.Name == "" {
			e.problem(d, append(at, "Name"), "this source has no name; give it one")
		}
		if earlier, twice := seen[s.Name]; twice {
			e.problem(d, append(at, "Name"), "source %q is already given at %s; remove one of the two", s.Name, earlier)
		}
		seen[s.Name] = e.place(append(at, "Name")...)
		if !slices.Contains([]string{"allow", "deny"}, s.Action) {
			e.problem(d, append(at, "Action"), "%q is not allowed; use allow or deny", s.Action)
		}
		if s.Type != "" && s.Type != "consul" {
			e.problem(d, append(at, "Type"), "%q is not allowed; use consul, or remove it", s.Type)
		}
	}
}

// verdict is what the intentions say of a source and a destination.
type verdict struct {
	denied bool
	at     place // of the source that decided, where denied
}

// decide gives the intentions' verdict as Consul does
// (https://developer.hashicorp.com/consul/docs/secure-mesh/intention#precedence-and-match-order):
// an exact destination goes before "*", then an exact source before "*". Where
// none matches, the connection is allowed, as in a Consul without ACLs.
func decide(intentions []*entry[serviceIntentions], source, destination string) verdict {
	for _, to := range []string{destination, wildcard} {
		for _, from := range []string{source, wildcard} {
			for _, e := range intentions {
				if e.name != to {
					continue
				}
				for i, s := range e.spec.Sources {
					if s.Name == from {
						return verdict{denied: s.Action == "deny", at: e.place("Sources", i, "Action")}
					}
				}
			}
		}
	}
	return verdict{}
}
