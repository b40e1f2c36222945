package operator

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/usherproxy/usher/gateway"
)

// Whoever writes a file in place empties it first, and may write it in pieces.
const (
	// quiet is how long no event may come before the file is read.
	quiet = 5 * time.Millisecond
	// doubt is how long an empty, missing or bad file may be one that is still
	// being written.
	doubt = 100 * time.Millisecond
)

// Run follows the file until ctx ends and calls put with every new content. A
// bad change keeps the last good content of what it concerns and comes with
// its problems. The file may be written in place, or be replaced as a whole, as
// editors and Kubernetes do, and may be gone for a while.
func (f *File) Run(ctx context.Context, put func(Content)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("config file %s: %w", f.path, err)
	}
	defer w.Close()
	if err := w.Add(filepath.Dir(f.path)); err != nil {
		return fmt.Errorf("config file %s: watch its directory: %w", f.path, err)
	}
	// Read before waiting too: the file may have changed since Open.
	settled, sure := time.After(0), (<-chan time.Time)(nil)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events:
			settled, sure = time.After(quiet), nil
		case err := <-w.Errors:
			f.log.Warn("watching the config file", "path", f.path, "error", err)
			settled, sure = time.After(quiet), nil
		case <-settled:
			if f.doubtful() {
				sure = time.After(doubt)
			} else {
				f.tell(put)
			}
		case <-sure:
			f.tell(put)
		}
	}
}

// doubtful says whether the file looks like one that is still being written.
func (f *File) doubtful() bool {
	text, err := os.ReadFile(f.path)
	if err != nil || len(text) == 0 {
		return true
	}
	_, problems := parse(f.path, text)
	return len(problems) > 0
}

// tell reads the file, and puts its content when that has changed.
func (f *File) tell(put func(Content)) {
	if f.reread() {
		put(f.content)
	}
}

// reread reads the file again and says whether its content changed. A file
// that cannot be read counts as what it last said.
func (f *File) reread() bool {
	text, err := os.ReadFile(f.path)
	if err != nil {
		return f.unreadable(err)
	}
	if f.last != nil && slices.Equal(text, f.last) {
		return false
	}
	f.read(text)
	f.log.Info("config file read", "path", f.path, "gateways", len(f.content.Layers), "problems", len(f.content.Problems))
	return true
}

func (f *File) unreadable(err error) bool {
	p := gateway.Problem{Where: f.path, What: fmt.Sprintf("%v; what it last said stays", err)}
	if slices.Contains(f.content.Problems, p) {
		return false
	}
	f.last = nil
	f.content = Content{Layers: f.content.Layers, Problems: []gateway.Problem{p}}
	return true
}
