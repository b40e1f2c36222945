// Package problem holds the one type for what an administrator has to correct, and the suggestion for a word that is
// nearly right.
package problem

//go:generate go run ../../tools/messages-doc ../.. ../../docs/messages.md

import (
	"fmt"
	"strings"
)

// Problem is something that an administrator has to correct: where it is, what is wrong and what to do, each on one line.
type Problem struct {
	Where string // the file:line, config entry or registration, and key
	What  string // what is wrong, and what to do about it
}

// String returns the problem as one line.
func (p Problem) String() string { return p.Where + ": " + p.What }

// DidYouMean returns ` (did you mean "near"?)` with the known word that is nearest to word, or nothing if none is
// near. At most a third of the letters may differ.
func DidYouMean[S ~string](word string, known []S) string {
	nearest, fewest := "", len(word)+1
	for _, k := range known {
		most := max(len(word), len(k)) / 3
		if len(word) > len(k)+most {
			continue // so that a long word costs nothing
		}
		if n := edits(strings.ToLower(word), strings.ToLower(string(k))); n < fewest && n <= most {
			nearest, fewest = string(k), n
		}
	}
	if nearest == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", nearest)
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
