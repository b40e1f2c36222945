package doctor

import (
	"fmt"
	"io"
	"strings"
)

// Text writes the report for people: findings with evidence and remedies, what is fine, and what was not looked at.
// Remedies stand at the beginning of their lines, so that they can be copied.
func (r *Report) Text(w io.Writer) error {
	var text strings.Builder
	for _, f := range r.Findings {
		f.write(&text)
	}
	for _, f := range r.Fine {
		fmt.Fprintf(&text, "fine: %s\n", f.What)
	}
	if len(r.Unseen) > 0 {
		if text.Len() > 0 {
			text.WriteString("\n")
		}
		text.WriteString("Not looked at:\n")
	}
	for _, u := range r.Unseen {
		fmt.Fprintf(&text, "  %s\n", u.line())
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// line is the source in one line.
func (u Unseen) line() string {
	if u.Why == "" {
		return u.Source + ": name it with " + u.Flag
	}
	return u.Source + ": " + u.Why + " (" + u.Flag + ")"
}

func (f *Finding) write(text *strings.Builder) {
	fmt.Fprintf(text, "%s: %s\n", f.Severity, f.What)
	if len(f.Evidence) > 0 {
		text.WriteString("  What shows it:\n")
	}
	for _, line := range f.Evidence {
		fmt.Fprintf(text, "    %s\n", line)
	}
	if f.Remedy.Text != "" {
		fmt.Fprintf(text, "  What to do: %s\n", f.Remedy.Text)
	}
	for _, code := range []string{f.Remedy.Command, f.Remedy.HCL} {
		if code != "" {
			text.WriteString("\n" + strings.TrimSuffix(code, "\n") + "\n")
		}
	}
	text.WriteString("\n")
}
