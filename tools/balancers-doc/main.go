// Command balancers-doc writes the page of load balancers
// (docs/load-balancers.md) to the file that it is given, from the table that
// reads their annotations (loadbalancer.Annotations).
package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"os"
	"strings"

	"github.com/usherproxy/usher/internal/loadbalancer"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: balancers-doc FILE")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], []byte(page()), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// head is everything of the page that does not follow from the table.
//
//go:embed head.md
var head string

// page gives the whole page.
func page() string {
	var b strings.Builder
	b.WriteString(head)
	provider := ""
	for _, a := range loadbalancer.Annotations {
		if a.Provider != provider {
			provider = a.Provider
			fmt.Fprintf(&b, "\n### %s\n\n| annotation | on | off | any other value | sends | for | read in |\n|---|---|---|---|---|---|---|\n", provider)
			b.WriteString(rows(provider))
			b.WriteString(checks(provider))
		}
	}
	b.WriteString("\n## Which send no header because of an annotation\n\n| | instead |\n|---|---|\n")
	for _, n := range loadbalancer.WithoutAnnotation {
		fmt.Fprintf(&b, "| %s | %s |\n", n.Name, n.Instead)
	}
	return b.String()
}

func rows(provider string) string {
	var b strings.Builder
	for _, a := range of(provider) {
		d := a.Describe()
		scope := "the Service"
		if d.PerPort {
			scope = "each port"
		}
		fmt.Fprintf(&b, "| [`%s`](%s) | %s | %s | %s | %s | %s | %s |\n", a.Key, a.Source, d.On, cmp.Or(d.Off, "without it"), d.Otherwise, d.Sends, scope, a.Evidence)
	}
	return b.String()
}

// checks gives what is to be known of a provider's annotations.
func checks(provider string) string {
	var b strings.Builder
	several := len(of(provider)) > 1
	note := func(key, what string) {
		if several {
			what = fmt.Sprintf("`%s`: %s", key, what)
		}
		fmt.Fprintf(&b, "- %s.\n", what)
	}
	if several {
		b.WriteString("- Of these, the first counts that says something of a port.\n")
	}
	for _, a := range of(provider) {
		if a.Note != "" {
			note(a.Key, a.Note)
		}
		if a.Describe().Kept {
			note(a.Key, "removing the annotation leaves the balancer as it was, and a running Usher goes on as if it were there, with a problem: "+switchOff(a))
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return "\n" + b.String()
}

// switchOff says how to switch an annotation off whose removal does not.
func switchOff(a loadbalancer.Annotation) string {
	if off := a.Describe().Off; off != "nothing" {
		return "set it to " + off + ", and remove it later, if at all"
	}
	return "keep it as long as the balancer is there"
}

func of(provider string) []loadbalancer.Annotation {
	var out []loadbalancer.Annotation
	for _, a := range loadbalancer.Annotations {
		if a.Provider == provider {
			out = append(out, a)
		}
	}
	return out
}
