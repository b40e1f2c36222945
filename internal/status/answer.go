package status

import (
	"fmt"

	"github.com/usherproxy/usher/internal/problem"
)

// Answer is the state of one of several Ushers, or why there is none.
type Answer struct {
	Address string `json:"address"`         // of its admin port
	Error   string `json:"error,omitempty"` // why State is nil
	State   *State `json:"state,omitempty"`
}

// Failed reports whether a problem of the state is more than a notice.
func (s *State) Failed() bool {
	for _, p := range s.Problems {
		if p.Severity > problem.Notice {
			return true
		}
	}
	return false
}

// String returns the problem as one line that begins with its severity.
func (p Problem) String() string {
	of := ""
	if p.Gateway != "" {
		of = " (gateway " + p.Gateway + ")"
	}
	return fmt.Sprintf("%s%s: %s: %s", p.Severity, of, p.Where, p.What)
}
