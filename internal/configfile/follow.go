package configfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/usherproxy/usher/internal/filewatch"
	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/settings"
)

// Run follows the file until ctx ends and calls put with every new content. A
// bad change keeps the last good content of what it concerns and comes with
// its problems. The file may be written in place, or be replaced as a whole, as
// editors and Kubernetes do, and may be gone for a while.
func (f *File) Run(ctx context.Context, put func(settings.File)) error {
	read := func(sure bool) bool {
		text, err := filewatch.ReadFile(f.path)
		whole := err == nil && f.isWhole(text)
		if (whole || sure) && f.take(text, err) {
			put(f.content)
		}
		return whole
	}
	broken := func(err error) {
		if f.broken(err) {
			put(f.content)
		}
	}
	filewatch.Files([]string{f.path}, filewatch.Options{Read: read, Broken: broken, Logger: f.log, Again: f.again}).Run(ctx)
	return nil
}

// isWhole says whether the text does not look like that of a file that is still
// being written.
func (f *File) isWhole(text []byte) bool {
	if len(text) == 0 {
		return false
	}
	_, problems := parse(f.path, text)
	return len(problems) == 0
}

// take makes what was read the file's content and says whether that changed. A
// file that cannot be read counts as what it last said.
func (f *File) take(text []byte, err error) bool {
	if err != nil {
		return f.unreadable(err)
	}
	if f.last != nil && slices.Equal(text, f.last) {
		return false
	}
	f.read(text)
	f.log.Info("config file read", "path", f.path, "gateways", len(f.content.Gateways), "problems", len(f.content.Problems))
	return true
}

func (f *File) unreadable(err error) bool {
	if cause, ok := errors.AsType[*fs.PathError](err); ok {
		err = cause.Err
	}
	return f.keep(fmt.Sprintf("cannot be read: %v; put it back, or mend it; what it last said stays", err))
}

// broken records a panic while the file was read. It reports whether that is new.
func (f *File) broken(err error) bool { return f.keep(err.Error() + "; what the file last said stays") }

// keep sets one problem, and keeps the last good content. It reports whether the
// problem is new.
func (f *File) keep(what string) bool {
	p := problem.Problem{Where: f.path, What: what}
	f.last = nil
	if slices.Contains(f.content.Problems, p) {
		return false
	}
	f.content.Problems = []problem.Problem{p}
	return true
}
