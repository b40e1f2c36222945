package memory

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table into docs/performance.md")

func TestTheDocsHaveTheFormula(t *testing.T) {
	const page, begin, end = "../../docs/performance.md", "<!-- memory: begin -->\n", "<!-- memory: end -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	table, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s lacks %q or %q", page, begin, end)
	}
	if table == Table() {
		return
	}
	if !*update {
		t.Fatalf("%s has another formula than this package; run the test with -update:\n%s", page, Table())
	}
	if err := os.WriteFile(page, []byte(before+begin+Table()+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestEachTermCounts(t *testing.T) {
	base := Load{}
	for name, more := range map[string]Load{
		"services": {Services: 1000}, "endpoints": {Endpoints: 1000}, "streams": {Streams: 1000}, "unread": {Unread: MiB},
		"callers": {Callers: 1000}, "ports": {Ports: 1000}, "requests": {Requests: MiB}, "messages": {Messages: MiB},
		"both": {Services: 1000, Streams: 1000}, "answers": {Answers: MiB}, "kept": {Kept: MiB},
	} {
		if live, peak := more.Live()-base.Live(), more.Peak()-base.Peak(); live <= 0 || peak < live {
			t.Errorf("%s add %d bytes live and %d at the peak", name, live, peak)
		}
	}
}
