package doctor

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/status"
)

// checkReadiness says whether Usher is ready, and its source answers.
func checkReadiness(f *Facts, r *Report) {
	const check = "usher"
	u := f.Usher.Facts
	switch {
	case u == nil:
	case !u.Usher.Ready:
		r.add(Finding{
			Check: check, Severity: problem.Outage, What: "Usher is not ready: Envoys that connect get nothing.",
			Evidence: []string{"/readyz: " + u.Usher.Reason},
			Remedy:   Remedy{Text: "Correct what the reason names."},
		})
	case !u.Source.Answers:
		r.add(Finding{
			Check: check, Severity: problem.Degraded,
			What:     "Usher cannot read its configuration since " + u.Source.Since.UTC().Format(time.RFC3339) + ": Envoys keep what they have, and changes have no effect.",
			Evidence: []string{"/status: " + u.Source.Error}, Remedy: Remedy{Text: "Correct what the error names."},
		})
	default:
		r.fine(check, "Usher "+u.Usher.Version+" is ready")
	}
}

// staleAfter is how long an Envoy may take to answer an update.
const staleAfter = 30 * time.Second

// checkEnvoys says whether Usher serves the Envoys of the registered instances.
func checkEnvoys(f *Facts, r *Report) {
	const check = "envoys"
	u := f.Usher.Facts
	if u == nil || f.Gateway.Name == "" {
		return
	}
	connected := 0
	for _, e := range u.Envoys {
		if e.Gateway != f.Gateway.String() {
			continue
		}
		connected++
		for _, t := range e.Types {
			if t.Sync == status.Stale && u.Time.Sub(t.Since) > staleAfter {
				r.add(Finding{
					Check: check, Severity: problem.Degraded,
					What:     fmt.Sprintf("Envoy %q of gateway %q does not answer updates.", e.ServiceID, e.Gateway),
					Evidence: []string{fmt.Sprintf("/status: it has not answered the last update of the type %s since %s", t.Type, t.Since.UTC().Format(time.RFC3339))},
					Remedy:   Remedy{Text: "Check that the Envoy at " + e.Address + " runs, and start it again if it hangs."},
				})
			}
		}
	}
	away := f.away()
	for _, in := range away {
		if e := f.Envoy.Facts; e == nil || e.XDS || e.ServiceID != in { // else checkStream says why
			r.add(f.notConnected(check, in))
		}
	}
	if len(away) == 0 && connected > 0 {
		r.fine(check, fmt.Sprintf("Envoys of gateway %q that Usher serves: %d", f.Gateway, connected))
	}
}

// away are the service IDs of the gateway's instances that Usher does not serve. Instances on several nodes can have the
// same service ID.
func (f *Facts) away() (all []string) {
	if f.Usher.Facts == nil {
		return nil
	}
	connected := map[string]int{}
	for _, e := range f.Usher.Facts.Envoys {
		if e.Gateway == f.Gateway.String() {
			connected[e.ServiceID]++
		}
	}
	for _, in := range f.registered() {
		if connected[in]--; connected[in] < 0 {
			all = append(all, in)
		}
	}
	return all
}

// registered are the service IDs of the gateway's instances.
func (f *Facts) registered() (all []string) {
	if f.Consul.Facts == nil {
		return nil
	}
	for _, in := range f.Consul.Facts.Instances {
		all = append(all, in.ServiceID)
	}
	return all
}

// notConnected is the finding that Usher does not serve an instance.
func (f *Facts) notConnected(check, serviceID string) Finding {
	found := Finding{
		Check: check, Severity: problem.Degraded,
		What: fmt.Sprintf("The Envoy of instance %q of gateway %q is not connected to this Usher: Usher's settings do not reach it, unless another replica serves it.",
			serviceID, f.Gateway),
		Evidence: []string{fmt.Sprintf("Consul has the instance %q, and Usher's /status has no Envoy with this service ID", serviceID)},
		Remedy:   f.moveToUsher(serviceID),
	}
	if e := f.Envoy.Facts; e != nil && e.ServiceID == serviceID {
		found.Evidence = append(found.Evidence, "Envoy's admin interface: its stream to its control plane is open, and that is not this Usher: it is Consul, or another replica")
	}
	return found
}

// moveToUsher is the remedy that lets the Envoy of an instance use Usher.
func (f *Facts) moveToUsher(serviceID string) Remedy {
	if strings.HasPrefix(serviceID, "_nomad-task-") {
		return Remedy{Text: "Let the Envoy use Usher: set CONSUL_GRPC_ADDR in the job of the gateway to Usher's address, as docs/quickstart-nomad.md says."}
	}
	return Remedy{
		Text:    "Let the Envoy use Usher: docs/cutover.md says how without losing a request. The command for its host:",
		Command: registerCommand(f.Gateway),
	}
}

