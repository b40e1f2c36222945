package configdir

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/internal/gateway"
	"github.com/usherproxy/usher/internal/problem"
)

func TestAFileThatIsNotRegularKeepsTheLastValidContent(t *testing.T) {
	const notRegular = "it is not a regular file"
	synctest.Test(t, func(t *testing.T) {
		f := watchDir(t, write(t, tree{"gw.hcl": gw(80), "web.hcl": staticServer}))
		good := f.until(listening(80))
		path := filepath.Join(f.dir, "gw.hcl")
		must(t, syscall.Mkfifo(filepath.Join(f.dir, ".new"), 0o600))
		must(t, os.Rename(filepath.Join(f.dir, ".new"), path))
		want := path + ": cannot be read: " + notRegular + "; correct it, or remove it"
		bad := f.until(want, func(s *gateway.Snapshot) bool { return len(s.Problems) == 1 && s.Problems[0].String() == want })
		if bad.Entry != good.Entry || !cmp.Equal(portsOf(bad), []int{80}) {
			t.Error("the entry changed")
		}
		if err := NewSource(f.dir, Options{}).Load(); err == nil || err.Error() != want {
			t.Errorf("at the start: %v, want %s", err, want)
		}
		f.write("gw.hcl", gw(80))
		f.until(listening(80))
	})
}

func TestAPanicKeepsTheLastValidContentAndIsAProblem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := write(t, tree{"gw.hcl": gw(80), "web.hcl": staticServer})
		panicked := false
		s := NewSource(dir, Options{Report: func(problems []problem.Problem) {
			if len(problems) > 0 && !panicked {
				panicked = true
				panic("a bug")
			}
		}})
		must(t, s.Load())
		good := s.current().content
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		f := &watched{t: t, dir: dir}
		next := s.current().next
		f.write("gw.hcl", "x")
		<-next
		v := s.current()
		if v.content != good || len(v.problems) != 1 || !strings.HasPrefix(v.problems[0].String(), dir+": bug in Usher: panic in filewatch at unreadable_test.go:") {
			t.Errorf("problems %v, want one with the reason, and the last valid content", v.problems)
		}
		f.write("gw.hcl", gw(81))
		for ; len(v.problems) > 0; v = s.current() {
			<-v.next
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}
