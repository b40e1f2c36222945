package probe

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// columns is the width of the text.
const columns = 80

// Text writes the report for people: a conclusion, what was sent and what came back, and what it means.
func (r *Report) Text(w io.Writer, timeout time.Duration) error {
	var text strings.Builder
	if len(r.Results) > 1 {
		writeWrapped(&text, "", r.Summary())
	}
	for i, result := range r.Results {
		if i > 0 || len(r.Results) > 1 {
			text.WriteString("\n")
		}
		result.write(&text, timeout)
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// Summary is one sentence about all addresses.
func (r *Report) Summary() string {
	if len(r.Results) == 1 {
		return r.Results[0].Meaning.Headline
	}
	var addresses []string
	same := true
	for _, result := range r.Results {
		addresses = append(addresses, fmt.Sprintf("%s is %s", result.Address.Addr(), result.Conclusion.Finding))
		same = same && result.Conclusion.Finding == r.Results[0].Conclusion.Finding
	}
	if same {
		return fmt.Sprintf("%s has %d addresses, and all are the same: %s.", r.Target, len(r.Results), r.Results[0].Conclusion.Finding)
	}
	return fmt.Sprintf("%s has %d addresses, and they differ: %s.", r.Target, len(r.Results), strings.Join(addresses, ", "))
}

// write writes one address.
func (r *Result) write(text *strings.Builder, timeout time.Duration) {
	m := r.Meaning
	writeWrapped(text, "", m.Headline)
	for _, note := range m.Notes {
		writeWrapped(text, "", note)
	}
	text.WriteString("\n")
	writeRow(text, "SENT", "WHAT CAME BACK")
	for _, a := range r.Answers {
		writeRow(text, a.sent(), a.cameBack(timeout))
	}
	for _, part := range []struct{ title, body string }{
		{"Through a load balancer that sends no PROXY headers:", m.Without},
		{"Through one that sends PROXY headers:", m.With},
		{"What to do:", m.Remedy},
	} {
		if part.body != "" {
			text.WriteString("\n" + part.title + "\n")
			writeWrapped(text, "  ", part.body)
		}
	}
	if m.Setting != "" {
		text.WriteString("\n" + m.Setting)
	}
}

// sent says what was sent.
func (a Answer) sent() string {
	if a.OverTLS {
		return a.Sent + " (TLS)"
	}
	return a.Sent
}

// cameBack says what came back.
func (a Answer) cameBack(timeout time.Duration) string {
	text := a.reaction(timeout)
	if a.Handshake && a.Reaction != HTTP {
		text = "TLS handshake, then " + text
	}
	if a.Step != "" {
		text += ", after the " + a.Step
	}
	return text
}

func (a Answer) reaction(timeout time.Duration) string {
	switch a.Reaction {
	case HTTP:
		return a.response()
	case Data:
		if a.Echoed {
			return fmt.Sprintf("%d bytes, with the PROXY header in them", a.Bytes)
		}
		return fmt.Sprintf("%d bytes that are no HTTP response", a.Bytes)
	case Closed:
		return "closed without an answer"
	case Reset:
		return "reset without an answer"
	case Silence:
		return fmt.Sprintf("no answer within %v", timeout)
	case Alert:
		return strings.TrimSuffix("a TLS alert: "+strings.TrimPrefix(a.Detail, "tls: "), ": ")
	case NotTLS:
		return "bytes that are not TLS"
	case Refused:
		return "connection refused"
	case Unreachable:
		return "no connection: " + a.Detail
	}
	return a.Detail
}

// response says who answered.
func (a Answer) response() string {
	switch {
	case a.Service:
		return fmt.Sprintf("%d of the service, through Envoy", a.Status)
	case a.byEnvoy() && a.Status == 400:
		return "400 of Envoy, which cannot read the request"
	case a.byEnvoy() && a.Status == 404:
		return "404 of Envoy, which has no route"
	case a.byEnvoy() && a.Status == 503:
		return "503 of Envoy, which has no instance to send it to"
	case a.byEnvoy():
		return fmt.Sprintf("%d of Envoy", a.Status)
	case a.Server != "":
		return fmt.Sprintf("%d of %s", a.Status, a.Server)
	}
	return fmt.Sprint(a.Status)
}

// firstColumn is the width of the first column, with the space behind it.
const firstColumn = 37

func writeRow(text *strings.Builder, sent, cameBack string) {
	for i, line := range wrap(cameBack, columns-firstColumn) {
		if i > 0 {
			sent = ""
		}
		fmt.Fprintf(text, "%-*s%s\n", firstColumn, sent, line)
	}
}

func writeWrapped(text *strings.Builder, indent, body string) {
	for _, line := range wrap(body, columns-len(indent)) {
		text.WriteString(indent + line + "\n")
	}
}

// wrap breaks a text at spaces into lines of at most that many characters; a longer word has its own line.
func wrap(body string, width int) []string {
	lines := []string{""}
	for word := range strings.FieldsSeq(body) {
		last := &lines[len(lines)-1]
		switch {
		case *last == "":
			*last = word
		case len([]rune(*last))+1+len([]rune(word)) > width:
			lines = append(lines, word)
		default:
			*last += " " + word
		}
	}
	return lines
}

// Modes returns the modes that the addresses have, without repetition; "" is a mode that is not known. Addresses that
// cannot be reached do not count if another one can.
func (r *Report) Modes() []string {
	var modes []string
	for _, result := range r.Results {
		c := result.Conclusion
		if c.Finding != NothingListens && c.Finding != NoRoute && !slices.Contains(modes, c.Mode) {
			modes = append(modes, c.Mode)
		}
	}
	return modes
}
