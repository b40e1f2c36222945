package cutover

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/messages"
)

// broken are Envoys whose answers are none.
func broken() (all []func(s *story)) {
	for _, path := range []string{"/listeners", "/stats"} {
		all = append(all, func(s *story) { s.old.raw = map[string]string{path: "{"} })
	}
	return all
}

// TestMessages provokes every error.
func TestMessages(t *testing.T) {
	var makes []func(s *story)
	for _, tc := range refusals {
		makes = append(makes, tc.make)
	}
	for _, tc := range waits {
		makes = append(makes, func(s *story) { s.hurry(); tc.make(s) })
	}
	for _, tc := range hopeless {
		makes = append(makes, tc.make)
	}
	for _, tc := range hanging {
		if tc.name == "the old Envoy" || tc.name == "the new Envoy" {
			makes = append(makes, func(s *story) { s.options.patience = time.Second; tc.make(s) })
		}
	}
	makes = append(makes, broken()...)
	makes = append(makes,
		func(s *story) { s.old.down = true },
		func(s *story) { s.hurry(); s.old.stats["listener.10.0.0.1_8080.downstream_cx_active"] = 3 },
		func(s *story) {
			s.old.onPost = func(e *fakeEnvoy, path string) { e.down = path == "/healthcheck/fail" }
		},
		func(s *story) { s.hurry(); s.options.Stop = &Command{Line: "true"} },
	)
	var lines []string
	for _, change := range makes {
		s := newStory(t)
		change(s)
		if err := s.run(t.Context()); err == nil {
			t.Error("no error: " + s.out.String())
		}
		for line := range strings.Lines(regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(s.hidden(s.out.String()), "ADDRESS")) {
			_, refused, _ := strings.Cut(line, " REFUSED: ")
			for _, text := range []string{refused, strings.TrimPrefix(line, "usher: ")} {
				if text != "" && text != line {
					lines = append(lines, strings.TrimSuffix(text, "\n"))
				}
			}
		}
	}
	waited := &Command{Line: "true"}
	if err := waited.start(); err != nil {
		t.Fatal(err)
	}
	_, _ = waited.cmd.Process.Wait()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	lines = append(lines, waited.failed().Error(), newStory(t).run(ended).Error())
	messages.Check(t, lines, "fmt.Errorf", "errors.New")
}
