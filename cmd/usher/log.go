package main

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// logger returns the log of the process, and a function that ends it. Writing to
// the log never blocks. The metrics count the lines that it drops.
func (o serveOptions) logger(metrics prometheus.Registerer) (*slog.Logger, func(), error) {
	queue := newLogQueue(o.logOut, o.logFormat, metrics)
	log, err := newLogger(queue, o.logFormat, o.logLevel)
	if err != nil {
		return nil, nil, err
	}
	go queue.run()
	grpcErrors.log.Store(log)
	return log, func() {
		grpcErrors.log.Store(nil)
		queue.close(logFlushTimeout)
	}, nil
}

// grpcErrors receives the lines that gRPC would otherwise write to stderr. gRPC has
// one such writer for the whole process.
var grpcErrors grpcLog

// grpcLog is a writer that writes each line as a record of a log. While it has no
// log, it drops them.
type grpcLog struct{ log atomic.Pointer[slog.Logger] }

func (g *grpcLog) Write(line []byte) (int, error) {
	if log := g.log.Load(); log != nil {
		log.Error("gRPC", "error", strings.TrimSpace(string(line)))
	}
	return len(line), nil
}

// newLogger gives a logger that writes records of the level and above.
func newLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: use debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q: use text or json", format)
}