// xdsCluster begins the counters of the connections to Envoy's control plane, in the bootstraps of Consul and of Usher.
const xdsCluster = "cluster.local_agent."

// streamCauses are the counters that say why Envoy has no stream, and what to do.
var streamCauses = []struct{ counter, remedy string }{
	{"ssl.fail_verify_error", "It does not trust the certificate of its control plane: give it the CA that has signed this (usher bootstrap --ca-file), " +
		"or renew the certificate if it has expired (--usher-xds-addr shows that)."},
	{"ssl.connection_error", "TLS handshakes fail: the port does not speak TLS, although the bootstrap says so."},
	{"upstream_cx_connect_fail", "Nothing answers at the address in its bootstrap: start Usher, or correct the address."},
}

// checkStream says why the Envoy has no stream to its control plane.
func checkStream(f *Facts, r *Report) {
	e := f.Envoy.Facts
	if e == nil || e.XDS {
		return
	}
	found := Finding{
		Check: "envoys", Severity: problem.Degraded,
		What:     fmt.Sprintf("Envoy %q has no stream to its control plane: it keeps what it has, and gets no changes.", e.ServiceID),
		Evidence: []string{"Envoy's gauge: control_plane.connected_state: 0"},
		Remedy:   Remedy{Text: "Read Envoy's log and the one of its control plane: this may refuse the Envoy's token, or speak TLS where the bootstrap does not."},
	}
	for _, cause := range streamCauses {
		if n := e.After[xdsCluster+cause.counter]; n > 0 {
			found.Evidence = append(found.Evidence, fmt.Sprintf("Envoy's counter, since it started: %s%s: %d", xdsCluster, cause.counter, n))
			found.Remedy.Text = cause.remedy
			break
		}
	}
	r.add(found)
}

// checkProblems adds the problems that Usher has, and those that it would have.
func checkProblems(f *Facts, r *Report) {
	const check = "problems"
	seen, others, elsewhere := map[string]bool{}, 0, false
	add := func(severity problem.Severity, where, what, from string) {
		if seen[where+what] {
			return
		}
		seen[where+what] = true
		r.add(Finding{
			Check: check, Severity: severity, What: where + ": " + what, Evidence: []string{from},
			Remedy: correctName(where, what),
		})
	}
	before := len(r.Findings)
	if u := f.Usher.Facts; u != nil {
		for _, p := range u.Problems {
			switch {
			case f.isAboutConnections(p) && f.mode() != "":
				elsewhere = true // in checkAgreement
			case p.Gateway != "" && p.Gateway != f.Gateway.String():
				others++
			default:
				add(p.Severity, p.Where, p.What, "Usher's /status")
			}
		}
	}
	if f.Plan.Facts != nil {
		for _, p := range f.Plan.Facts.Problems {
			add(p.Severity, p.Where, p.What, "what usher doctor reads of the gateway's configuration, as usher serve would")
		}
	}
	switch {
	case others > 0:
		r.fine(check, fmt.Sprintf("problems of other gateways: %d; usher status prints them", others))
	case len(r.Findings) == before && f.Usher.Facts != nil && !elsewhere:
		r.fine(check, "Usher has no problem, holds no listener back, and no Envoy rejects an update")
	}
}

// misspelt finds the wrong and the right name in a problem about a block of the config file.
var misspelt = regexp.MustCompile(`^(.+:[0-9]+): gateway "([^"]+)"$`)

var meant = regexp.MustCompile(`\(did you mean "([^"]+)"\?\)`)

// correctName returns the remedy for a misspelt block of the config file. Other problems say themselves what to do.
func correctName(where, what string) Remedy {
	m, right := misspelt.FindStringSubmatch(where), meant.FindStringSubmatch(what)
	if m == nil || right == nil {
		return Remedy{}
	}
	remedy := Remedy{Text: fmt.Sprintf("Correct the name in %s: it is %q.", m[1], right[1])}
	// In JSON, one line can have everything. The expression finds nothing in it, whatever the file's name is.
	if file, line, _ := fileAndLine(m[1]); !isJSON(file) {
		remedy.Command = fmt.Sprintf(`sed -i --follow-symlinks '%s s/\(gateway[[:space:]]*\)"%s"/\1"%s"/' %s`, line, escapeForSed(m[2]), escapeForSed(right[1]), quoteForShell(file))
	}
	return remedy
}

// escapeForSed escapes a name for an expression of sed in single quotes.
func escapeForSed(name string) string {
	return strings.NewReplacer(`\`, `\\`, `/`, `\/`, `.`, `\.`, `'`, `'\''`, `&`, `\&`, `*`, `\*`, `[`, `\[`).Replace(name)
}
