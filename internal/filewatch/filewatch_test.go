package filewatch_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/usherproxy/usher/internal/filewatch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reading is what one call of Read saw. Text that begins with "good" is good.
type reading struct {
	text  string // "missing" without the file
	final bool
}

func (r reading) isGood() bool { return len(r.text) >= 4 && r.text[:4] == "good" }

// readings are those of one watched file.
type readings struct {
	t     *testing.T
	c     chan reading
	again filewatch.Trigger
}

// way is one of the two ways to watch the file at a path.
type way struct {
	name string
	of   func(path string, o filewatch.Options) *filewatch.Watcher
}

var ways = []way{
	{"Dir", func(path string, o filewatch.Options) *filewatch.Watcher {
		return filewatch.Dir(filepath.Dir(path), o)
	}},
	{"Files", func(path string, o filewatch.Options) *filewatch.Watcher { return filewatch.Files([]string{path}, o) }},
}

// bothWays runs a test in a bubble for each way. Time passes there only while everything waits, so that the tests
// neither take long nor depend on the machine's speed.
func bothWays(t *testing.T, test func(*testing.T, way)) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, w) })
		})
	}
}

// watchGood watches a new file with the text "good", and waits until that is read.
func (w way) watchGood(t *testing.T) (path string, r readings) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "file")
	write(t, path, "good")
	r = w.watch(t, path)
	r.until("good")
	return path, r
}

// watch watches the file at path until the test ends.
func (w way) watch(t *testing.T, path string) readings {
	t.Helper()
	r := readings{t, make(chan reading, 1000), filewatch.NewTrigger()}
	read := func(final bool) bool {
		text, err := os.ReadFile(path)
		seen := reading{string(text), final}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			seen.text = "missing"
		case err != nil:
			t.Errorf("read: %v", err)
		}
		r.c <- seen
		return seen.isGood()
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		w.of(path, filewatch.Options{Read: read, Logger: slog.New(slog.DiscardHandler), Again: r.again}).Run(ctx)
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return r
}

func (r readings) next() reading {
	r.t.Helper()
	select {
	case got := <-r.c:
		return got
	case <-time.After(20 * time.Second):
		r.t.Fatal("nothing was read")
		return reading{}
	}
}

// until waits for good text, and wants no bad content to be final before.
func (r readings) until(text string) {
	r.t.Helper()
	for got := r.next(); got.text != text; got = r.next() {
		if got.final {
			r.t.Fatalf("%q was final before %q", got.text, text)
		}
	}
}

// untilFinal waits for bad text that is final.
func (r readings) untilFinal(text string) {
	r.t.Helper()
	for want := (reading{text, true}); ; {
		got := r.next()
		if got == want {
			return
		}
		if got.final {
			r.t.Fatalf("%q is final, want %q", got.text, text)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

// replace puts the file there at once, as careful writers do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	must(t, os.Rename(path+".new", path))
}

func TestFileChanges(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, "good 1")
		r := w.watch(t, path)
		r.until("good 1")
		replace(t, path, "good 2")
		r.until("good 2")
		write(t, path, "good 3")
		r.until("good 3")
		must(t, os.Remove(path))
		r.untilFinal("missing")
		replace(t, path, "good 4")
		r.until("good 4")
		write(t, path, "good 5")
		r.until("good 5")
	})
}

func TestFileIsNamedByARelativePath(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		t.Chdir(t.TempDir())
		write(t, "file", "good 1")
		r := w.watch(t, "file")
		r.until("good 1")
		write(t, "file", "good 2")
		r.until("good 2")
	})
}

func TestKubernetesVolumeIsSwapped(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		dir := t.TempDir()
		release := func(i int) {
			edition := fmt.Sprintf("..%d", i)
			must(t, os.Mkdir(filepath.Join(dir, edition), 0o700))
			write(t, filepath.Join(dir, edition, "file"), fmt.Sprintf("good %d", i))
			must(t, os.Symlink(edition, filepath.Join(dir, "..data_tmp")))
			must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
		}
		release(1)
		must(t, os.Symlink(filepath.Join("..data", "file"), filepath.Join(dir, "file")))
		r := w.watch(t, filepath.Join(dir, "file"))
		r.until("good 1")
		for i := 2; i < 5; i++ {
			release(i)
			must(t, os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..%d", i-1))))
			r.until(fmt.Sprintf("good %d", i))
		}
	})
}

func TestFileBehindALinkChanges(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		real, link := filepath.Join(t.TempDir(), "real"), filepath.Join(t.TempDir(), "file")
		write(t, real, "good 1")
		must(t, os.Symlink(real, link))
		r := w.watch(t, link)
		r.until("good 1")
		write(t, real, "good 2")
		r.until("good 2")
		replace(t, real, "good 3")
		r.until("good 3")
		replace(t, link, "good 4")
		r.until("good 4")
	})
}

