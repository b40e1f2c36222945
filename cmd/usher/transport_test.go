package main

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/usherproxy/usher/xds"
)

// recordingHandshakes have a log that a test can wait for.
type recordingHandshakes struct {
	*xds.Handshakes
	lines logLine
}

// logLine is a writer that passes on each line.
type logLine chan string

func (l logLine) Write(line []byte) (int, error) {
	l <- string(line)
	return len(line), nil
}

func newRecordingHandshakes(t *testing.T) recordingHandshakes {
	t.Helper()
	lines := make(logLine, 10)
	return recordingHandshakes{xds.NewHandshakes(slog.New(slog.NewTextHandler(lines, nil)), nil), lines}
}

// want waits for the next line.
func (r recordingHandshakes) want(t *testing.T, parts ...string) {
	t.Helper()
	line := <-r.lines
	for _, part := range parts {
		if !strings.Contains(line, part) {
			t.Errorf("the log has no %q: %s", part, line)
		}
	}
}
