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
		f.logger.Info("files can be used again", "what", f.what, "files", f.paths)
		f.since, f.logged = time.Time{}, ""
	case err == nil:
		f.since = time.Time{}
	case f.since.IsZero():
		f.since = now
	case now.Sub(f.since) >= checkInterval && err.Error() != f.logged:
		f.logged = err.Error()
		f.logger.Warn("files cannot be used, and the last valid content stays in use; correct them", "what", f.what, "files", f.paths, "error", err)
	}
}
