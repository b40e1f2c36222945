// Command balancers-doc writes the page about load balancers (docs/load-balancers.md) to the file that is its
// argument, from the table of annotations (loadbalancer.Providers).
package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"os"
	"slices"
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

// The parts of the page that do not follow from the table: what comes before and after it, and what you have to know
// beside the annotations of a provider.
var (
	//go:embed head.md
	head string
	//go:embed tail.md
	tail string
	//go:embed notes.md
	notes string
)

// page returns the whole page.
func page() string {
	var b strings.Builder
	b.WriteString(head)
	for _, p := range loadbalancer.Providers {
		fmt.Fprintf(&b, "\n### %s\n\n", p.Name)
		b.WriteString("| annotation | on | off | any other value | sends | for | read in |\n|---|---|---|---|---|---|---|\n")
		for _, a := range p.Annotations {
			fmt.Fprintf(&b, "| [`%s`](%s) | %s | %s | %s | %s | %s | %s |\n",
				a.Key, cmp.Or(a.URL, p.URL), on(a), off(a), a.Otherwise.Doc, versions(a), scope(a), cmp.Or(p.Evidence, "not verified"))
		}
		if list := notesOn(p); list != "" {
			b.WriteString("\n" + list)
		}
	}
	return b.String() + tail
}

// on returns the values that switch headers on.
func on(a loadbalancer.Annotation) string {
	var values []string
	for _, v := range a.On {
		values = append(values, code(v.Text))
	}
	if a.Ports != nil {
		list := "ports of the Service: `80,443`"
		if a.Ports.NodePorts {
			list = "nodePorts of the Service: `30080,30443`"
		}
		values = append(values, list)
	}
	text := strings.TrimSpace(strings.Join(values, ", ") + " " + a.Location)
	if a.PortsKey != "" {
		text += fmt.Sprintf("; with `%s: 80,443` on these ports only", a.PortsKey)
	}
	return text
}

// off returns the values that switch headers off.
func off(a loadbalancer.Annotation) string {
	var values []string
	for _, text := range a.Off {
		values = append(values, code(text))
	}
	switch {
	case a.Location != "" && len(values) > 0:
		values = append(values, "or without it")
	case a.PersistsWhenRemoved && len(values) == 0:
		return "nothing"
	}
	return cmp.Or(strings.Join(values, ", "), "without it")
}

func code(value string) string { return "`" + cmp.Or(value, `""`) + "`" }

// versions returns the versions of the protocol that are sent.
func versions(a loadbalancer.Annotation) string {
	var known []string
	for _, v := range a.On {
		known = append(known, string(v.Version))
	}
	if a.Ports != nil {
		known = append(known, string(a.Ports.Version))
	}
	if slices.Contains(known, "") {
		return "v1 or v2"
	}
	slices.Sort(known)
	return strings.Join(slices.Compact(known), ", ")
}

// scope returns what one annotation applies to.
func scope(a loadbalancer.Annotation) string {
	if strings.Contains(a.Key, "<port>") || a.Ports != nil || a.PortsKey != "" || a.PerPort {
		return "each port"
	}
	return "the Service"
}

// notesOn returns the section of a provider in notes, with what follows from the table.
func notesOn(p loadbalancer.Provider) string {
	var b strings.Builder
	several := len(p.Annotations) > 1
	if several {
		b.WriteString("- The first of these annotations that says something about a port counts.\n")
	}
	_, section, _ := strings.Cut("\n"+notes, "\n# "+p.Name+"\n\n")
	section, _, _ = strings.Cut(section, "\n\n# ")
	if section = strings.TrimSpace(section); section != "" {
		b.WriteString(section + "\n")
	}
	for _, a := range p.Annotations {
		if !a.PersistsWhenRemoved {
			continue
		}
		key := ""
		if several {
			key = fmt.Sprintf("`%s`: ", a.Key)
		}
		fmt.Fprintf(&b, "- %sRemoving the annotation leaves the load balancer as it is, "+
			"and Usher reports a problem and keeps the mode.\n  %s\n", key, switchOff(a))
	}
	return b.String()
}

// switchOff returns how to switch headers off where removing the annotation does not.
func switchOff(a loadbalancer.Annotation) string {
	if len(a.Off) > 0 {
		return "Set it to " + off(a) + " first, and remove it later, if at all."
	}
	return "Keep the annotation for as long as the load balancer exists."
}
