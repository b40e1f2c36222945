package files

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Whoever writes a file makes several events in a row: it is created, written
// and renamed, or written in pieces. quiet is how long no event may come
// before the files are read, atMost how long a stream of events holds the
// reading up.
const (
	quiet  = 5 * time.Millisecond
	atMost = 100 * time.Millisecond
)

// follow calls changed at the start and after every change to what dir shows,
// until ctx ends. It watches directories, for a file that is replaced by a
// rename takes its own watch with it:
//
//   - dir, for files that are written, made, renamed and removed;
//   - the directories that symbolic links in dir lead to, as the ..data of a
//     Kubernetes volume does;
//   - the parent of dir, for dir itself being replaced.
func follow(ctx context.Context, dir string, changed func()) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	defer w.Close()
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	f := follower{dir: absolute, watcher: w}
	for {
		if err := f.watch(); err != nil {
			return err
		}
		changed()
		if !f.wait(ctx) {
			return nil
		}
	}
}

type follower struct {
	dir     string // absolute
	watcher *fsnotify.Watcher
	whole   map[string]bool // watched directories of which every event counts
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

// wait returns true after a change, once it is quiet, and false when ctx ends.
func (f *follower) wait(ctx context.Context) bool {
	var settled, late <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case e, ok := <-f.watcher.Events:
			if !ok {
				return false
			}
			if !f.concerns(e) {
				continue
			}
		case <-f.watcher.Errors:
			// Events were lost: read.
		case <-settled:
			return true
		case <-late:
			return true
		}
		settled = time.After(quiet)
		if late == nil {
			late = time.After(atMost)
		}
	}
}

// concerns is false for what happens beside dir in its parent.
func (f *follower) concerns(e fsnotify.Event) bool {
	return f.whole[filepath.Dir(e.Name)] || f.whole[e.Name] || filepath.Base(e.Name) == filepath.Base(f.dir)
}
