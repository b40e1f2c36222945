package files

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Whoever writes a file makes several events in a row: it is created, written
// and renamed, or emptied and written in pieces.
const (
	// quiet is how long no event may come before the files are read.
	quiet = 5 * time.Millisecond
	// atMost is how long a stream of events holds the reading up.
	atMost = 100 * time.Millisecond
	// doubt is how long bad content may be a file that is still being written.
	doubt = 100 * time.Millisecond
)

// follower calls read at the start and after every change to what dir shows.
// Bad content, for which read gives false, is read again after a while without
// a change, then with sure set. It watches directories, for a file that is
// replaced by a rename takes its own watch with it:
//
//   - dir, for files that are written, made, renamed and removed;
//   - the directories that symbolic links in dir lead to, as the ..data of a
//     Kubernetes volume does;
//   - the parent of dir, for dir itself being replaced.
type follower struct {
	dir    string // absolute
	logger *slog.Logger
	read   func(sure bool) bool

	watcher *fsnotify.Watcher
	whole   map[string]bool // watched directories of which every event counts
}

// run follows until ctx ends, and then gives nil.
func (f *follower) run(ctx context.Context) error {
	var err error
	if f.watcher, err = fsnotify.NewWatcher(); err != nil {
		return fmt.Errorf("watch %s: %w", f.dir, err)
	}
	defer f.watcher.Close()
	for ctx.Err() == nil {
		if err := f.watch(); err != nil {
			return err
		}
		var wake <-chan time.Time
		if !f.read(false) {
			wake = time.After(doubt)
		}
		if !f.wait(ctx, wake) {
			f.read(true)
			f.wait(ctx, nil)
		}
	}
	return nil
}

// watch makes the watches those that dir needs now. dir may be missing.
func (f *follower) watch() error {
	f.whole = map[string]bool{}
	if resolved, err := filepath.EvalSymlinks(f.dir); err == nil {
		f.whole[resolved] = true
		if err := f.watcher.Add(resolved); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("watch %s: %w", resolved, err)
		}
	}
	for _, target := range f.targets() {
		f.whole[target] = true
		_ = f.watcher.Add(target) // gone again: dir's own watch tells
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(f.dir))
	if err == nil {
		// A parent that may not be listed costs no more than that dir's own
		// replacement goes unseen.
		_ = f.watcher.Add(parent)
	}
	for _, path := range f.watcher.WatchList() {
		if path != parent && !f.whole[path] {
			_ = f.watcher.Remove(path) // gone already
		}
	}
	return nil
}

// targets lists the directories of the files that links in dir lead to.
func (f *follower) targets() []string {
	listed, err := os.ReadDir(f.dir)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range listed {
		if e.Type()&os.ModeSymlink == 0 {
			continue
		}
		if real, err := filepath.EvalSymlinks(filepath.Join(f.dir, e.Name())); err == nil {
			out = append(out, filepath.Dir(real))
		}
	}
	return out
}

// wait returns true after a change, once it is quiet, and when ctx ends; and
// false when wake comes before any change.
func (f *follower) wait(ctx context.Context, wake <-chan time.Time) bool {
	var settled, late <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return true
		case e := <-f.watcher.Events:
			if !f.concerns(e) {
				continue
			}
		case err := <-f.watcher.Errors:
			f.logger.Warn("events of the config files may be lost; they are read again", "error", err)
		case <-wake:
			return false
		case <-settled:
			return true
		case <-late:
			return true
		}
		settled, wake = time.After(quiet), nil
		if late == nil {
			late = time.After(atMost)
		}
	}
}

// concerns is false for what happens beside dir in its parent.
func (f *follower) concerns(e fsnotify.Event) bool {
	return f.whole[filepath.Dir(e.Name)] || f.whole[e.Name] || filepath.Base(e.Name) == filepath.Base(f.dir)
}
