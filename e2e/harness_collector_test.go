//go:build e2e

package e2e

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

// collector takes access logs over gRPC: OpenTelemetry's, and Envoy's own.
type collector struct {
	collogsv1.UnimplementedLogsServiceServer
	accesslogv3.UnimplementedAccessLogServiceServer

	mu       sync.Mutex
	resource map[string]string // of the last records
	records  []*logsv1.LogRecord
	http     []*entryv3.HTTPAccessLogEntry
	tcp      []*entryv3.TCPAccessLogEntry
}

// startCollector serves at an address of a host until the test ends.
func startCollector(t *testing.T, h *host, address string, options ...grpc.ServerOption) *collector {
	t.Helper()
	c := &collector{}
	c.serve(t, h, address, options...)
	return c
}

// serve takes entries at an address of a host until stop, or the test's end. All
// connections end with it.
func (c *collector) serve(t *testing.T, h *host, address string, options ...grpc.ServerOption) (stop func()) {
	t.Helper()
	server := grpc.NewServer(options...)
	collogsv1.RegisterLogsServiceServer(server, c)
	accesslogv3.RegisterAccessLogServiceServer(server, c)
	listener := h.listen(t, address)
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(listener) }) // it ends with Stop
	stop = func() {
		server.Stop()
		work.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// paths are the paths of the requests of all entries so far.
func (c *collector) paths() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var paths []string
	for _, record := range c.records {
		paths = append(paths, logEntry(flatAttributes("", record.Attributes)).text("path"))
	}
	for _, e := range c.http {
		paths = append(paths, e.GetRequest().GetPath())
	}
	return paths
}

// Export takes OpenTelemetry's records.
func (c *collector) Export(_ context.Context, in *collogsv1.ExportLogsServiceRequest) (*collogsv1.ExportLogsServiceResponse, error) {
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
func (c *collector) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
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

// waitRecord waits for a record of OpenTelemetry's with some attributes, which
// are named by their paths.
func (c *collector) waitRecord(t *testing.T, attributes map[string]string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the collector has a record with %v", attributes), changeDeadline, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, record := range c.records {
			if logEntry(flatAttributes("", record.Attributes)).matches(attributes) {
				if record.TimeUnixNano == 0 {
					return testprocess.Hopeless(fmt.Errorf("the record has no time: %v", record))
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

// waitRequest waits for Envoy's entry of a request, from a client.
func (c *collector) waitRequest(t *testing.T, path, client string) *entryv3.HTTPAccessLogEntry {
	t.Helper()
	var found *entryv3.HTTPAccessLogEntry
	eventually(t, "the collector has Envoy's entry of "+path, changeDeadline, func() error {
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

// waitConnection waits for Envoy's entry of a connection of a client's.
func (c *collector) waitConnection(t *testing.T, client netip.AddrPort) {
	t.Helper()
	eventually(t, "the collector has Envoy's entry of the connection of "+client.String(), changeDeadline, func() error {
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

// jsonFile is an access log in a file, as accessLog is one on standard output.
func jsonFile(name, path string) *accessLog {
	return &accessLog{process: &process{Name: name, Stdout: path}}
}

// flat gives an entry's fields by their paths.
func (e logEntry) flat() logEntry {
	out := logEntry{}
	for key, value := range e {
		nested, ok := value.(map[string]any)
		if !ok {
			out[key] = value
			continue
		}
		for below, v := range logEntry(nested).flat() {
			out[key+"."+below] = v
		}
	}
	return out
}

// waitFlat waits for an entry with some fields, by their paths.
func (l *accessLog) waitFlat(t *testing.T, fields map[string]string) logEntry {
	t.Helper()
	var found logEntry
	eventually(t, fmt.Sprintf("%s has %v", l.Name, fields), changeDeadline, func() error {
		entries := l.entries(t)
		for _, entry := range entries {
			if flat := entry.flat(); flat.matches(fields) {
				found = flat
				return nil
			}
		}
		last, _ := json.Marshal(entries[max(0, len(entries)-3):])
		return fmt.Errorf("not among %d entries; the last are %s", len(entries), last)
	})
	return found
}

// post asks Envoy's admin interface to do something.
func (e *envoy) post(t *testing.T, path string) {
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
