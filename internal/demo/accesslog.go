package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// logEntry is what the demo reads in a line of the gateway's access log. The
// addresses are ip:port; "" means that the line does not have the field.
type logEntry struct {
	remote string // downstream_remote_address: who Envoy takes for the client
	direct string // downstream_direct_remote_address: who connected to Envoy
	code   int    // response_code
}

// parseLogEntry reads a line in Consul's default JSON format.
func parseLogEntry(line string) (logEntry, error) {
	var fields struct {
		Remote *string `json:"downstream_remote_address"`
		Direct *string `json:"downstream_direct_remote_address"`
		Code   *int    `json:"response_code"`
	}
	if err := json.Unmarshal([]byte(line), &fields); err != nil {
		return logEntry{}, fmt.Errorf("access log line %q: %w", line, err)
	}
	if fields.Remote == nil || fields.Code == nil {
		return logEntry{}, fmt.Errorf("access log line %q: no downstream_remote_address or response_code", line)
	}
	e := logEntry{remote: *fields.Remote, code: *fields.Code}
	if fields.Direct != nil {
		e.direct = *fields.Direct
	}
	return e, nil
}

// lineWriter gives each complete line that is written to it to put. One
// goroutine writes at a time.
type lineWriter struct {
	put  func(line string)
	part []byte
}

// Write takes everything and never fails.
func (w *lineWriter) Write(b []byte) (int, error) {
	w.part = append(w.part, b...)
	for {
		line, rest, found := bytes.Cut(w.part, []byte("\n"))
		if !found {
			return len(b), nil
		}
		w.part = rest
		w.put(string(line))
	}
}
