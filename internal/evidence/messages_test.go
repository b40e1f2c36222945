package evidence

import (
	"testing"

	"google.golang.org/grpc/status"

	"github.com/usherproxy/usher/internal/testing/messages"
)

// TestMessages provokes what Envoys get as the answer to a report.
func TestMessages(t *testing.T) {
	t.Parallel()
	key := NewKey([]byte("a secret of all replicas"))
	receiver := NewReceiver(key, NewStore(nil))
	_, _, err := receiver.Authenticate(nil)
	_, _, without := NewReceiver(Key{}, NewStore(nil)).Authenticate(nil)
	lines := []string{status.Convert(err).Message(), status.Convert(without).Message()}
	receive, _, err := receiver.Authenticate(metadataOf(t, key, edge))
	if err != nil {
		t.Fatal(err)
	}
	lines = append(lines,
		status.Convert(receive(make([]byte, maxReport+1))).Message(),
		status.Convert(receive([]byte("\xff\xff"))).Message())
	messages.Check(t, lines, "errors.New", "status.Errorf", "status.Error")
}
