package filewatch_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/guard"
)

// notFiles are things that can be in the place of a file, and the errors that they cause.
var notFiles = []struct {
	name, want string
	make       func(t *testing.T, path string)
}{
	{"a FIFO", "it is not a regular file", fifo},
	{"a link to a FIFO", "it is not a regular file", func(t *testing.T, path string) {
		fifo(t, path+".fifo")
		must(t, os.Symlink(path+".fifo", path))
	}},
	{"a device", "it is not a regular file", func(t *testing.T, path string) { must(t, os.Symlink("/dev/zero", path)) }},
	{"a directory", "is a directory", func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }},
	{"a socket", "it is not a regular file", func(t *testing.T, path string) {
		l, err := net.Listen("unix", path)
		must(t, err)
		t.Cleanup(func() { l.Close() })
	}},
	{"a huge file", "it has more than 1048576 bytes", func(t *testing.T, path string) {
		write(t, path, "")
		must(t, os.Truncate(path, 1<<40))
	}},
	{"nothing", "no such file or directory", func(*testing.T, string) {}},
}

func fifo(t *testing.T, path string) {
	t.Helper()
	must(t, syscall.Mkfifo(path, 0o600))
}

func TestOnlyFilesOfAReasonableSizeAreRead(t *testing.T) {
	for _, tc := range notFiles {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			tc.make(t, path)
			_, err := filewatch.ReadFile(path)
			cause, ok := errors.AsType[*fs.PathError](err)
			if !ok || cause.Path != path || cause.Err.Error() != tc.want {
				t.Errorf("got %v, want a *fs.PathError with the path and %q", err, tc.want)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "file")
	for _, text := range []string{"", "some text", strings.Repeat("x", filewatch.MaxSize)} {
		write(t, path, text)
		must(t, os.Symlink(path, path+".link"))
		for _, name := range []string{path, path + ".link"} {
			if got, err := filewatch.ReadFile(name); err != nil || string(got) != text {
				t.Errorf("got %d bytes and %v, want %d bytes", len(got), err, len(text))
			}
		}
		must(t, os.Remove(path+".link"))
	}
	if text, err := filewatch.ReadFile("/proc/self/status"); err != nil || len(text) == 0 {
		t.Errorf("a file without a size: %d bytes, %v", len(text), err)
	}
}

// running runs a Watcher of the file at path. stop ends it.
func running(t *testing.T, path string, o filewatch.Options) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	o.Logger = slog.New(slog.DiscardHandler)
	var running sync.WaitGroup
	running.Go(func() { filewatch.Files([]string{path}, o).Run(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

func TestRunEndsThoughAFileDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, "good")
		reading, answer, answered := make(chan struct{}), make(chan struct{}), make(chan struct{})
		stop := running(t, path, filewatch.Options{Read: func(bool) bool {
			close(reading)
			<-answer
			close(answered)
			return true
		}})
		<-reading
		start := time.Now()
		stop()
		if took := time.Since(start); took > time.Second {
			t.Errorf("Run ended after %v, want a second at most", took)
		}
		close(answer)
		<-answered
	})
}

func TestAReadThatPanicsIsBadContentAndWatchingGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		write(t, path, "good 1")
		before := testutil.ToFloat64(guard.Panics.WithLabelValues("filewatch"))
		var panics atomic.Int32
		read, broken := make(chan string, 100), make(chan error, 100)
		stop := running(t, path, filewatch.Options{
			Read: func(bool) bool {
				text, err := os.ReadFile(path)
				if strings.HasPrefix(string(text), "bad") {
					panics.Add(1)
					panic("a bug")
				}
				read <- string(text)
				return err == nil && strings.HasPrefix(string(text), "good")
			},
			Broken: func(err error) {
				broken <- err
				panic("another bug")
			},
		})
		defer stop()
		if got := <-read; got != "good 1" {
			t.Fatalf("read %q", got)
		}
		replace(t, path, "bad")
		if err := <-broken; !strings.Contains(err.Error(), "bug in Usher: panic in filewatch at read_test.go:") {
			t.Errorf("Broken was called with %v", err)
		}
		replace(t, path, "good 2")
		if got := <-read; got != "good 2" {
			t.Errorf("read %q, want the file that is good again", got)
		}
		if counted := testutil.ToFloat64(guard.Panics.WithLabelValues("filewatch")) - before; counted < 2*float64(panics.Load()) {
			t.Errorf("usher_panics_total grew by %v, with %d panics of Read and as many of Broken", counted, panics.Load())
		}
	})
}
