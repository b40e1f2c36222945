//go:build e2e

package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// AccessLog is the JSON access log that an Envoy writes to its standard output.
type AccessLog struct{ *testprocess.Process }

// LogEntry is one line of it.
type LogEntry map[string]any

// Text is a field's value; "" when the field is missing or null.
func (e LogEntry) Text(field string) string {
	value, ok := e[field]
	if !ok || value == nil {
		return ""
	}
	return fmt.Sprint(value)
}

// IP is the address in a field of the form address:port.
func (e LogEntry) IP(t *testing.T, field string) string {
	t.Helper()
	address, err := netip.ParseAddrPort(e.Text(field))
	if err != nil {
		t.Fatalf("access log field %s: %v; the entry is %v", field, err, e)
	}
	return address.Addr().String()
}

// Entries are the lines so far. Other output between them is left out.
func (l *AccessLog) Entries(t *testing.T) []LogEntry {
	t.Helper()
	var entries []LogEntry
	for line := range strings.Lines(testprocess.ReadFile(t, l.Stdout)) {
		var entry LogEntry
		if json.Unmarshal([]byte(line), &entry) == nil {
			entries = append(entries, entry)
		}
	}
	return entries
}

// Wait waits for an entry whose fields have the values, and returns the first.
func (l *AccessLog) Wait(t *testing.T, fields map[string]string) LogEntry {
	t.Helper()
	var found LogEntry
	what := fmt.Sprintf("the access log of %s has %q", l.Name, fields)
	testprocess.Eventually(t, what, testprocess.ChangeDeadline, func() error {
		entries := l.Entries(t)
		for _, entry := range entries {
			if entry.Matches(fields) {
				found = entry
				return nil
			}
		}
		return fmt.Errorf("not among its %d entries", len(entries))
	})
	return found
}

// WaitRequest waits for the entry of the request for a path.
func (l *AccessLog) WaitRequest(t *testing.T, path string) LogEntry {
	t.Helper()
	return l.Wait(t, map[string]string{"path": path})
}

// Matches reports whether the fields have the values.
func (e LogEntry) Matches(fields map[string]string) bool {
	for field, want := range fields {
		if e.Text(field) != want {
			return false
		}
	}
	return true
}
