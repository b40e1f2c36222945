package cutover

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestACommandOutlivesTheTerminal has a command that prints its session, which is its own: neither Ctrl-C nor the end of the
// terminal reaches it.
func TestACommandOutlivesTheTerminal(t *testing.T) {
	t.Parallel()
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	c := &Command{Line: `read -r _ _ _ _ group session _ < /proc/$$/stat; [ $$ = $session ] && [ $$ = $group ] && echo alone`, Output: output}
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	run := &cutover{Options: Options{Timeout: time.Minute, patience: time.Minute, Out: io.Discard}}
	err = run.poll(t.Context(), "test", "", func(context.Context) (string, error) {
		if err := c.failed(); err != nil || c.ended {
			return "", err
		}
		return "it runs", nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(output.Name()); err != nil || string(text) != "alone\n" {
		t.Errorf("error %v, output %q", err, text)
	}
}
