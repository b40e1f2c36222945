//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// errors are the lines of level ERROR in Usher's log so far, without their
// times.
func (u *usher) errors(t *testing.T) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(readFile(t, u.Stderr)) {
		if _, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " level=ERROR "); ok {
			lines = append(lines, rest)
		}
	}
	return lines
}

var problemsMetric = regexp.MustCompile(`(?m)^usher_config_problems(?:\{.*\})? (\d+)$`)

// configProblems is how many problems Usher's metrics have.
func (u *usher) configProblems(t *testing.T) int {
	t.Helper()
	var sum int
	for _, found := range problemsMetric.FindAllStringSubmatch(u.metrics(t), -1) {
		n, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// trouble is a bad configuration that Usher has been told of.
type trouble struct {
	usher  *usher
	before int // lines of level ERROR in its log
	line   string
}

// wantTrouble makes a bad change, and waits for the one line about it in
// Usher's log and for its metrics to have it.
func (u *usher) wantTrouble(t *testing.T, line string, change func()) trouble {
	t.Helper()
	known := u.configProblems(t)
	c := trouble{usher: u, before: len(u.errors(t)), line: line}
	change()
	eventually(t, "usher logs "+line, changeDeadline, func() error {
		if n := len(u.errors(t)); n <= c.before {
			return errors.New("nothing yet")
		}
		return nil
	})
	c.wantOnce(t)
	eventually(t, "usher's metrics have the problem", changeDeadline, func() error {
		if n := u.configProblems(t); n <= known {
			return fmt.Errorf("usher_config_problems is %d", n)
		}
		return nil
	})
	return c
}

// mended makes the change that mends it, and waits until Usher's metrics have
// no problem. Nothing more was said meanwhile.
func (c trouble) mended(t *testing.T, change func()) {
	t.Helper()
	change()
	eventually(t, "usher's metrics have no problem", changeDeadline, func() error {
		if n := c.usher.configProblems(t); n != 0 {
			return fmt.Errorf("usher_config_problems is %d", n)
		}
		return nil
	})
	c.wantOnce(t)
}

// wantOnce wants that all that Usher has said in errors is the one line.
func (c trouble) wantOnce(t *testing.T) {
	t.Helper()
	got := c.usher.errors(t)[c.before:]
	if len(got) != 1 || got[0] != c.line {
		t.Errorf("usher logs errors\n%s\nwant one:\n%s", strings.Join(got, "\n"), c.line)
	}
}

// asLogged is how Usher's log writes a problem.
func asLogged(where, what string) string {
	return "where=" + quotedInLog(where) + " what=" + quotedInLog(what)
}

func quotedInLog(text string) string {
	if strings.ContainsAny(text, " \"=") {
		return strconv.Quote(text)
	}
	return text
}
