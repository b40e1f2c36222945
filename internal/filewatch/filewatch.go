// Package filewatch reads files again when their content changes. The files may be written in place, replaced by a
// rename, reached by symbolic links that are swapped, as in a Kubernetes volume, and missing for a while.
//
// It compares sizes and times four times a second, contents every second, and uses no events of the file system. So it
// sees every change, also on file systems without events, such as NFS, and also when a directory above the files is
// replaced.
package filewatch

import (
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/usherproxy/usher/internal/guard"
)

const (
	// Interval is the time between two comparisons of contents, and the time after which unchanged bad content is
	// final.
	Interval = time.Second
	// statInterval is the time between two comparisons of sizes and times. These find most changes.
	statInterval = Interval / 4
	// Settle is how long changed files must stay the same before they are read: a writer may not be done.
	Settle = 10 * time.Millisecond
	// settleLimit is how long files that change all the time delay the read.
	settleLimit = 100 * time.Millisecond
)

// A path may lead to storage that does not answer, for example over a network. A system call that waits for it
// cannot be cancelled.
const (
	warnAfter   = 5 * time.Second
	stopTimeout = time.Second // how long Run waits for the call after ctx has ended
)

// Options are what a Watcher needs besides its paths.
type Options struct {
	// Read reads the files and reports whether their content is good. Bad content may belong to a file that is still
	// being written. If it stays the same for Interval, Read is called once more, with final set: report problems only
	// then. Calls never overlap.
	Read func(final bool) bool
	// Broken is called after Read has panicked, which counts as bad content. If Broken is nil, only the log reports the
	// panic.
	Broken func(err error)
	Logger *slog.Logger
	// Again makes the Watcher read the files at once, also without a change. It may be nil.
	Again Trigger
}

// Trigger makes a Watcher read its files at once. Use NewTrigger.
type Trigger chan struct{}

// NewTrigger returns a Trigger without a pending request.
func NewTrigger() Trigger { return make(Trigger, 1) }

// Fire requests a read. It never blocks. If the Watcher does not run yet, the request stays pending until it does.
func (t Trigger) Fire() {
	select {
	case t <- struct{}{}:
	default:
	}
}

// Watcher reads files at the start and after every change. Use Dir, Files or FilesOf.
type Watcher struct {
	options Options
	paths   []string        // for messages
	list    func() []string // paths of the files to compare
	seed    maphash.Seed
}

// Dir watches a directory: all files in it, but not those of directories in it.
func Dir(dir string, o Options) *Watcher {
	return &Watcher{options: o, paths: []string{dir}, seed: maphash.MakeSeed(), list: func() []string {
		listed, err := os.ReadDir(dir)
		if err != nil {
			return []string{dir} // reading it returns the reason
		}
		paths := make([]string, len(listed))
		for i, entry := range listed {
			paths[i] = filepath.Join(dir, entry.Name())
		}
		return paths
	}}
}

// Files watches the files at the paths.
func Files(paths []string, o Options) *Watcher {
	return FilesOf(paths, func() []string { return paths }, o)
}

// FilesOf watches the files at the paths that list returns, which may be others after each Read. The goroutine that calls
// Read calls list. Messages name the files that there are at the start.
func FilesOf(first []string, list func() []string, o Options) *Watcher {
	return &Watcher{options: o, paths: first, seed: maphash.MakeSeed(), list: list}
}

// Run watches the files until ctx ends. It then returns at most a second later, even if a path does not answer.
func (w *Watcher) Run(ctx context.Context) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.watch(ctx)
	}()
	<-ctx.Done()
	select {
	case <-ended:
	case <-time.After(stopTimeout):
	}
}

func (w *Watcher) watch(ctx context.Context) {
	stats, sum, changed := w.stats(), w.sum(), time.Now()
	good, final := w.read(false), false
	for n := 1; ; n++ {
		requested := false
		select {
		case <-ctx.Done():
			return
		case <-w.options.Again:
			requested = true
		case <-time.After(statInterval):
		}
		last, before := stats, sum
		stats = w.stats()
		// Bad content is compared each time: two unfinished writes are not one unchanged content.
		if stats == last && !requested && (good || final) && n%int(Interval/statInterval) != 0 {
			continue
		}
		sum = w.settled(ctx, before)
		switch {
		case ctx.Err() != nil:
			return
		case sum != before || requested:
			changed = time.Now()
			good, final = w.read(false), false
		case !good && !final && time.Since(changed) >= Interval:
			good, final = w.read(true), true
		}
	}
}

// settled returns the checksum of the files. If it is not the one before, it waits until a writer is done.
func (w *Watcher) settled(ctx context.Context, before uint64) uint64 {
	limit := time.Now().Add(settleLimit)
	sum := w.sum()
	for sum != before && time.Now().Before(limit) {
		select {
		case <-ctx.Done():
			return sum
		case <-time.After(Settle):
		}
		before, sum = sum, w.sum()
	}
	return sum
}

// sum returns a checksum of the files' names and contents. Where a file cannot be read, the reason stands for its
// content.
func (w *Watcher) sum() uint64 {
	return w.hash(func(path string) (string, error) {
		text, err := ReadFile(path)
		return string(text), err
	})
}

// stats returns a checksum of the files' names, sizes and times of modification.
func (w *Watcher) stats() uint64 {
	return w.hash(func(path string) (string, error) {
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		return fmt.Sprint(info.Size(), info.ModTime().UnixNano()), nil
	})
}

func (w *Watcher) hash(of func(path string) (string, error)) uint64 {
	defer w.warnIfSlow()()
	var h maphash.Hash
	h.SetSeed(w.seed)
	for _, path := range w.list() {
		text, err := of(path)
		if err != nil {
			text = err.Error()
		}
		maphash.WriteComparable(&h, [2]string{path, text})
	}
	return h.Sum64()
}

// read calls Read and reports whether the content is good. After a panic it is not.
func (w *Watcher) read(final bool) (good bool) {
	defer w.warnIfSlow()()
	guarded := func(f func()) error {
		return guard.Run(w.options.Logger, "filewatch", func() error { f(); return nil })
	}
	if err := guarded(func() { good = w.options.Read(final) }); err != nil && w.options.Broken != nil {
		_ = guarded(func() { w.options.Broken(err) })
	}
	return good
}

// warnIfSlow logs a warning if the function that it returns is not called soon.
func (w *Watcher) warnIfSlow() (done func()) {
	timer := time.AfterFunc(warnAfter, func() {
		w.options.Logger.Warn("the storage of watched files does not answer; Usher keeps their last content; check the storage",
			"paths", w.paths)
	})
	return func() { timer.Stop() }
}
