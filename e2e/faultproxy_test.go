//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestFaultProxy wants a client to see each fault, and Consul's own answer
// before and after it.
func TestFaultProxy(t *testing.T) {
	t.Parallel()
	consul := startBlockingServer(t)
	want := map[string]string{
		"500": "500 index=", "503": "503 index=", "429": "429 index=", "403": "403 index=", "404": "404 index=",
		"hang": "no answer", "reset before the answer": "no answer",
		"reset in the body": "200 index=7, cut off", "truncated body": "200 index=7, cut off",
		"half of the JSON": `200 index=7 "[{\"Name\""`, "garbage": `200 index=7 "<html`,
		"null": `200 index=7 "null"`, "[]": `200 index=7 "[]"`, "{}": `200 index=7 "{}"`,
		"[null]": `200 index=7 "[null]"`, "empty body": `200 index=7 ""`,
		"no index": `200 index= "[{`, "index 0": `200 index=0 "[{`, "lower index": `200 index=1 "[{`,
		"same index at once": `200 index=7 "[{`, "no leader": `200 index=7 leader=false "[{`,
		"slow body": "200 index=7, cut off", "endless body": "200 index=7, cut off",
	}
	for _, f := range lab.Faults {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			p := lab.StartFaultProxy(t, listener, consul.URL, http.DefaultTransport)
			web := lab.Query{Name: "web", Path: "/v1/health/connect/web?stale"}
			blocked := make(chan string, 1)
			go func() { blocked <- requestsTo(p, "/v1/health/connect/web?stale&index=7") }()
			testprocess.Eventually(t, "the blocking query is forwarded", testprocess.StartDeadline, func() error {
				p.Mu.Lock()
				defer p.Mu.Unlock()
				if len(p.Waiting) == 0 {
					return errors.New("not yet")
				}
				return nil
			})
			in := p.Inject(web, f)
			if f.Name == "hang" {
				in.Wait(t, 1)
			} else if got := <-blocked; !strings.HasPrefix(got, want[f.Name]) {
				t.Errorf("who waited sees %s, want %s", got, want[f.Name])
			}
			if got := requestsTo(p, "/v1/health/connect/web?stale&index=7"); !strings.HasPrefix(got, want[f.Name]) {
				t.Errorf("who comes sees %s, want %s", got, want[f.Name])
			}
			good := `200 index=7 "[{`
			for _, other := range []string{"/v1/health/connect/web", "/v1/health/connect/other?stale"} {
				if got := requestsTo(p, other); !strings.HasPrefix(got, good) {
					t.Errorf("%s meets with %s", other, got)
				}
			}
			in.Clear()
			count := p.CountGood(web)
			if got := requestsTo(p, "/v1/health/connect/web?stale"); !strings.HasPrefix(got, good) {
				t.Errorf("after it was cleared: %s, want %s", got, good)
			}
			count.Wait(t, 1)
		})
	}
}

// TestFaultProxyEndsAFault wants the end of a fault to reach a client that waits
// with an index of the fault.
func TestFaultProxyEndsAFault(t *testing.T) {
	t.Parallel()
	consul := startBlockingServer(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := lab.StartFaultProxy(t, listener, consul.URL, http.DefaultTransport)
	in := p.Inject(lab.EveryQuery, lab.FaultNamed(t, "[]"))
	if got, want := requestsTo(p, "/v1/catalog/services"), `200 index=7 "[]"`; got != want {
		t.Errorf("with the fault: %s, want %s", got, want)
	}
	in.Clear()
	if got, want := requestsTo(p, "/v1/catalog/services?index=7&wait=1m"), `200 index=7 "[{`; !strings.HasPrefix(got, want) {
		t.Errorf("after it: %s, want %s", got, want)
	}
}

// requestsTo asks, and returns what a client sees within a second, in one line.
func requestsTo(p *lab.FaultProxy, path string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+path, nil)
	if err != nil {
		return err.Error()
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	a, err := client.Do(r)
	if err != nil {
		return "no answer: " + err.Error()
	}
	defer a.Body.Close()
	body, err := io.ReadAll(a.Body)
	text := fmt.Sprintf("%d index=%s", a.StatusCode, a.Header.Get(lab.IndexHeader))
	if leader := a.Header.Get("X-Consul-KnownLeader"); leader != "" {
		text += " leader=" + leader
	}
	if err != nil {
		return text + ", cut off: " + err.Error()
	}
	return fmt.Sprintf("%s %q", text, body)
}

// startBlockingServer answers as Consul does while nothing changes: at once without
// an index, and never with one.
func startBlockingServer(t *testing.T) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("index") {
			<-r.Context().Done()
			return
		}
		w.Header().Set(lab.IndexHeader, "7")
		fmt.Fprint(w, `[{"Name": "web"}]`)
	}))
	t.Cleanup(server.Close)
	return server
}
