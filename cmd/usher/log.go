package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/usherproxy/usher/internal/problem"
	"github.com/usherproxy/usher/internal/redaction"
)

// logger returns the log of the process, its last lines, and a function that closes it. Writing to the log never blocks.
// The metrics count the lines that it drops.
func (o serveOptions) logger(metrics prometheus.Registerer) (*slog.Logger, *recentLog, func(), error) {
	queue, recent := newLogQueue(o.logOut, o.logFormat, metrics), &recentLog{}
	log, err := newLogger(io.MultiWriter(recent, queue), o.logFormat, o.logLevel)
	if err != nil {
		return nil, nil, nil, err
	}
	go queue.run()
	grpcErrors.log.Store(log)
	return log, recent, func() {
		grpcErrors.log.Store(nil)
		queue.close(logFlushTimeout)
	}, nil
}

// grpcErrors receives the lines that gRPC would otherwise write to stderr. gRPC has one such writer for the whole
// process.
var grpcErrors grpcLog

// grpcLog is a writer that writes each line as a record of a log. While it has no log, it drops them.
type grpcLog struct{ log atomic.Pointer[slog.Logger] }

func (g *grpcLog) Write(line []byte) (int, error) {
	if log := g.log.Load(); log != nil {
		log.Error("grpc error", "error", strings.TrimSpace(string(line)))
	}
	return len(line), nil
}

// newLogger returns a logger that writes records of the level and above, without secrets.
func newLogger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q is unknown%s; use debug, info, warn or error",
			level, problem.DidYouMean(level, []string{"debug", "info", "warn", "error"}))
	}
	opts := &slog.HandlerOptions{Level: l, ReplaceAttr: redactAttr}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %q is unknown; use text or json", format)
}

// redactAttr returns an attribute without the secrets that its texts quote.
func redactAttr(_ []string, a slog.Attr) slog.Attr {
	switch v := a.Value.Any().(type) {
	case string:
		a.Value = slog.StringValue(redaction.Text(v))
	case error:
		a.Value = slog.StringValue(redaction.Text(v.Error()))
	case []string:
		texts := make([]string, len(v))
		for i, text := range v {
			texts[i] = redaction.Text(text)
		}
		a.Value = slog.AnyValue(texts)
	}
	return a
}

const (
	// maxLogQueue is how many bytes of log lines wait in memory at most.
	maxLogQueue = 4 << 20
	// logFlushTimeout is how long the process waits for the log's reader before it ends.
	logFlushTimeout = time.Second
	// writeRetryPause is the pause before another write to a full non-blocking pipe.
	writeRetryPause = 10 * time.Millisecond
)

// logQueue is a writer for log lines that never blocks: a pipe whose reader has stopped must not stop the streams of
// Envoys. It keeps the lines in memory, and only the goroutine of run writes them to the log. When the memory is
// full, it drops lines, counts them, and writes the count in their place. Use newLogQueue.
type logQueue struct {
	out     io.Writer
	limit   int // bytes
	format  string
	dropped prometheus.Counter

	mu         sync.Mutex
	cond       sync.Cond // signals that a field below has changed
	lines      [][]byte
	size       int // of lines, in bytes
	unreported int // dropped lines that no line reports yet
	closed     bool

	failed int           // lines whose write failed and that no line reports yet; only run uses it
	done   chan struct{} // closed when run has returned
}

// newLogQueue returns a queue in front of a log. format is one of newLogger.
func newLogQueue(to io.Writer, format string, metrics prometheus.Registerer) *logQueue {
	q := &logQueue{
		out: to, limit: maxLogQueue, format: format, done: make(chan struct{}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "usher_log_lines_dropped_total",
			Help: "Log lines that Usher dropped because the log was not read in time or could not be written.",
		}),
	}
	q.cond.L = &q.mu
	metrics.MustRegister(q.dropped)
	return q
}

// Write takes one line. After it has dropped one, it drops all until half of the queue is written. So the missing
// lines are adjacent.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.size+len(line) > q.limit || q.unreported > 0 && q.size > q.limit/2 {
		q.unreported++
		q.dropped.Inc()
		return len(line), nil
	}
	q.reportDropped()
	q.push(bytes.Clone(line))
	return len(line), nil
}

// reportDropped queues a line in the place of those that were dropped. The caller holds mu.
func (q *logQueue) reportDropped() {
	if q.unreported > 0 {
		q.push(q.missing(q.unreported))
		q.unreported = 0
	}
}

func (q *logQueue) push(line []byte) {
	q.lines = append(q.lines, line)
	q.size += len(line)
	q.cond.Signal()
}

// run writes until close is called and all lines are written.
func (q *logQueue) run() {
	defer close(q.done)
	for line := q.next(); line != nil; line = q.next() {
		if q.failed > 0 && q.write(q.missing(q.failed)) {
			q.failed = 0
		}
		if q.failed > 0 || !q.write(line) {
			q.failed++
			q.dropped.Inc()
		}
	}
}

// next waits for a line and returns it. After the last line it returns nil.
func (q *logQueue) next() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.lines) == 0 && q.unreported == 0 && !q.closed {
		q.cond.Wait()
	}
	if len(q.lines) == 0 {
		q.reportDropped()
	}
	if len(q.lines) == 0 {
		return nil
	}
	line := q.lines[0]
	q.lines[0] = nil
	q.lines = q.lines[1:]
	q.size -= len(line)
	return line
}

// write writes the line and reports whether it could. Another process may have made the pipe non-blocking; then
// write tries again while the pipe is full.
func (q *logQueue) write(line []byte) bool {
	for {
		n, err := q.out.Write(line)
		if !errors.Is(err, syscall.EAGAIN) {
			return err == nil
		}
		line = line[n:]
		time.Sleep(writeRetryPause)
	}
}

// missing returns the line that reports lost lines.
func (q *logQueue) missing(lines int) []byte {
	var text bytes.Buffer
	log, _ := newLogger(&text, q.format, "warn") // the format has been checked before
	log.Warn("log lines dropped: the log was not read in time or could not be written", "lines", lines)
	return text.Bytes()
}

// close ends run. It waits until all lines are written, for patience at most.
func (q *logQueue) close(patience time.Duration) {
	q.mu.Lock()
	q.closed = true
	q.cond.Signal()
	q.mu.Unlock()
	select {
	case <-q.done:
	case <-time.After(patience):
	}
}
