package main

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxQueued is how many bytes of log wait in memory at most.
	maxLogQueue = 4 << 20
	// lastFlush is how long the process waits for the log's reader before it ends.
	logFlushTimeout = time.Second
	// writeAgain is the pause before another write to a full non-blocking pipe.
	writeRetryPause = 10 * time.Millisecond
)

// logQueue is a writer for lines of log that never blocks: a pipe whose reader has
// stopped must not stop the streams of Envoys. It keeps the lines in memory, and
// only the goroutine of run writes them to the log. When the memory is full, it
// drops lines, counts them, and writes in their place how many are missing. Use
// newLogQueue.
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
			Help: "Lines of log that are lost: nothing read the log in time, or it could not be written.",
		}),
	}
	q.cond.L = &q.mu
	metrics.MustRegister(q.dropped)
	return q
}

// Write takes one line. After it has dropped one, it drops all until half of the
// queue is written. So the missing lines are adjacent.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.size+len(line) > q.limit || q.unreported > 0 && q.size > q.limit/2 {
		q.unreported++
		q.dropped.Inc()
		return len(line), nil
	}
	if q.unreported > 0 {
		q.push(q.missing(q.unreported))
		q.unreported = 0
	}
	q.push(bytes.Clone(line))
	return len(line), nil
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
	if len(q.lines) > 0 {
		line := q.lines[0]
		q.lines[0] = nil
		q.lines = q.lines[1:]
		q.size -= len(line)
		return line
	}
	if q.unreported > 0 {
		line := q.missing(q.unreported)
		q.unreported = 0
		return line
	}
	return nil
}

// write writes the line and reports whether it could. Another process may have made
// the pipe non-blocking; then write tries again while the pipe is full.
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
	log.Warn("lines of log are missing here: the log was not read in time, or could not be written", "lines", lines)
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
