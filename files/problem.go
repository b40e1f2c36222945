package files

import (
	"fmt"
	"strings"

	"github.com/usherproxy/usher/gateway"
)

// Problems is the error of a directory that cannot be taken: everything that
// is wrong with it. Every problem's Where begins with file:line.
type Problems []gateway.Problem

// Error gives one line for each problem.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, one := range p {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// problem makes the error of one problem. path may be empty.
func problem(at place, path, format string, args ...any) Problems {
	where := at.String()
	if path != "" {
		where += ": " + path
	}
	return Problems{{Where: where, What: fmt.Sprintf(format, args...)}}
}
