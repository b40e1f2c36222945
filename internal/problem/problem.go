// Package problem holds the one type for what an operator has to correct.
package problem

// Problem is something an operator has to correct: where it is, what is wrong and
// what to do, each fit to be printed on one line.
type Problem struct {
	Where string // the file:line, config entry or registration, and key
	What  string // what is wrong, and what to do about it
}

// String returns the problem as one line.
func (p Problem) String() string { return p.Where + ": " + p.What }
