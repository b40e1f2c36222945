package consul

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const (
	rootsText = `{"TrustDomain": "x.consul", "Roots": [{"RootCert": "pem"}]}`
	webAt1    = `[{"Node": {"Address": "10.0.0.1"}, "Service": {"Port": 1}}]`
	webAt2    = `[{"Node": {"Address": "10.0.0.1"}, "Service": {"Port": 2}}]`
)

var (
	webServices   = servicesAnswer("web").body
	bothServices  = servicesAnswer("web", "api").body
	servicesQuery = query{queryType: servicesType, name: "gateway"}
	webHealth     = query{queryType: healthType, name: "web"}
)

// stateAt returns a state in which every path has the index.
func stateAt(index uint64, services, health string) map[string]content {
	return map[string]content{
		"/v1/connect/ca/roots":       {index: index, text: rootsText},
		"/v1/config/proxy-defaults":  {index: index, text: "[]"},
		servicesPath:                 {index: index, text: services},
		"/v1/health/connect/web":     {index: index, text: health},
		"/v1/health/connect/another": {index: index, text: health},
	}
}

// overHTTPAndHTTPS runs the test over plain HTTP, where queries block for half a minute, and
// over HTTPS, where they block for ten minutes.
func overHTTPAndHTTPS(t *testing.T, test func(t *testing.T, address string)) {
	t.Helper()
	for _, address := range []string{"http://consul:8500", "https://consul:8501"} {
		t.Run(address, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, address) })
		})
	}
}

// forgetful is a Consul that does not know Usher's token for a while.
type forgetful struct {
	http.RoundTripper
	forgets atomic.Bool
}

// RoundTrip implements http.RoundTripper.
func (f *forgetful) RoundTrip(r *http.Request) (*http.Response, error) {
	if !f.forgets.Load() {
		return f.RoundTripper.RoundTrip(r)
	}
	return &http.Response{StatusCode: http.StatusForbidden, Body: io.NopCloser(strings.NewReader("ACL not found")), Request: r}, nil
}

