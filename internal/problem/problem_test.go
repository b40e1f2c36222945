package problem

import "testing"

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
	}
}
