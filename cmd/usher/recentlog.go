package main

import (
	"bytes"
	"slices"
	"sync"
)

const (
	// maxRecentLines is how many of the last log lines Usher keeps in memory.
	maxRecentLines = 1000
	// maxRecentSize is how many bytes these have together at most.
	maxRecentSize = 1 << 20
	// maxRecentLine is how many bytes of a line are kept.
	maxRecentLine = 8 << 10
)

// recentLog is a writer for log lines that keeps the last ones. The zero value is empty and ready.
type recentLog struct {
	mu    sync.Mutex
	lines [][]byte
	size  int // of lines, in bytes
}

// Write takes one line.
func (l *recentLog) Write(line []byte) (int, error) {
	kept := bytes.Clone(line)
	if len(kept) > maxRecentLine {
		kept = append(kept[:maxRecentLine], " (cut)\n"...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, kept)
	l.size += len(kept)
	for len(l.lines) > maxRecentLines || l.size > maxRecentSize {
		l.size -= len(l.lines[0])
		l.lines[0] = nil
		l.lines = l.lines[1:]
	}
	return len(line), nil
}

// all returns the lines, the oldest one first. The caller must not change them.
func (l *recentLog) all() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}
