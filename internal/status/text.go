package status

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"
)

// Text writes the states as tables for people: a line for each Usher, a row for each listener and each Envoy, and below them
// the problems, the worst first. wide adds columns.
func Text(w io.Writer, answers []Answer, wide bool) error {
	t := text{answers: answers, wide: wide, several: len(answers) > 1}
	t.ushers()
	t.connections()
	t.listeners()
	t.envoys()
	t.problems()
	_, err := w.Write(t.out.Bytes())
	return err
}

// text collects the output.
type text struct {
	answers       []Answer
	wide, several bool
	out           bytes.Buffer
}

// states calls visit with each Usher that has answered.
func (t *text) states(visit func(address string, s *State)) {
	for _, a := range t.answers {
		if a.State != nil {
			visit(a.Address, a.State)
		}
	}
}

// ushers writes a line for each Usher, and what it warns of.
func (t *text) ushers() {
	for _, a := range t.answers {
		if a.State == nil {
			fmt.Fprintf(&t.out, "%s: %s\n", a.Address, a.Error)
			continue
		}
		s := a.State
		ready := "ready"
		if !s.Usher.Ready {
			ready = "not ready: " + s.Usher.Reason
		}
		fmt.Fprintf(&t.out, "%s: usher %s, up %s, %s; %s; %s\n",
			a.Address, s.Usher.Version, s.age(s.Usher.Started), ready, s.sourceText(), count(len(s.Envoys), "Envoy"))
		for _, warning := range s.Usher.Warnings {
			fmt.Fprintf(&t.out, "  %s\n", warning)
		}
		for _, g := range s.Gateways {
			if !g.Restored.IsZero() {
				fmt.Fprintf(&t.out, "  gateway %s is from the state directory, where it was saved %s ago\n", g.Name, s.age(g.Restored))
			}
		}
	}
}

// connections says what to look at if no Envoy is connected to any Usher. That a replica has none is no fault.
func (t *text) connections() {
	answers, envoys := 0, 0
	t.states(func(_ string, s *State) {
		answers++
		envoys += len(s.Envoys)
	})
	if answers > 0 && envoys == 0 {
		fmt.Fprintln(&t.out, "No Envoy is connected: see that the address for xDS in the bootstrap of each gateway's Envoy is Usher's (usher doctor says more).")
	}
}

func (s *State) sourceText() string {
	name := map[string]string{Consul: "Consul answers", Files: "from files"}[s.Source.Type]
	if s.Source.Answers {
		return name
	}
	return fmt.Sprintf("the source (%s) has not answered for %s: %s", s.Source.Type, s.age(s.Source.Since), s.Source.Error)
}

// age returns how long ago a time is, such as "5m".
func (s *State) age(at time.Time) string { return duration.HumanDuration(max(0, s.Time.Sub(at))) }

func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// table writes rows below titles. An empty cell is "-". A title in brackets is of a column that is left out if all its cells
// are empty.
func (t *text) table(titles []string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	keep := make([]bool, len(titles))
	for i, title := range titles {
		bare := strings.Trim(title, "[]")
		keep[i] = bare == title || slices.ContainsFunc(rows, func(row []string) bool { return row[i] != "" })
		titles[i] = bare
	}
	fmt.Fprintln(&t.out)
	table := tabwriter.NewWriter(&t.out, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{titles}, rows...) {
		var cells []string
		for i, cell := range row {
			if keep[i] {
				cells = append(cells, cmp.Or(cell, "-"))
			}
		}
		fmt.Fprintln(table, strings.Join(cells, "\t"))
	}
	_ = table.Flush() // into memory
}

// only returns the text if the condition holds: for columns that are not always there.
func only(condition bool, text string) string {
	if condition {
		return text
	}
	return ""
}

// listeners writes the table of the listeners.
func (t *text) listeners() {
	var rows [][]string
	t.states(func(address string, s *State) {
		for _, g := range s.Gateways {
			usher := only(t.several, address)
			if len(g.Listeners) == 0 {
				rows = append(rows, []string{usher, g.Name, "", "", "", "", "", "", "", g.withoutListeners()})
			}
			for _, l := range g.Listeners {
				grace := ""
				if !l.GraceEnd.IsZero() {
					grace = duration.HumanDuration(max(0, l.GraceEnd.Sub(s.Time))) + " left"
				}
				rows = append(rows, []string{
					usher, g.Name, fmt.Sprint(l.Port), only(t.wide, l.protocolText()), l.Asked, l.inForceText(), grace, l.instancesText(t.wide),
					only(t.wide, l.Place), l.Reason,
				})
			}
		}
	})
	t.table([]string{"[USHER]", "GATEWAY", "PORT", "[PROTOCOL]", "MODE", "IN FORCE", "[GRACE]", "[INSTANCES]", "[SET IN]", "[WHY]"}, rows)
}

