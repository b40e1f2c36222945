// Command balancers-doc writes the page about load balancers (docs/load-balancers.md) to the file that is its
// argument, from the table of annotations (loadbalancer.Providers).
package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"os"
	"regexp"
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
		b.WriteString(notHonoured(p))
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
		b.WriteString("- The first of these annotations that says something about a port, and is not ignored, counts.\n")
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

// notHonoured returns a table of when the cloud does not honour annotations that switch headers on.
func notHonoured(p loadbalancer.Provider) string {
	const head = "| %snot honoured where | because | the listener | to change that |\n|%s---|---|---|---|\n"
	var rows, always strings.Builder
	add := func(annotation string, conditions []loadbalancer.Condition) {
		for _, c := range conditions {
			if len(p.Annotations) > 1 {
				fmt.Fprintf(&rows, "| %s ", annotation)
			}
			fmt.Fprintf(&rows, "| %s | %s%s | %s | %s |\n", markdown(c.Clause()), markdown(c.Cloud), source(c), listener(c), markdown(c.Fix))
		}
	}
	for _, a := range p.Annotations {
		add(short(a.Key), a.NotHonoured)
		if a.AlwaysHonoured != "" {
			fmt.Fprintf(&always, "\n%s is honoured on every Service: %s.\n", short(a.Key), markdown(a.AlwaysHonoured))
		}
	}
	add("each", p.NotHonoured)
	switch {
	case rows.Len() == 0:
		return always.String()
	case len(p.Annotations) > 1:
		return always.String() + "\n" + fmt.Sprintf(head, "annotation | ", "---|") + rows.String()
	}
	return always.String() + "\n" + fmt.Sprintf(head, "", "") + rows.String()
}

// listener says what happens to the listener when a condition holds.
func listener(c loadbalancer.Condition) string {
	switch {
	case c.State == loadbalancer.Ignored:
		return "is `off`"
	case c.PersistsWhenRemoved:
		return "keeps its mode, also when the annotation is removed"
	}
	return "keeps its mode"
}

// source returns a link to where a condition was read; empty if the provider's counts.
func source(c loadbalancer.Condition) string {
	if c.URL == "" {
		return ""
	}
	return fmt.Sprintf(" ([source](%s))", c.URL)
}

// plainCode is what the page shows as code in plain text: quoted values, names of settings, of fields of the Service,
// and of annotations.
var plainCode = regexp.MustCompile(`"[^"]*"|\bproxy_protocol\.\w+|\b(spec|status)\.\w[\w.]*\w|\b[\w-]+(\.[\w-]+)+/[\w.<>-]*[\w>]`)

// markdown returns a plain text as Markdown.
func markdown(text string) string {
	return plainCode.ReplaceAllStringFunc(text, func(s string) string { return short(strings.Trim(s, `"`)) })
}

// short returns a name as Markdown, without the prefix that most annotations have.
func short(name string) string { return code(strings.TrimPrefix(name, "service.beta.kubernetes.io/")) }