// Each query waits for up to ten seconds before it is sent again, and the first that is answered ends the waits of the
// others.
func TestATokenThatComesBackIsSeenByAllQueries(t *testing.T) {
	overHTTPAndHTTPS(t, func(t *testing.T, address string) {
		c := newBubbleConsul(stateAt(900, webServices, webAt1))
		client := c.client(t, address, NewMetrics(nil))
		forgetful := &forgetful{RoundTripper: c}
		client.watchHTTP.Transport = forgetful
		w := NewWatcher(client, WatcherOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := subscribeTo(ctx, t, w, servicesQuery, webHealth, query{queryType: rootsType}, partitionQuery(proxyDefaultsType, ""))
		good := func() (n int) {
			for q := range l.watches {
				if r := resultOf(l, q); r.err == nil && r.value != nil {
					n++
				}
			}
			return n
		}
		timeUntil(t, func() bool { return good() == len(l.watches) })
		for range 3 {
			time.Sleep(time.Minute)
			forgetful.forgets.Store(true)
			c.set(true, nil) // ends the queries that wait
			timeUntil(t, func() bool { return good() == 0 })
			time.Sleep(time.Minute)
			forgetful.forgets.Store(false)
			timeUntil(t, func() bool { return good() > 0 })
			if t1 := timeUntil(t, func() bool { return good() == len(l.watches) }); t1 > 300*time.Millisecond {
				t.Errorf("the last query was answered %v after the first", t1)
			}
		}
		l.close()
		cancel()
	})
}

func servicesOf(l *subscription) int {
	r, _ := resultOf(l, servicesQuery).value.(*gatewayServices)
	if r == nil {
		return 0
	}
	return len(r.services)
}

func portOf(l *subscription) int {
	f := resultOf(l, webHealth)
	if f.value == nil {
		return 0
	}
	e := mustEndpoints(f)
	if len(e) == 0 {
		return 0
	}
	return e[0].Port
}

func TestARestoredSnapshotIsSeenWithinSeconds(t *testing.T) {
	overHTTPAndHTTPS(t, func(t *testing.T, address string) {
		c := newBubbleConsul(stateAt(900, webServices, webAt1))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := subscribeTo(ctx, t, NewWatcher(c.client(t, address, nil), WatcherOptions{}), servicesQuery, webHealth)
		timeUntil(t, func() bool { return servicesOf(l) == 1 && portOf(l) == 1 })
		time.Sleep(time.Second) // all of them block

		c.set(true, stateAt(100, bothServices, webAt2))
		if t1 := timeUntil(t, func() bool { return servicesOf(l) == 2 && portOf(l) == 2 }); t1 > 15*time.Second {
			t.Errorf("the restored state was seen after %v, want at most 15 s", t1)
		}

		// Usher sees a later change at once.
		c.set(false, stateAt(101, webServices, webAt1))
		if t1 := timeUntil(t, func() bool { return servicesOf(l) == 1 && portOf(l) == 1 }); t1 > 12*time.Second {
			t.Errorf("the change after it was seen after %v", t1)
		}
		l.close()
		cancel()
	})
}

func TestARightGivenBackIsSeenWithinSeconds(t *testing.T) {
	overHTTPAndHTTPS(t, func(t *testing.T, address string) {
		state := stateAt(900, bothServices, webAt1)
		state[servicesPath] = content{index: 900, text: bothServices, hidden: webServices}
		c := newBubbleConsul(state)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := subscribeTo(ctx, t, NewWatcher(c.client(t, address, nil), WatcherOptions{}), servicesQuery)
		timeUntil(t, func() bool { return servicesOf(l) == 1 })
		time.Sleep(time.Minute)
		before := c.count(servicesPath)
		time.Sleep(time.Minute)
		if asked := c.count(servicesPath) - before; asked < 6 || asked > 16 {
			t.Errorf("it was asked %d times a minute, want once about every ten seconds, and a query that blocks in between", asked)
		}

		c.set(false, map[string]content{servicesPath: {index: 900, text: bothServices}})
		if t1 := timeUntil(t, func() bool { return servicesOf(l) == 2 }); t1 > 15*time.Second {
			t.Errorf("the right was seen after %v, want at most 15 s", t1)
		}
		before = c.count(servicesPath)
		time.Sleep(time.Minute)
		if asked := c.count(servicesPath) - before; asked > 4 {
			t.Errorf("afterwards it was asked %d times a minute: nothing is hidden any more", asked)
		}
		l.close()
		cancel()
	})
}

// TestAFilteredStreamIsAskedForAgain hides an instance by ACLs. The streaming backend
// does not report that.
func TestAFilteredStreamIsAskedForAgain(t *testing.T) {
	overHTTPAndHTTPS(t, func(t *testing.T, address string) {
		state := stateAt(900, webServices, webAt2)
		state["/v1/health/connect/web"] = content{index: 900, text: webAt2, hidden: webAt1}
		c := newBubbleConsul(state)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := subscribeTo(ctx, t, NewWatcher(c.client(t, address, nil), WatcherOptions{}), webHealth)
		timeUntil(t, func() bool { return portOf(l) == 1 })
		time.Sleep(time.Hour)
		c.set(false, map[string]content{"/v1/health/connect/web": {index: 900, text: webAt2}})
		if t1 := timeUntil(t, func() bool { return portOf(l) == 2 }); t1 > 15*time.Second {
			t.Errorf("the right was seen after %v, want at most 15 s", t1)
		}
		l.close()
		cancel()
	})
}

// TestThousandsOfFilteredAnswersAreNoStorm hides an instance of each of thousands of
// services by ACLs, and then none.
func TestThousandsOfFilteredAnswersAreNoStorm(t *testing.T) {
	const services = 3000
	synctest.Test(t, func(t *testing.T) {
		state := stateAt(900, webServices, webAt1)
		queries := make([]query, services)
		for i := range queries {
			queries[i] = query{queryType: healthType, name: fmt.Sprint(i)}
			state["/v1/health/connect/"+queries[i].name] = content{index: 900, text: webAt2, hidden: webAt1}
		}
		c := newBubbleConsul(state)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := subscribeTo(ctx, t, NewWatcher(c.client(t, "https://consul:8501", nil), WatcherOptions{}), queries...)
		shown := func(port int) bool {
			for _, q := range queries {
				if f := resultOf(l, q); f.value == nil || mustEndpoints(f)[0].Port != port {
					return false
				}
			}
			return true
		}
		timeUntil(t, func() bool { return shown(1) })
		time.Sleep(time.Minute)
		before := c.total()
		time.Sleep(time.Minute)
		// Each refresh is a non-blocking query and a blocking one.
		if rate := (c.total() - before) / 60; rate > 3*maxFilteredQueries/10 {
			t.Errorf("Consul is asked %d questions a second", rate)
		}
		all := map[string]content{}
		for _, q := range queries {
			all["/v1/health/connect/"+q.name] = content{index: 900, text: webAt2}
		}
		c.set(false, all)
		if t1 := timeUntil(t, func() bool { return shown(2) }); t1 > 15*time.Second {
			t.Errorf("the rights were seen after %v, want at most 15 s", t1)
		}
		l.close()
		cancel()
	})
}

// TestAnIdleWatcherReadsNothingAgain checks that an idle watcher sends only the
// queries of its watchdog and blocking queries.
func TestAnIdleWatcherReadsNothingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newBubbleConsul(stateAt(900, webServices, webAt1))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := subscribeTo(ctx, t, NewWatcher(c.client(t, "https://consul:8501", nil), WatcherOptions{}), servicesQuery, webHealth)
		time.Sleep(time.Hour)
		for path, most := range map[string]int{servicesPath: 14, "/v1/health/connect/web": 14, "/v1/connect/ca/roots": 915} {
			if n := c.count(path); n > most {
				t.Errorf("%s was asked for %d times in an hour, want at most %d", path, n, most)
			}
		}
		l.close()
		cancel()
	})
}
