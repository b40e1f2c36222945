package configfile

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

func TestAFileThatIsNotRegularKeepsTheLastValid(t *testing.T) {
	const notRegular = "it is not a regular file"
	synctest.Test(t, func(t *testing.T) {
		path, f := openStrict(t)
		contents := run(t, f)
		if err := syscall.Mkfifo(path+".new", 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		want := problem.Problem{Where: path, At: problem.Position{File: path}, What: "cannot be read: " + notRegular + "; correct it; the last valid content stays in use"}
		c := <-contents
		if diff := cmp.Diff([]problem.Problem{want}, c.Problems); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]settings.Mode{"edge": settings.Strict}, modes(c)); diff != "" {
			t.Errorf("want the last valid content (-want +got):\n%s", diff)
		}
		if _, err := Open(path, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), notRegular) || strings.Contains(err.Error(), "\n") {
			t.Errorf("at the start: %v, want an error of one line with %q", err, notRegular)
		}
		write(t, path, strict)
		for c := <-contents; len(c.Problems) > 0; c = <-contents {
		}
	})
}

func TestAPanicKeepsTheLastValidAndIsAProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, f := openStrict(t)
		contents, ended := make(chan settings.File), make(chan error, 1)
		ctx, cancel := context.WithCancel(context.Background())
		panicked := false
		go func() {
			ended <- f.Run(ctx, func(c settings.File) {
				if !panicked {
					panicked = true
					panic("a bug")
				}
				select {
				case contents <- c:
				case <-ctx.Done():
				}
			})
		}()
		write(t, path, strings.ReplaceAll(strict, "strict", "permissive"))
		c := <-contents
		if len(c.Problems) != 1 || !strings.Contains(c.Problems[0].What, "bug in Usher: panic in filewatch at unreadable_test.go:") {
			t.Errorf("problems %v, want one with the reason", c.Problems)
		}
		write(t, path, strict)
		for len(c.Problems) > 0 {
			c = <-contents
		}
		if diff := cmp.Diff(map[string]settings.Mode{"edge": settings.Strict}, modes(c)); diff != "" {
			t.Errorf("after it is over (-want +got):\n%s", diff)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}
