//go:build e2e

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"sync"
	"testing"

	entryv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	collogsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	logsv1 "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// Collector takes access logs over gRPC: OpenTelemetry's, and Envoy's own.
type Collector struct {
	collogsv1.UnimplementedLogsServiceServer
	accesslogv3.UnimplementedAccessLogServiceServer

	mu       sync.Mutex
	resource map[string]string // of the last records
	records  []*logsv1.LogRecord
	http     []*entryv3.HTTPAccessLogEntry
	tcp      []*entryv3.TCPAccessLogEntry
}

// StartCollector serves at an address of a host until the test ends.
func StartCollector(t *testing.T, h *Host, address string, options ...grpc.ServerOption) *Collector {
	t.Helper()
	c := &Collector{}
	c.Serve(t, h, address, options...)
	return c
}

// Serve takes entries at an address of a host until stop, or the test's end. All
// connections end with it.
func (c *Collector) Serve(t *testing.T, h *Host, address string, options ...grpc.ServerOption) (stop func()) {
	t.Helper()
	server := grpc.NewServer(options...)
	collogsv1.RegisterLogsServiceServer(server, c)
	accesslogv3.RegisterAccessLogServiceServer(server, c)
	listener := h.Listen(t, address)
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(listener) }) // it ends with Stop
	stop = func() {
		server.Stop()
		work.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// Paths are the paths of the requests of all entries so far.
func (c *Collector) Paths() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var paths []string
	for _, record := range c.records {
		paths = append(paths, LogEntry(flatAttributes("", record.Attributes)).Text("path"))
	}
	for _, e := range c.http {
		paths = append(paths, e.GetRequest().GetPath())
	}
	return paths
}

// Export takes OpenTelemetry's records.
func (c *Collector) Export(_ context.Context, in *collogsv1.ExportLogsServiceRequest) (*collogsv1.ExportLogsServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range in.ResourceLogs {
		c.resource = map[string]string{}
		for _, a := range resource.Resource.GetAttributes() {
			c.resource[a.Key] = a.Value.GetStringValue()
		}
		for _, scope := range resource.ScopeLogs {
			c.records = append(c.records, scope.LogRecords...)
		}
	}
	return &collogsv1.ExportLogsServiceResponse{}, nil
}

// StreamAccessLogs takes Envoy's entries.
func (c *Collector) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	for {
		in, err := stream.Recv()
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.http = append(c.http, in.GetHttpLogs().GetLogEntry()...)
		c.tcp = append(c.tcp, in.GetTcpLogs().GetLogEntry()...)
		c.mu.Unlock()
	}
}

// WaitRecord waits for a record of OpenTelemetry's with some attributes, which
// are named by their paths.
func (c *Collector) WaitRecord(t *testing.T, attributes map[string]string) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("the collector has a record with %v", attributes), testprocess.ChangeDeadline, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, record := range c.records {
			if LogEntry(flatAttributes("", record.Attributes)).Matches(attributes) {
				if record.TimeUnixNano == 0 {
					return testprocess.Permanent(fmt.Errorf("the record has no time: %v", record))
				}
				return nil
			}
		}
		return fmt.Errorf("not among %d records", len(c.records))
	})
}

func flatAttributes(prefix string, list []*commonv1.KeyValue) map[string]any {
	out := map[string]any{}
	for _, a := range list {
		if nested := a.Value.GetKvlistValue(); nested != nil {
			maps.Copy(out, flatAttributes(prefix+a.Key+".", nested.Values))
			continue
		}
		out[prefix+a.Key] = a.Value.GetStringValue()
	}
	return out
}

// WaitRequest waits for Envoy's entry of a request, from a client.
func (c *Collector) WaitRequest(t *testing.T, path, client string) *entryv3.HTTPAccessLogEntry {
	t.Helper()
	var found *entryv3.HTTPAccessLogEntry
	testprocess.Eventually(t, "the collector has Envoy's entry of "+path, testprocess.ChangeDeadline, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, e := range c.http {
			if e.GetRequest().GetPath() == path {
				found = e
				return nil
			}
		}
		return fmt.Errorf("not among %d entries", len(c.http))
	})
	if got := found.GetCommonProperties().GetDownstreamRemoteAddress().GetSocketAddress().GetAddress(); got != client {
		t.Errorf("the collector has %s for the client of %s, want %s", got, path, client)
	}
	return found
}

// WaitConnection waits for Envoy's entry of a connection of a client's.
func (c *Collector) WaitConnection(t *testing.T, client netip.AddrPort) {
	t.Helper()
	testprocess.Eventually(t, "the collector has Envoy's entry of the connection of "+client.String(), testprocess.ChangeDeadline, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, e := range c.tcp {
			from := e.GetCommonProperties().GetDownstreamRemoteAddress().GetSocketAddress()
			if from.GetAddress() == client.Addr().String() && from.GetPortValue() == uint32(client.Port()) {
				return nil
			}
		}
		return fmt.Errorf("not among %d entries", len(c.tcp))
	})
}

// OpenAccessLog is an access log in a file.
func OpenAccessLog(name, path string) *AccessLog {
	return &AccessLog{Process: &testprocess.Process{Name: name, Stdout: path}}
}

// Flatten returns an entry's fields by their paths.
func (e LogEntry) Flatten() LogEntry {
	out := LogEntry{}
	for key, value := range e {
		nested, ok := value.(map[string]any)
		if !ok {
			out[key] = value
			continue
		}
		for below, v := range LogEntry(nested).Flatten() {
			out[key+"."+below] = v
		}
	}
	return out
}

// WaitFlat waits for an entry with some fields, by their paths.
func (l *AccessLog) WaitFlat(t *testing.T, fields map[string]string) LogEntry {
	t.Helper()
	var found LogEntry
	testprocess.Eventually(t, fmt.Sprintf("%s has %v", l.Name, fields), testprocess.ChangeDeadline, func() error {
		entries := l.Entries(t)
		for _, entry := range entries {
			if flat := entry.Flatten(); flat.Matches(fields) {
				found = flat
				return nil
			}
		}
		last, _ := json.Marshal(entries[max(0, len(entries)-3):])
		return fmt.Errorf("not among %d entries; the last are %s", len(entries), last)
	})
	return found
}

// Post asks Envoy's admin interface to do something.
func (e *Envoy) Post(t *testing.T, path string) {
	t.Helper()
	response, err := e.client.Post(fmt.Sprintf("http://127.0.0.1:%d%s", e.AdminPort, path), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", path, response.Status)
	}
}
