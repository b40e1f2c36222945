// Package guard turns a panic into an error. A bug then ends the work for one gateway, stream or file instead of the
// process: the caller keeps the last valid state and reports the error.
package guard

import (
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// parts are the arguments of Run. They have series from the start, so that the first panic is an increase for Prometheus.
var parts = []string{
	"admission", "balancer", "certificate", "compile", "consul answer", "consul snapshot", "dataplane", "dataplane call", "evidence",
	"filewatch", "kubernetes", "names", "state", "stream", "watch", "worker",
}

func init() {
	for _, part := range parts {
		Panics.WithLabelValues(part)
	}
}

// Panics counts the panics that Run has recovered from. Register it once per process.
var Panics = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "usher_panics_total",
	Help: "Recovered panics, by the part of Usher. Each is a bug: report it with the stack from the log. The last valid state stays in use.",
}, []string{"part"})

// Error is a panic that Run has recovered from.
type Error struct {
	Part  string // the argument of Run
	Value any    // the argument of panic
	At    string // where the panic began, such as "file.go:12"; empty if unknown
}

// Error implements error. It is one line, for the text of a problem.
func (e *Error) Error() string {
	value := strings.Join(strings.Fields(fmt.Sprint(e.Value)), " ")
	return fmt.Sprintf("bug in Usher: panic in %s at %s: %s; please report it with the stack from the log", e.Part, e.At, value)
}

// Run calls f and returns its error. If f panics, Run logs the stack, counts the panic, and returns an *Error. part is
// the part of Usher for the log and the metric; it must be one of parts.
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

// origin returns where the recovered panic began: the first caller outside the runtime.
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
