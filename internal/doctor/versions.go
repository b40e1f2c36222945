package doctor

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/version"

	"github.com/usherproxy/usher/internal/problem"
)

// The oldest releases that Usher is made for: of Consul, and of Envoy (internal/envoy).
const (
	oldestConsul = "1.15.0"
	oldestEnvoy  = "1.22.0"
	// permissiveEnvoy is the first Envoy whose filter accepts connections without a header.
	permissiveEnvoy = "1.23.0"
)

// checkVersions says what is too old.
func checkVersions(f *Facts, r *Report) {
	const check = "versions"
	var known []string
	if c := f.Consul.Facts; c != nil && c.Version != "" {
		known = append(known, "Consul "+c.Version)
		if older(c.Version, oldestConsul) {
			r.add(Finding{
				Check: check, Severity: problem.Notice, What: fmt.Sprintf("Consul %s is older than 1.15, with which Usher is tested.", c.Version),
				Evidence: []string{"Consul's /v1/agent/self"}, Remedy: Remedy{Text: "Upgrade Consul."},
			})
		}
	}
	for release, who := range f.envoys() {
		known = append(known, "Envoy "+release)
		switch {
		case older(release, oldestEnvoy):
			r.add(Finding{
				Check: check, Severity: problem.Degraded, What: fmt.Sprintf("Envoy %s is older than 1.22, the oldest one that Usher is made for.", release),
				Evidence: []string{who}, Remedy: Remedy{Text: "Upgrade Envoy."},
			})
		case older(release, permissiveEnvoy) && f.mode() == "permissive":
			r.add(Finding{
				Check: check, Severity: problem.Degraded, What: fmt.Sprintf("Envoy %s is too old for the mode permissive, which needs 1.23.", release),
				Evidence: []string{who}, Remedy: Remedy{Text: "Upgrade Envoy, or use the mode strict or off."},
			})
		}
	}
	if c := f.Chart.Facts; c != nil {
		known = append(known, "consul-k8s "+c.Image)
		if c.TooOld != "" {
			r.add(Finding{
				Check: check, Severity: problem.Degraded, What: "The Consul chart is too old: " + c.TooOld + ".",
				Evidence: []string{"the image of the controller that registers gateways: " + c.Image},
			})
		}
	}
	if len(known) > 0 && !r.has(check) {
		r.fine(check, strings.Join(known, ", "))
	}
}

// has reports whether a check has found something.
func (r *Report) has(check string) bool {
	for _, f := range r.Findings {
		if f.Check == check {
			return true
		}
	}
	return false
}

// envoys are the releases of the gateway's Envoys, with where each is known from.
func (f *Facts) envoys() map[string]string {
	all := map[string]string{}
	if u := f.Usher.Facts; u != nil {
		for _, e := range u.Envoys {
			if e.Gateway == f.Gateway.String() {
				all[e.Release] = fmt.Sprintf("Usher's /status: Envoy %q", e.ServiceID)
			}
		}
	}
	if e := f.Envoy.Facts; e != nil {
		all[e.Release] = "Envoy's /server_info"
	}
	return all
}

// older reports whether a version is older than another one. One that cannot be read is not.
func older(v, than string) bool {
	parsed, err := version.ParseGeneric(v)
	return err == nil && parsed.LessThan(version.MustParseGeneric(than))
}

// checkCertificate says whether the certificate of Usher's port for Envoys ends soon.
func checkCertificate(f *Facts, r *Report) {
	const check = "certificate"
	c := f.Certificate.Facts
	if c == nil {
		return
	}
	left, ends := c.NotAfter.Sub(f.Now), c.NotAfter.UTC().Format(time.RFC3339)
	found := Finding{
		Check:    check,
		Evidence: []string{fmt.Sprintf("the certificate for %s at the port for Envoys is valid from %s to %s", quoted(c.Names), c.NotBefore.UTC().Format(time.RFC3339), ends)},
		Remedy:   Remedy{Text: "Renew it, and write certificate and key to the files of --tls-cert and --tls-key. Usher uses them without a restart."},
	}
	switch {
	case left <= 0:
		found.Severity, found.What = problem.Outage, "The certificate of Usher's port for Envoys has expired: no Envoy can connect."
	case c.NotBefore.After(f.Now):
		found.Severity, found.What = problem.Outage, "The certificate of Usher's port for Envoys is not valid yet: no Envoy can connect."
	case left < c.NotAfter.Sub(c.NotBefore)/10:
		found.Severity = problem.Degraded
		found.What = "The certificate of Usher's port for Envoys expires soon: at " + ends + ", " + left.Round(time.Minute).String() + " from now."
	default:
		r.fine(check, "the certificate of Usher's port for Envoys is valid until "+ends)
		return
	}
	r.add(found)
}
