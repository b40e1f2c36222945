package demo

import (
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAnAccessLogLineIsRead(t *testing.T) {
	for line, want := range map[string]logEntry{
		`{"downstream_remote_address":"127.0.0.2:1","response_code":200,"method":"GET"}`:                                       {remote: "127.0.0.2:1", code: 200},
		`{"downstream_remote_address":"127.0.0.7:1","downstream_direct_remote_address":"127.0.0.2:2","response_code":400}`:     {remote: "127.0.0.7:1", direct: "127.0.0.2:2", code: 400},
		`{"downstream_direct_remote_address":null,"response_code":0,"downstream_remote_address":"[2001:db8::7]:1","x":[1,{}]}`: {remote: "[2001:db8::7]:1"},
	} {
		got, err := parseLogEntry(line)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, error %v; want %+v", line, got, err, want)
		}
	}
}

func TestALineThatIsNoAccessLogIsAnError(t *testing.T) {
	for _, line := range []string{"", "hello", "[]", "{}", `{"response_code":200}`, `{"downstream_remote_address":"x"}`} {
		if e, err := parseLogEntry(line); err == nil {
			t.Errorf("%q: got %+v, want an error", line, e)
		}
	}
}

func TestLinesAreWholeHoweverTheyAreWritten(t *testing.T) {
	var got []string
	w := &lineWriter{put: func(line string) { got = append(got, line) }}
	for _, part := range []string{"one\ntw", "o", "\n\nthr", "ee\n", "not ended"} {
		if n, err := io.WriteString(w, part); n != len(part) || err != nil {
			t.Fatalf("wrote %d of %q, error %v", n, part, err)
		}
	}
	if diff := cmp.Diff([]string{"one", "two", "", "three"}, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}
