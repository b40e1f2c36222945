package evidence

import (
	"sync/atomic"

	logsv1 "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Receiver takes the reports of Envoys. The methods may be called from any goroutine.
type Receiver struct {
	key   atomic.Pointer[Key]
	store *Store
}

// NewReceiver returns a receiver that adds the connections in reports with the key's signature to a store. With the zero
// Key, it refuses all reports.
func NewReceiver(key Key, store *Store) *Receiver {
	r := &Receiver{store: store}
	r.SetKey(key)
	return r
}

// SetKey replaces the key.
func (r *Receiver) SetKey(key Key) { r.key.Store(&key) }

// Authenticate returns how to receive the report that a call's metadata belongs to, and the proof in the metadata that
// the sender has the configuration of the listener. The errors are gRPC statuses: what a stranger reports is not read.
func (r *Receiver) Authenticate(md metadata.MD) (receive func(message []byte) error, proof string, err error) {
	first := func(key string) string {
		if values := md.Get(key); len(values) == 1 {
			return values[0]
		}
		return ""
	}
	proof = first(SignatureKey)
	l, err := r.key.Load().verify(first(ListenerKey), proof)
	if err != nil {
		return nil, "", status.Error(codes.Unauthenticated, err.Error())
	}
	return func(message []byte) error { return r.add(l, message) }, proof, nil
}

// maxReport bounds a report, in bytes. Envoy sends 16 KiB and one entry.
const maxReport = 64 << 10

// add adds the connections in an encoded report to the store. The error is a gRPC status.
func (r *Receiver) add(l Listener, message []byte) error {
	if len(message) > maxReport {
		return status.Errorf(codes.InvalidArgument, "a report has at most %d bytes, and this one has %d", maxReport, len(message))
	}
	var request logsv1.ExportLogsServiceRequest
	if err := proto.Unmarshal(message, &request); err != nil {
		return status.Error(codes.InvalidArgument, "the report is no ExportLogsServiceRequest")
	}
	var connections []connection
	for _, resource := range request.ResourceLogs {
		for _, scope := range resource.ScopeLogs {
			for _, record := range scope.LogRecords {
				if c, ok := parseConnection(l, record.GetBody().GetStringValue()); ok {
					connections = append(connections, c)
				}
			}
		}
	}
	r.store.add(l, connections)
	return nil
}
