package listeners

import (
	"testing"

	"github.com/usherproxy/usher/internal/testing/golden"
	"github.com/usherproxy/usher/internal/testing/messages"
)

// The page has every problem: those of the golden cases, and of the cases here.
func TestMessages(t *testing.T) {
	var all []string
	for _, name := range golden.Cases(t, testdata) {
		for _, c := range compileFixture(t, golden.Input(t, testdata, name)) {
			for _, p := range c.resources.Problems {
				all = append(all, p.String())
			}
		}
	}
	messages.Check(t, all, "fmt.Errorf", "errors.New", "problem.Problem", "envoy.Requires")
}
