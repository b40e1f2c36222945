package consul

import (
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// endless is a server that never stops sending, and counts the bytes.
type endless struct{ sent atomic.Int64 }

// ServeHTTP implements http.Handler.
func (e *endless) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("X-Consul-Index", "1")
	chunk := make([]byte, 256<<10)
	for {
		n, err := w.Write(chunk)
		e.sent.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func TestAnEndlessAnswerIsCutOff(t *testing.T) {
	e := &endless{}
	server := httptest.NewServer(e)
	defer server.Close()
	c := newTestClient(t, Config{HTTPAddr: server.URL})
	for _, index := range []uint64{0, 7} {
		_, err := c.query(t.Context(), query{queryType: meshType}, index, plainWait)
		if outcomeOf(err) != outcomeFailed || !strings.Contains(err.Error(), "larger than 64 MiB") {
			t.Errorf("%v, want that the answer is too large", err)
		}
	}
	if sent := e.sent.Load(); sent > 2*(maxBody+16<<20) {
		t.Errorf("%d MiB were sent for two questions", sent>>20)
	}
}

// TestEndlessAnswersShareABound sends many queries at once.
func TestEndlessAnswersShareABound(t *testing.T) {
	server := httptest.NewServer(&endless{})
	defer server.Close()
	c := newTestClient(t, Config{HTTPAddr: server.URL})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var wait sync.WaitGroup
	for range 40 {
		wait.Go(func() {
			if _, err := c.query(t.Context(), query{queryType: meshType}, 7, plainWait); outcomeOf(err) != outcomeFailed {
				t.Errorf("%v, want that the answer is too large, or that there are too many", err)
			}
		})
	}
	wait.Wait()
	if n := c.reading.Load(); n != 0 {
		t.Errorf("%d bytes are counted as being read at the end", n)
	}
	runtime.ReadMemStats(&after)
	if grown := (after.Sys - before.Sys) >> 20; grown > 512 {
		t.Errorf("memory has grown by %d MiB", grown)
	}
}

func TestALargeAnswerIsReadWhole(t *testing.T) {
	for _, size := range []int{0, 1, 4 << 10, 4<<10 + 1, 1 << 20, maxBody} {
		c := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(make([]byte, size)) // the client may have gone
		})
		a, err := c.query(t.Context(), query{queryType: meshType}, 0, plainWait)
		if err != nil || len(a.body) != size {
			t.Errorf("%d bytes of %d, %v", len(a.body), size, err)
		}
	}
}

func TestHugeHeadersAreRefused(t *testing.T) {
	c := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Large", strings.Repeat("x", 1<<20))
	})
	if err := askMesh(t, c); outcomeOf(err) != outcomeUnreachable {
		t.Errorf("%v, want an error", err)
	}
}

func TestALongWordOfThePeerIsCut(t *testing.T) {
	err := signError(status.Error(codes.Internal, strings.Repeat("x", 10000)+"token"), "x", "")
	if n := len(err.Error()); n > 1000 {
		t.Errorf("the error has %d bytes", n)
	}
	if err := signError(status.Error(codes.Internal, strings.Repeat("x", maxQuoted-3)+"token"), "x", "token"); strings.Contains(err.Error(), "xtok") {
		t.Errorf("the error shows some of the token: %v", err)
	}
}
