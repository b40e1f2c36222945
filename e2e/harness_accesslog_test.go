//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// accessLog is the JSON access log that an Envoy writes to its standard output.
type accessLog struct{ *process }

// logEntry is one line of it.
type logEntry map[string]any

// text is a field's value; "" when the field is missing or null.
func (e logEntry) text(field string) string {
	value, ok := e[field]
	if !ok || value == nil {
		return ""
	}
	return fmt.Sprint(value)
}

// ip is the address in a field of the form address:port.
func (e logEntry) ip(t *testing.T, field string) string {
	t.Helper()
	address, err := netip.ParseAddrPort(e.text(field))
	if err != nil {
		t.Fatalf("access log field %s: %v; the entry is %v", field, err, e)
	}
	return address.Addr().String()
}

// entries are the lines so far. Other output between them is left out.
func (l *accessLog) entries(t *testing.T) []logEntry {
	t.Helper()
	var entries []logEntry
	for line := range strings.Lines(readFile(t, l.Stdout)) {
		var entry logEntry
		if json.Unmarshal([]byte(line), &entry) == nil {
			entries = append(entries, entry)
		}
	}
	return entries
}

// wait waits for an entry whose fields have the values, and gives the first.
func (l *accessLog) wait(t *testing.T, fields map[string]string) logEntry {
	t.Helper()
	var found logEntry
	what := "access log of " + l.Name + " has"
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		what += fmt.Sprintf(" %s=%q", field, fields[field])
	}
	eventually(t, what, changeDeadline, func() error {
		entries := l.entries(t)
		for _, entry := range entries {
			if entry.matches(fields) {
				found = entry
				return nil
			}
		}
		return fmt.Errorf("not among its %d entries", len(entries))
	})
	return found
}

// request waits for the entry of the request for a path.
func (l *accessLog) request(t *testing.T, path string) logEntry {
	t.Helper()
	return l.wait(t, map[string]string{"path": path})
}

func (e logEntry) matches(fields map[string]string) bool {
	for field, want := range fields {
		if e.text(field) != want {
			return false
		}
	}
	return true
}
