package problem

import (
	"slices"
	"strings"
	"testing"
)

func TestDidYouMean(t *testing.T) {
	known := []string{"auto", "off", "permissive", "strict", "trusted_cidrs"}
	for word, want := range map[string]string{
		"strct":        ` (did you mean "strict"?)`,
		"Strict":       ` (did you mean "strict"?)`,
		"tsrict":       ` (did you mean "strict"?)`,
		"of":           ` (did you mean "off"?)`,
		"trusted_cidr": ` (did you mean "trusted_cidrs"?)`,
		"on":           "",
		"":             "",
		"sideways":     "",
	} {
		if got := DidYouMean(word, known); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
		if nearest, ok := Nearest(word, known); ok != (want != "") || !strings.Contains(want, nearest) {
			t.Errorf("%q: nearest is %q, %v", word, nearest, ok)
		}
	}
}

func TestSeverities(t *testing.T) {
	var texts []string
	for _, s := range Severities {
		text, _ := s.MarshalText()
		texts = append(texts, string(text))
		var again Severity
		if err := again.UnmarshalText(text); err != nil || again != s {
			t.Errorf("%s is read as %v (%v)", text, again, err)
		}
	}
	if got := strings.Join(texts, " "); got != "outage degraded notice" {
		t.Errorf("got %q", got)
	}
	if err := new(Severity).UnmarshalText([]byte("bad")); err == nil {
		t.Error("an unknown word is a severity")
	}
	if zero := (Problem{}).Severity; zero != Degraded {
		t.Errorf("the zero value is %v", zero)
	}
	problems := []Problem{
		{Where: "a", Severity: Notice}, {Where: "b"}, {Where: "a", What: "y"}, {Where: "a", What: "x"}, {Where: "z", Severity: Outage},
	}
	slices.SortFunc(problems, Compare)
	if want := []Problem{
		{Where: "z", Severity: Outage}, {Where: "a", What: "x"}, {Where: "a", What: "y"}, {Where: "b"}, {Where: "a", Severity: Notice},
	}; !slices.Equal(problems, want) {
		t.Errorf("sorted: %v, want %v", problems, want)
	}
}
