package operator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/usherproxy/usher/gateway"
)

// Whoever writes a file in place empties it first, and may write it in pieces.
const (
	// quiet is how long the file is left alone after an event.
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
	var doubted time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.Events: // of any file in the directory
			settled = orElse(settled, quiet)
		case err := <-w.Errors:
			f.log.Warn("watching the config file", "path", f.path, "error", err)
			settled = orElse(settled, quiet)
		case <-settled:
			settled = nil
			written, whole := f.look()
			switch {
			case whole:
				sure = nil
				f.tell(put)
			case sure == nil || !written.Equal(doubted):
				sure, doubted = time.After(doubt), written
			}
		case <-sure:
			sure = nil
			f.tell(put)
		}
	}
}

// orElse gives the timer, or a new one where there is none.
func orElse(timer <-chan time.Time, d time.Duration) <-chan time.Time {
	if timer == nil {
		return time.After(d)
	}
	return timer
}

// look says when the file was last written, and whether it does not look like
// one that is still being written.
func (f *File) look() (written time.Time, whole bool) {
	if info, err := os.Stat(f.path); err == nil {
		written = info.ModTime()
	}
	text, err := os.ReadFile(f.path)
	if err != nil || len(text) == 0 {
		return written, false
	}
	_, problems := parse(f.path, text)
	return written, len(problems) == 0
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
	if cause, ok := errors.AsType[*fs.PathError](err); ok {
		err = cause.Err
	}
	p := gateway.Problem{Where: f.path, What: fmt.Sprintf("cannot be read: %v; put it back, or mend it; what it last said stays", err)}
	if slices.Contains(f.content.Problems, p) {
		return false
	}
	f.last = nil
	f.content = Content{Layers: f.content.Layers, Problems: []gateway.Problem{p}}
	return true
}
