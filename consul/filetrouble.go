package consul

import (
	"log/slog"
	"time"
)

// fileTrouble logs once that a file is bad and once that it is good again. It is not safe for concurrent use.
type fileTrouble struct {
	logger *slog.Logger
	what   string   // what the files are, for the log
	paths  []string // the files
	since  time.Time
	logged string // the error that was last logged
}

// note records what came of reading the files: nil if they are good. A file may be half written for a moment, so it is bad
// only once that has lasted for checkInterval.
func (f *fileTrouble) note(err error) {
	now := time.Now()
	switch {
	case err == nil && f.logged != "":
		f.logger.Info(f.what+" can be used again", "files", f.paths)
		f.since, f.logged = time.Time{}, ""
	case err == nil:
		f.since = time.Time{}
	case f.since.IsZero():
		f.since = now
	case now.Sub(f.since) >= checkInterval && err.Error() != f.logged:
		f.logged = err.Error()
		f.logger.Warn(f.what+" cannot be used, and the last good content stays in use; correct it", "files", f.paths, "error", err)
	}
}
