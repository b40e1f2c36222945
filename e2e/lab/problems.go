//go:build e2e

package lab

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// errorLine matches a line of level ERROR, and one about a problem at any level.
var errorLine = regexp.MustCompile(`(?m)^time=\S+ level=(?:ERROR|\w+ (msg=problem)) (.*?)(?: severity=\w+)?$`)

// Errors are the lines of level ERROR and those about problems in Usher's log so
// far, without their times, levels and severities.
func (u *Usher) Errors(t *testing.T) []string {
	t.Helper()
	var lines []string
	for _, found := range errorLine.FindAllStringSubmatch(testprocess.ReadFile(t, u.Stderr), -1) {
		lines = append(lines, strings.TrimSpace(found[1]+" "+found[2]))
	}
	return lines
}

var problemsMetric = regexp.MustCompile(`(?m)^usher_config_problems(?:\{.*\})? (\d+)$`)

// ConfigProblems is how many problems Usher's metrics have.
func (u *Usher) ConfigProblems(t *testing.T) int {
	t.Helper()
	var sum int
	for _, found := range problemsMetric.FindAllStringSubmatch(u.Metrics(t), -1) {
		n, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// ExpectedProblem is a problem that Usher has logged.
type ExpectedProblem struct {
	usher  *Usher
	before int // lines of level ERROR in its log
	line   string
}

// WantProblem makes a bad change, and waits for the one line about it in
// Usher's log and for its metrics to have it.
func (u *Usher) WantProblem(t *testing.T, line string, change func()) ExpectedProblem {
	t.Helper()
	known := u.ConfigProblems(t)
	c := ExpectedProblem{usher: u, before: len(u.Errors(t)), line: line}
	change()
	testprocess.Eventually(t, "usher logs "+line, testprocess.ChangeDeadline, func() error {
		if n := len(u.Errors(t)); n <= c.before {
			return errors.New("nothing yet")
		}
		return nil
	})
	c.wantLoggedOnce(t)
	testprocess.Eventually(t, "usher's metrics have the problem", testprocess.ChangeDeadline, func() error {
		if n := u.ConfigProblems(t); n <= known {
			return fmt.Errorf("usher_config_problems is %d", n)
		}
		return nil
	})
	return c
}

// WantFixed makes the change that corrects it, and waits until Usher's metrics have
// no problem. Meanwhile nothing more was logged.
func (c ExpectedProblem) WantFixed(t *testing.T, change func()) {
	t.Helper()
	change()
	testprocess.Eventually(t, "usher's metrics have no problem", testprocess.ChangeDeadline, func() error {
		if n := c.usher.ConfigProblems(t); n != 0 {
			return fmt.Errorf("usher_config_problems is %d", n)
		}
		return nil
	})
	c.wantLoggedOnce(t)
}

// wantLoggedOnce wants the line to be the only error that Usher has logged.
func (c ExpectedProblem) wantLoggedOnce(t *testing.T) {
	t.Helper()
	got := c.usher.Errors(t)[c.before:]
	if len(got) != 1 || got[0] != c.line {
		t.Errorf("usher logs errors\n%s\nwant one:\n%s", strings.Join(got, "\n"), c.line)
	}
}

// LoggedProblem is how Usher's log writes a problem.
func LoggedProblem(where, what string) string {
	return "where=" + QuoteInLog(where) + " what=" + QuoteInLog(what)
}

// QuoteInLog quotes a text as the log does, where it needs quotes.
func QuoteInLog(text string) string {
	if strings.ContainsAny(text, " \"=") {
		return strconv.Quote(text)
	}
	return text
}
