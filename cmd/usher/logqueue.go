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
	maxQueued = 4 << 20
	// lastFlush is how long the process waits for the log's reader before it ends.
	lastFlush = time.Second
	// writeAgain is the pause before another write to a full non-blocking pipe.
	writeAgain = 10 * time.Millisecond
)

// logQueue is a writer for lines of log that never blocks: a pipe whose reader has
// stopped must not stop the streams of Envoys. It keeps the lines in memory, and
// only the goroutine of run writes them to the log. When the memory is full, it
// drops lines, counts them, and writes in their place how many are missing. Use
// newLogQueue.
type logQueue struct {
	to      io.Writer
	limit   int // bytes
	format  string
	dropped prometheus.Counter

	mu    sync.Mutex
	work  sync.Cond // signals that a field below has changed
	lines [][]byte
	size  int // of lines, in bytes
	lost  int // dropped lines that no line reports yet
	ended bool

	failed int           // lines whose write failed and that no line reports yet; only run uses it
	done   chan struct{} // closed when run has returned
}

// newLogQueue returns a queue in front of a log. format is one of newLogger.
func newLogQueue(to io.Writer, format string, metrics prometheus.Registerer) *logQueue {
	q := &logQueue{
		to: to, limit: maxQueued, format: format, done: make(chan struct{}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "usher_log_lines_dropped_total",
			Help: "Lines of log that are lost: nothing read the log in time, or it could not be written.",
		}),
	}
	q.work.L = &q.mu
	metrics.MustRegister(q.dropped)
	return q
}

// Write takes one line. After it has dropped one, it drops all until half of the
// queue is written. So the missing lines are adjacent.
func (q *logQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended || q.size+len(line) > q.limit || q.lost > 0 && q.size > q.limit/2 {
		q.lost++
		q.dropped.Inc()
		return len(line), nil
	}
	if q.lost > 0 {
		q.push(q.missing(q.lost))
		q.lost = 0
	}
	q.push(bytes.Clone(line))
	return len(line), nil
}

func (q *logQueue) push(line []byte) {
	q.lines = append(q.lines, line)
	q.size += len(line)
	q.work.Signal()
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
	for len(q.lines) == 0 && q.lost == 0 && !q.ended {
		q.work.Wait()
	}
	if len(q.lines) > 0 {
		line := q.lines[0]
		q.lines[0] = nil
		q.lines = q.lines[1:]
		q.size -= len(line)
		return line
	}
	if q.lost > 0 {
		line := q.missing(q.lost)
		q.lost = 0
		return line
	}
	return nil
}

// write writes the line and reports whether it could. Another process may have made
// the pipe non-blocking; then write tries again while the pipe is full.
func (q *logQueue) write(line []byte) bool {
	for {
		n, err := q.to.Write(line)
		if !errors.Is(err, syscall.EAGAIN) {
			return err == nil
		}
		line = line[n:]
		time.Sleep(writeAgain)
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
	q.ended = true
	q.work.Signal()
	q.mu.Unlock()
	select {
	case <-q.done:
	case <-time.After(patience):
	}
}
