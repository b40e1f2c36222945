// Package guard turns a panic into an error. A mistake in the code then ends the
// work on one gateway, one stream or one file, and never the process: whoever
// calls keeps the last good state and reports the error.
package guard

import (
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Panics counts the panics that Run has recovered from. Register it once for a
// process. Each part has its series from its first panic on.
var Panics = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "usher_panics_total",
	Help: "Panics that were recovered from, by the part of Usher: each is a bug. The last good state stays; the log has the stack.",
}, []string{"part"})

// Error is a panic that Run has recovered from.
type Error struct {
	Part  string // as it was given to Run
	Value any    // what panic was called with
	At    string // "file.go:12" where the panic began; empty if it is not known
}

// Error implements error. It is one line, fit for a problem's text.
func (e *Error) Error() string {
	value := strings.Join(strings.Fields(fmt.Sprint(e.Value)), " ")
	return fmt.Sprintf("bug in Usher: panic in %s at %s: %s; please report it with the stack from the log", e.Part, e.At, value)
}

// Run calls f and returns its error. When f panics, Run logs the stack, counts
// the panic, and returns an *Error. part names the part of Usher in log and
// metric; it comes from the code and never from input.
func Run(log *slog.Logger, part string, f func() error) (err error) {
	defer func() {
		if value := recover(); value != nil {
			caught := &Error{Part: part, Value: value, At: origin()}
			Panics.WithLabelValues(part).Inc()
			log.Error("panic", "part", part, "error", fmt.Sprint(value), "at", caught.At, "stack", string(debug.Stack()))
			err = caught
		}
	}()
	return f()
}

// origin returns the place at which the panic that is being recovered from
// began: the first caller outside the runtime.
func origin() string {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs[:])])
	panicking := false
	for {
		frame, more := frames.Next()
		inRuntime := strings.HasPrefix(frame.Function, "runtime.")
		if panicking && !inRuntime {
			return fmt.Sprintf("%s:%d", frame.File[strings.LastIndex(frame.File, "/")+1:], frame.Line)
		}
		panicking = panicking || strings.HasPrefix(frame.Function, "runtime.gopanic")
		if !more {
			return ""
		}
	}
}
