//go:build e2e

package e2e

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestAClockThatDiffersFromConsuls lets the clock of a real Consul seem two hours
// ahead, and then right again.
func TestAClockThatDiffersFromConsuls(t *testing.T) {
	t.Parallel()
	n := lab.NewNetwork(t)
	consul := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: n.Gateway})
	target, err := url.Parse(consul.HTTPAddr)
	if err != nil {
		t.Fatal(err)
	}
	var ahead atomic.Int64
	ahead.Store(int64(2 * time.Hour))
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = &http.Transport{DialContext: n.Gateway.Dial}
	proxy.ModifyResponse = func(r *http.Response) error {
		r.Header.Set("Date", time.Now().Add(time.Duration(ahead.Load())).UTC().Format(http.TimeFormat))
		return nil
	}
	listener := n.Gateway.Listen(t, "127.0.0.1:0")
	server := &http.Server{Handler: proxy}
	var work sync.WaitGroup
	work.Go(func() { _ = server.Serve(listener) }) // ends with the test
	t.Cleanup(func() {
		_ = server.Close()
		work.Wait()
	})
	u := lab.StartUsher(t, lab.UsherOptions{Host: n.Gateway, Env: []string{"CONSUL_HTTP_ADDR=http://" + listener.Addr().String()}})

	const problem = "the clock of this machine: it is 2h0m0s behind the clock of the Consul agent"
	u.WaitProblem(t, testprocess.StartDeadline, problem)
	ahead.Store(0)
	u.WaitNoProblem(t, testprocess.StartDeadline, "clock")
}