func TestDirectoryItselfIsReplaced(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		parent := t.TempDir()
		current := filepath.Join(parent, "current")
		release := func(name, text string) string {
			dir := filepath.Join(parent, name)
			must(t, os.Mkdir(dir, 0o700))
			write(t, filepath.Join(dir, "file"), text)
			return dir
		}
		must(t, os.Symlink(release("1", "good 1"), current))
		r := w.watch(t, filepath.Join(current, "file"))
		r.until("good 1")
		must(t, os.Symlink(release("2", "good 2"), filepath.Join(parent, "new")))
		must(t, os.Rename(filepath.Join(parent, "new"), current))
		r.until("good 2")

		must(t, os.Rename(current, filepath.Join(parent, "away")))
		r.untilFinal("missing")
		must(t, os.Rename(release("3", "good 3"), current))
		r.until("good 3")
		write(t, filepath.Join(current, "file"), "good 4")
		r.until("good 4")
		must(t, os.Rename(current, filepath.Join(parent, "away too")))
		r.untilFinal("missing")
		must(t, os.Rename(release("5", "good 5"), current))
		r.until("good 5")
		must(t, os.RemoveAll(current))
		r.untilFinal("missing")
		release("current", "good 6")
		r.until("good 6")
	})
}

func TestBadContentOfAFileBeingWrittenIsNotFinal(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		path, r := w.watchGood(t)
		for i := range 200 {
			write(t, path, "bad")
			time.Sleep(time.Duration(i) * filewatch.Interval / 200) // of the bubble
			write(t, path, fmt.Sprintf("good %d", i))
			r.until(fmt.Sprintf("good %d", i))
		}
	})
}

func TestBadContentIsFinalOnceItStays(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		path, r := w.watchGood(t)
		start := time.Now()
		replace(t, path, "bad")
		r.untilFinal("bad")
		if took, least := time.Since(start), filewatch.Interval; took < least || took > 3*least {
			t.Errorf("final after %v, want %v to %v", took, least, 3*least)
		}
		time.Sleep(10 * filewatch.Interval) // of the bubble
		replace(t, path, "good again")
		if got := r.next(); got.text != "good again" {
			t.Errorf("final bad content was read again as %+v", got)
		}
	})
}

// Contents are compared once each Interval, but a change of the size is seen earlier.
func TestMostChangesAreReadSoon(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		path, r := w.watchGood(t)
		for i := range 20 {
			time.Sleep(time.Duration(i) * filewatch.Interval / 20) // of the bubble
			start, text := time.Now(), "good"+strings.Repeat(" again", i+1)
			write(t, path, text)
			r.until(text)
			if took := time.Since(start); took > filewatch.Interval/3 {
				t.Errorf("read after %v, want at most %v", took, filewatch.Interval/3)
			}
		}
	})
}

func TestOtherFilesOfTheDirectoryDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "file")
		write(t, path, "good 1")
		r := ways[1].watch(t, path)
		r.until("good 1")
		for i := range 5 {
			replace(t, filepath.Join(dir, "other"), fmt.Sprintf("good %d", i))
			time.Sleep(2 * filewatch.Interval) // of the bubble
		}
		replace(t, path, "good 2")
		if got := r.next(); got.text != "good 2" {
			t.Errorf("%q was read again though only another file had changed", got.text)
		}
	})
}

func TestDirectoryAboveIsReplaced(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		up := filepath.Join(t.TempDir(), "up")
		release := func(text string) {
			must(t, os.MkdirAll(filepath.Join(up, "dir"), 0o700))
			write(t, filepath.Join(up, "dir", "file"), text)
		}
		release("good 1")
		r := w.watch(t, filepath.Join(up, "dir", "file"))
		r.until("good 1")
		for i := 2; i < 5; i++ {
			must(t, os.Rename(up, fmt.Sprintf("%s.%d", up, i)))
			text := fmt.Sprintf("good %d", i)
			release(text)
			r.until(text)
		}
	})
}

func TestFilesAreReadAtOnceWhenRequested(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, "good 1")
		r := w.watch(t, path)
		r.until("good 1")
		for _, text := range []string{"good 1", "good 2", "bad", "good 3"} {
			start := time.Now()
			write(t, path, text)
			r.again.Fire()
			if got := r.next(); got != (reading{text: text}) {
				t.Errorf("read %+v, want %q", got, text)
			}
			if took := time.Since(start); took > filewatch.Settle {
				t.Errorf("%q was read after %v, want at once", text, took)
			}
		}
	})
}

// TestFilesThatChangeAllTheTimeAreRead has a writer that never pauses for as long as a Watcher waits for.
func TestFilesThatChangeAllTheTimeAreRead(t *testing.T) {
	bothWays(t, func(t *testing.T, w way) {
		path, r := w.watchGood(t)
		start := time.Now()
		for i := 0; len(r.c) == 0; i++ {
			if took := time.Since(start); took > 2*filewatch.Interval {
				t.Fatalf("nothing was read in %v", took)
			}
			write(t, path, fmt.Sprintf("good %d", i))
			time.Sleep(filewatch.Settle - 1) // of the bubble
		}
	})
}
