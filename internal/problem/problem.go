// Package problem holds the one type for what an administrator has to correct, and the suggestion for a word that is
// nearly right.
package problem

//go:generate go run ../../tools/messages-doc ../.. ../../docs/messages.md

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is something that an administrator has to correct: where it is, what is wrong and what to do, each on one line.
type Problem struct {
	Where string // the file:line, config entry or registration, and key
	What  string // what is wrong, and what to do about it
	// At is where it is in a file. Where then begins with it. The zero value is not in a file, or in one as a whole.
	At       Position `json:",omitzero"`
	Severity Severity
	// OfEnvoy means that other releases of Envoy do not have it: the caller that knows the Envoy adds which one it is.
	OfEnvoy bool `json:"-"`
}

// Position is a place in a file. Line and Column start at 1; Column counts characters, and 0 means that it is not known.
type Position struct {
	File         string
	Line, Column int
}

// String returns "file:line", or the file alone if there is no line.
func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Severity is how bad a problem is. Worse ones are greater.
type Severity int8

// The severities. The zero value is Degraded: most problems leave the last valid configuration in use.
const (
	Notice   Severity = iota - 1 // it may be meant: a setting without effect, an intention that denies
	Degraded                     // traffic is served, but not as configured, or not as it would be after the next change
	Outage                       // a listener serves nothing, or an Envoy gets nothing
)

// Severities are all severities, the worst first.
var Severities = [...]Severity{Outage, Degraded, Notice}

// String returns the word for it in logs and metrics.
func (s Severity) String() string { return [...]string{"notice", "degraded", "outage"}[s-Notice] }

// MarshalText returns the word for it.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText returns.
func (s *Severity) UnmarshalText(text []byte) error {
	for _, known := range Severities {
		if known.String() == string(text) {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("%q is no severity", text)
}

// Compare sorts problems: the worst first, and then by place and text.
func Compare(a, b Problem) int {
	return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(a.Where, b.Where), cmp.Compare(a.What, b.What))
}

// String returns the problem as one line.
func (p Problem) String() string { return p.Where + ": " + p.What }

// DidYouMean returns ` (did you mean "near"?)` with the known word that is nearest to word, or nothing if none is
// near.
func DidYouMean[S ~string](word string, known []S) string {
	if near, ok := Nearest(word, known); ok {
		return fmt.Sprintf(" (did you mean %q?)", near)
	}
	return ""
}

// Nearest returns the known word that is nearest to word, as DidYouMean does. It reports whether one is near.
func Nearest[S ~string](word string, known []S) (nearest S, ok bool) {
	fewest := len(word) + 1
	for _, k := range known {
		most := max(len(word), len(k)) / 3
		if len(word) > len(k)+most {
			continue // so that a long word costs nothing
		}
		if n := edits(strings.ToLower(word), strings.ToLower(string(k))); n < fewest && n <= most {
			nearest, fewest, ok = k, n, true
		}
	}
	return nearest, ok
}

// SortByLikeness returns the known words, those that are most like the word first, and otherwise in their order.
func SortByLikeness[S ~string](word string, known []S) []S {
	word = strings.ToLower(word[:min(len(word), 64)])
	return slices.SortedStableFunc(slices.Values(known), func(a, b S) int {
		return cmp.Compare(edits(word, strings.ToLower(string(a))), edits(word, strings.ToLower(string(b))))
	})
}

// edits returns how many letters have to be inserted, removed, replaced or swapped with their neighbour to make b of a.
func edits(a, b string) int {
	counts := make([][]int, len(a)+1) // of the first i letters of a and the first j of b
	for i := range counts {
		counts[i] = make([]int, len(b)+1)
		for j := range counts[i] {
			if i == 0 || j == 0 {
				counts[i][j] = i + j
				continue
			}
			replace := counts[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			counts[i][j] = min(replace, counts[i-1][j]+1, counts[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				counts[i][j] = min(counts[i][j], counts[i-2][j-2]+1)
			}
		}
	}
	return counts[len(a)][len(b)]
}
