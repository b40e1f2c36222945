package loadbalancer

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/settings"
	"github.com/usherproxy/usher/internal/testing/services"
)

// serviceCases returns the Services of all clouds.
func serviceCases(t testing.TB) []services.Case {
	t.Helper()
	return services.Read(t, "testdata/services")
}

func TestServices(t *testing.T) {
	for _, c := range serviceCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			want := valueCase{
				http: proxyState(c.State), https: proxyState(cmp.Or(c.HTTPS, c.State)), version: settings.Version(c.Version), problem: c.Problem,
			}
			if c.Problem == "" && (want.http == proxyUnknown || want.https == proxyUnknown) {
				t.Error("nothing says why it is unknown")
			}
			checkIntent(t, want, readIntent(c.Service(t)))
		})
	}
}

// Each annotation needs a Service that turns it on, and one in which it stands and is not honoured, or a sentence that
// says why that cannot be. Each condition needs a Service in which it is the one that counts.
func TestEveryAnnotationHasAServiceThatHonoursItAndOneThatDoesNot(t *testing.T) {
	var all []*corev1.Service
	for _, c := range serviceCases(t) {
		all = append(all, c.Service(t))
	}
	for _, c := range valueCases {
		all = append(all, withValue(c.key, c.value))
	}
	for _, p := range Providers {
		shown := map[string]bool{} // the conditions that a Service has
		for _, a := range p.Annotations {
			honoured, notHonoured := false, false
			for _, s := range all {
				for _, port := range s.Spec.Ports[:min(2, len(s.Spec.Ports))] {
					value, found := s.Annotations[a.keyFor(port.Port)]
					if !found || a.parse(value, port).state != proxyOn {
						continue
					}
					c, found := p.notHonoured(a, s, port)
					shown[c.problem(80)] = true
					honoured, notHonoured = honoured || !found, notHonoured || found
				}
			}
			if !honoured {
				t.Errorf("%s, %s: no Service turns it on", p.Name, a.Key)
			}
			if notHonoured == (a.AlwaysHonoured != "") {
				t.Errorf("%s, %s: a Service in which it is not honoured: %v; a sentence why there is none: %q", p.Name, a.Key, notHonoured, a.AlwaysHonoured)
			}
		}
		for _, c := range p.conditions() {
			if !shown[c.problem(80)] {
				t.Errorf("%s: no Service shows the condition %q", p.Name, c.problem(80))
			}
		}
	}
}

// A change of what a condition reads can switch headers on or off, so its time counts.
func TestConditionsReadTheFieldsThatTheyName(t *testing.T) {
	value, name := regexp.MustCompile(`"[^"]*"`), regexp.MustCompile(`[\w-]+(?:\.[\w-]+)+/[\w.<>-]+|\bspec\.\w+`)
	for _, p := range Providers {
		for _, c := range p.conditions() {
			for _, f := range c.When {
				for _, named := range name.FindAllString(value.ReplaceAllString(f.Clause, ""), -1) {
					want := annotationField(named)
					if spec, ok := strings.CutPrefix(named, "spec."); ok {
						want = specField(spec)
					}
					if !slices.ContainsFunc(f.fields, func(got field) bool { return slices.Equal(got, want) }) {
						t.Errorf("%s: %q reads %v, and not %v", p.Name, f.Clause, f.fields, want)
					}
				}
			}
		}
	}
}

// conditions returns all conditions of a provider.
func (p Provider) conditions() []Condition {
	all := slices.Clone(p.NotHonoured)
	for _, a := range p.Annotations {
		all = append(all, a.NotHonoured...)
	}
	return all
}
