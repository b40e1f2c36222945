//go:build e2e

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestLoadPrintsEveryRequestThatFails shows that lab.Load finds failures.
func TestLoadPrintsEveryRequestThatFails(t *testing.T) {
	t.Parallel()
	l := lab.NewNetwork(t)
	for _, tc := range []struct {
		name string
		fail func(conn net.Conn) // what happens to every tenth request
		want string
	}{
		{"status", func(conn net.Conn) {
			fmt.Fprint(conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy")
		}, "status 503: busy"},
		{"closed without an answer", func(conn net.Conn) { conn.Close() }, "wait for the answer"},
		{"closed within the answer", func(conn net.Conn) {
			fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
			conn.Close()
		}, "read the answer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var requests, failed atomic.Int64
			address := serveRaw(t, l.Service, func(conn net.Conn) {
				if requests.Add(1)%10 == 0 {
					failed.Add(1)
					tc.fail(conn)
					return
				}
				fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")
			})
			load := lab.StartLoad(t, lab.Request{From: l.Client, To: address})
			testprocess.Eventually(t, "200 requests", testprocess.ChangeDeadline, func() error {
				if n := requests.Load(); n < 200 {
					return fmt.Errorf("%d so far", n)
				}
				return nil
			})
			load.Stop()
			if got, want := int64(len(load.Failures)), failed.Load(); got != want {
				t.Errorf("the load has %d failures, want %d", got, want)
			}
			var kept int
			for _, failure := range load.Failures {
				if !strings.Contains(failure.Cause, tc.want) {
					t.Errorf("failure %v, want %q", failure, tc.want)
				}
				if failure.Kept {
					kept++
				}
			}
			if kept == 0 || kept == len(load.Failures) {
				t.Errorf("%d of %d failures are on kept connections, want some on each kind", kept, len(load.Failures))
			}
		})
	}
}

// serveRaw answers every request on a host with f, which writes the answer or
// closes the connection.
func serveRaw(t *testing.T, h *lab.Host, f func(net.Conn)) string {
	t.Helper()
	listener := h.Listen(t, h.Addr(0))
	lab.ServeTCP(t, listener, func(conn net.Conn) {
		reader := bufio.NewReader(conn)
		for {
			if _, err := http.ReadRequest(reader); err != nil {
				return
			}
			f(conn)
		}
	})
	return listener.Addr().String()
}