// withoutListeners says why a gateway has none.
func (g Gateway) withoutListeners() string {
	switch {
	case !g.Known:
		return "nothing is known about it yet"
	case !g.Entry:
		return "it has no ingress-gateway config entry"
	case !g.Registered():
		return "no instance of it is registered"
	}
	return "its config entry has no listeners"
}

func (l Listener) protocolText() string { return l.Protocol + only(l.TLS, " with TLS") }

func (l Listener) inForceText() string {
	switch l.Built {
	case HeldBack:
		return "held back"
	case Kept:
		return l.InForce + " (kept)"
	}
	return l.InForce + only(l.Unconfirmed, " (not accepted)")
}

// instancesText names the instances that have the listener, if not all do.
func (l Listener) instancesText(all bool) string {
	const most = 2
	var names []string
	for _, in := range l.Instances {
		names = append(names, in.ServiceID)
	}
	if more := len(names) - most; more > 1 && !all {
		names = append(names[:most], fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

// typeNames are all types, in the order in which Usher sends them.
var typeNames = []string{"secret", "token_bucket", "cluster", "endpoint", "listener", "route"}

// envoys writes the table of the Envoys.
func (t *text) envoys() {
	titles := []string{"[USHER]", "GATEWAY", "INSTANCE", "[NODE]", "ADDRESS", "ENVOY", "[PROTOCOL]", "CONNECTED", "[RESOURCES]"}
	for _, name := range typeNames {
		titles = append(titles, "["+strings.ToUpper(name)+"]")
	}
	var rows [][]string
	t.states(func(address string, s *State) {
		for _, e := range s.Envoys {
			row := []string{
				only(t.several, address), e.Gateway, e.ServiceID, e.Node, cmp.Or(e.Address, "unix socket"), e.Release,
				only(t.wide, e.Protocol+only(e.Dataplane, ", through consul-dataplane")), s.age(e.Connected), only(!t.wide, s.resourcesText(e)),
			}
			for _, name := range typeNames {
				row = append(row, only(t.wide, s.typeText(e, name)))
			}
			rows = append(rows, row)
		}
	})
	t.table(titles, rows)
}

// resourcesText returns "synced", or which types of resources of an Envoy are not.
func (s *State) resourcesText(e Envoy) string {
	var parts []string
	for _, of := range e.Types {
		if of.Sync != Synced {
			parts = append(parts, fmt.Sprintf("%s %s for %s", of.Type, of.Sync, s.age(of.Since)))
		}
	}
	if len(e.Types) == 0 {
		return "it has asked for none"
	}
	return cmp.Or(strings.Join(parts, ", "), string(Synced))
}

// typeText describes one type of resources of an Envoy: how many it has accepted, and their version.
func (s *State) typeText(e Envoy, name string) string {
	for _, of := range e.Types {
		if of.Type != name {
			continue
		}
		has := ""
		if of.Version != "" {
			has = fmt.Sprintf(", %d (%.8s)", of.Resources, of.Version)
		}
		return fmt.Sprintf("%s %s%s", of.Sync, s.age(of.Since), has)
	}
	return ""
}

// problems writes the problems of all Ushers, each once, and whose it is if others that answer do not have it.
func (t *text) problems() {
	var all []Problem
	known := 0 // how many Ushers have answered
	of := map[Problem][]string{}
	t.states(func(address string, s *State) {
		known++
		all = append(all, s.Problems...)
		for _, p := range s.Problems {
			if !slices.Contains(of[p], address) {
				of[p] = append(of[p], address)
			}
		}
	})
	if known == 0 {
		return
	}
	slices.SortStableFunc(all, func(a, b Problem) int { return int(b.Severity) - int(a.Severity) })
	fmt.Fprintln(&t.out)
	seen := map[Problem]bool{}
	for _, p := range all {
		if seen[p] {
			continue
		}
		seen[p] = true
		if len(of[p]) < known {
			fmt.Fprintf(&t.out, "%s: ", strings.Join(of[p], ", "))
		}
		fmt.Fprintln(&t.out, p)
	}
	if len(all) == 0 {
		fmt.Fprintln(&t.out, "no problems")
	}
}
