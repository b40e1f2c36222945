package configdir

import (
	"fmt"
	"strings"

	"github.com/usherproxy/usher/internal/problem"
)

// Problems is the error of a directory that cannot be taken: everything that
// is wrong with it. Every problem's Where begins with file:line.
type Problems []problem.Problem

// Error gives one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// problemAt returns the error of one problem. path may be empty.
func problemAt(at place, path, format string, args ...any) Problems {
	where := at.String()
	if path != "" {
		where += ": " + path
	}
	return Problems{{Where: where, What: fmt.Sprintf(format, args...)}}
}
