// Package follow tells when files change. They may be written in place,
// replaced by a rename, or reached by symbolic links that are swapped, as those
// of a Kubernetes volume are; and they may be gone for a while.
package follow

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
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

// Options are what a Follower needs beside its paths.
type Options struct {
	// Read reads the files, and is false when their content is bad. Bad content
	// is read again after Doubt without a change, then with sure set: only then
	// there is something to complain about. Calls never overlap.
	Read   func(sure bool) bool
	Logger *slog.Logger
	// Again asks for the files to be read although no change was seen. Nil does
	// without.
	Again Again
}

// Again asks a Follower to read its files at once: a change of a file system
// that tells of none, as NFS, or of a directory farther up goes unseen. Use
// NewAgain.
type Again chan struct{}

// NewAgain returns an Again that has not asked yet.
func NewAgain() Again { return make(Again, 1) }

// Ask asks. It never blocks; a Follower that does not run yet reads when it
// does.
func (a Again) Ask() {
	select {
	case a <- struct{}{}:
	default:
	}
}

// Follower reads files at the start and after every change. Use Dir or Files.
type Follower struct {
	paths  []string
	whole  bool // paths are directories, and every file in them counts
	read   func(sure bool) bool
	logger *slog.Logger
	again  Again

	watcher *fsnotify.Watcher
	watched watched
}

// Dir follows a directory: all files in it, but not those of directories in it.
func Dir(dir string, o Options) *Follower {
	return &Follower{paths: []string{dir}, whole: true, read: o.Read, logger: o.Logger, again: o.Again}
}

// Files follows the files at the paths. What else happens in their directories
// does not count.
func Files(paths []string, o Options) *Follower {
	return &Follower{paths: paths, read: o.Read, logger: o.Logger, again: o.Again}
}

// Run follows until ctx ends, and then gives nil. Its error is that the system
// cannot watch the files' directories.
func (f *Follower) Run(ctx context.Context) error {
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
	defer f.watcher.Close()
	for ctx.Err() == nil {
		if err := f.watch(absolute); err != nil {
			return err
		}
		var wake <-chan time.Time
		if !f.read(false) {
			wake = time.After(Doubt)
		}
		if !f.wait(ctx, wake) {
			f.read(true)
			f.wait(ctx, nil)
		}
	}
	return nil
}

// wait returns true after a change, once it is quiet, at once when it is asked
// to, and when ctx ends; and false when wake comes before any change.
func (f *Follower) wait(ctx context.Context, wake <-chan time.Time) bool {
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
