// Package filewatch tells when files change. They may be written in place,
// replaced by a rename, or reached by symbolic links that are swapped, as those
// of a Kubernetes volume are; and they may be gone for a while.
package filewatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/usherproxy/usher/internal/guard"
)

// Whoever writes a file makes several events in a row: it is created, written
// and renamed, or emptied and written in pieces.
const (
	// Quiet is how long no event may come before the files are read.
	Quiet = 5 * time.Millisecond
	// AtMost is how long a stream of events holds the reading up.
	AtMost = 100 * time.Millisecond
	// Doubt is how long bad content may be a file that is still being written.
	Doubt = 100 * time.Millisecond
)

// A path may lead to storage that does not answer, for example over a network. A
// system call that waits for it cannot be cancelled.
const (
	patience = 5 * time.Second // before Run logs that
	parting  = time.Second     // how long Run waits for the call after ctx has ended
)

// Options are what a Watcher needs beside its paths.
type Options struct {
	// Read reads the files, and is false when their content is bad. Bad content
	// is read again after Doubt without a change, then with sure set: only then
	// there is something to complain about. Calls never overlap.
	Read func(sure bool) bool
	// Broken is called after Read has panicked. The content then counts as bad. If
	// Broken is nil, only the log reports the panic.
	Broken func(err error)
	Logger *slog.Logger
	// Trigger makes the Watcher read the files without a change. It may be nil.
	Again Trigger
}

// Trigger makes a Watcher read its files at once. A Watcher misses changes on file
// systems without events, such as NFS, and of directories above the watched ones.
// Use NewTrigger.
type Trigger chan struct{}

// NewTrigger returns a Trigger without a pending request.
func NewTrigger() Trigger { return make(Trigger, 1) }

// Fire requests a read. It never blocks. If the Watcher does not run yet, the request
// stays pending until it does.
func (a Trigger) Fire() {
	select {
	case a <- struct{}{}:
	default:
	}
}

// Watcher reads files at the start and after every change. Use Dir or Files.
type Watcher struct {
	paths  []string
	whole  bool // paths are directories, and every file in them counts
	read   func(sure bool) bool
	broken func(error)
	logger *slog.Logger
	again  Trigger

	watcher *fsnotify.Watcher
	watched watched
}

// Dir follows a directory: all files in it, but not those of directories in it.
func Dir(dir string, o Options) *Watcher {
	return &Watcher{paths: []string{dir}, whole: true, read: o.Read, broken: o.Broken, logger: o.Logger, again: o.Again}
}

// Files follows the files at the paths. What else happens in their directories
// does not count.
func Files(paths []string, o Options) *Watcher {
	return &Watcher{paths: paths, read: o.Read, broken: o.Broken, logger: o.Logger, again: o.Again}
}

// Run follows the files until ctx ends. It then returns nil, at most a second later,
// even if a path does not answer. It returns an error if the system cannot watch the
// files' directories.
func (f *Watcher) Run(ctx context.Context) error {
	absolute := make([]string, len(f.paths))
	for i, path := range f.paths {
		var err error
		if absolute[i], err = filepath.Abs(path); err != nil {
			return fmt.Errorf("watch %s: %w", path, err)
		}
	}
	var err error
	if f.watcher, err = fsnotify.NewWatcher(); err != nil {
		return fmt.Errorf("watch %s: %w", f.paths[0], err)
	}
	ended := make(chan error, 1)
	go func() {
		defer f.watcher.Close()
		ended <- f.follow(ctx, absolute)
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(parting):
		return nil
	}
}

func (f *Watcher) follow(ctx context.Context, paths []string) error {
	for ctx.Err() == nil {
		good, err := f.turn(paths, false)
		if err != nil {
			return err
		}
		var wake <-chan time.Time
		if !good {
			wake = time.After(Doubt)
		}
		if f.wait(ctx, wake) {
			continue
		}
		if _, err := f.turn(paths, true); err != nil {
			return err
		}
		f.wait(ctx, nil)
	}
	return nil
}

// turn watches the paths and reads them. It reports whether their content is good.
// After a panic it is not. The error is a system error.
func (f *Watcher) turn(paths []string, sure bool) (good bool, err error) {
	slow := time.AfterFunc(patience, func() {
		f.logger.Warn("the storage of followed files does not answer; Usher keeps their last content; check the storage", "paths", f.paths)
	})
	defer slow.Stop()
	err = guard.Run(f.logger, "follow", func() error {
		if err := f.watch(paths); err != nil {
			return err
		}
		good = f.read(sure)
		return nil
	})
	if _, panicked := errors.AsType[*guard.Error](err); !panicked {
		return good, err
	}
	_ = guard.Run(f.logger, "follow", func() error {
		if f.broken != nil {
			f.broken(err)
		}
		return nil
	})
	return false, nil
}

// wait returns true when a change is over and no further one follows, when a read is
// requested, or when ctx ends. It returns false if wake fires before any change.
func (f *Watcher) wait(ctx context.Context, wake <-chan time.Time) bool {
	var settled, late <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return true
		case <-f.again:
			return true
		case e := <-f.watcher.Events:
			if !f.watched.concerns(e.Name) {
				continue
			}
		case err := <-f.watcher.Errors:
			f.logger.Warn("events of files may be lost; they are read again", "paths", f.paths, "error", err)
		case <-wake:
			return false
		case <-settled:
			return true
		case <-late:
			return true
		}
		settled, wake = time.After(Quiet), nil
		if late == nil {
			late = time.After(AtMost)
		}
	}
}
