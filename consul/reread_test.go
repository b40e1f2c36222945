package consul

import (
	"context"
	"fmt"
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
	webRows   = rowsOf("web").body
	bothRows  = rowsOf("web", "api").body
	rowsQuery = query{kind: rowsKind, name: "gateway"}
	webHealth = query{kind: healthKind, name: "web"}
)

// stateAt returns a state in which every path has the index, and the gateway has the
// rows.
func stateAt(index uint64, rows, health string) map[string]held {
	return map[string]held{
		"/v1/connect/ca/roots":       {index: index, text: rootsText},
		"/v1/config/proxy-defaults":  {index: index, text: "[]"},
		rowsPath:                     {index: index, text: rows},
		"/v1/health/connect/web":     {index: index, text: health},
		"/v1/health/connect/another": {index: index, text: health},
	}
}

// bothWays runs the test over plain HTTP, where queries block for half a minute, and
// over HTTPS, where they block for ten minutes.
func bothWays(t *testing.T, test func(t *testing.T, address string)) {
	t.Helper()
	for _, address := range []string{"http://consul:8500", "https://consul:8501"} {
		t.Run(address, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, address) })
		})
	}
}

func servicesOf(l *lease) int {
	r, _ := read[rows](l, rowsQuery)
	if r == nil {
		return 0
	}
	return len(r.services)
}

func portOf(l *lease) int {
	f := l.need(webHealth)
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
	bothWays(t, func(t *testing.T, address string) {
		c := newBubbleConsul(stateAt(900, webRows, webAt1))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := needing(ctx, t, NewWatcher(c.client(t, address, nil), WatcherOptions{}), rowsQuery, webHealth)
		took(t, func() bool { return servicesOf(l) == 1 && portOf(l) == 1 })
		time.Sleep(time.Second) // all of them block

		c.set(true, stateAt(100, bothRows, webAt2))
		if t1 := took(t, func() bool { return servicesOf(l) == 2 && portOf(l) == 2 }); t1 > 15*time.Second {
			t.Errorf("the restored state was seen after %v, want at most 15 s", t1)
		}

		// Usher sees a later change at once.
		c.set(false, stateAt(101, webRows, webAt1))
		if t1 := took(t, func() bool { return servicesOf(l) == 1 && portOf(l) == 1 }); t1 > 12*time.Second {
			t.Errorf("the change after it was seen after %v", t1)
		}
		l.close()
		cancel()
	})
}

func TestARightGivenBackIsSeenWithinSeconds(t *testing.T) {
	bothWays(t, func(t *testing.T, address string) {
		state := stateAt(900, bothRows, webAt1)
		state[rowsPath] = held{index: 900, text: bothRows, hidden: webRows}
		c := newBubbleConsul(state)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := needing(ctx, t, NewWatcher(c.client(t, address, nil), WatcherOptions{}), rowsQuery)
		took(t, func() bool { return servicesOf(l) == 1 })
		time.Sleep(time.Minute)
		before := c.count(rowsPath)
		time.Sleep(time.Minute)
		if asked := c.count(rowsPath) - before; asked < 6 || asked > 16 {
			t.Errorf("it was asked %d times a minute, want once about every ten seconds, and a query that blocks in between", asked)
		}

		c.set(false, map[string]held{rowsPath: {index: 900, text: bothRows}})
		if t1 := took(t, func() bool { return servicesOf(l) == 2 }); t1 > 15*time.Second {
			t.Errorf("the right was seen after %v, want at most 15 s", t1)
		}
		before = c.count(rowsPath)
		time.Sleep(time.Minute)
		if asked := c.count(rowsPath) - before; asked > 4 {
			t.Errorf("afterwards it was asked %d times a minute: nothing is hidden any more", asked)
		}
		l.close()
		cancel()
	})
}

// TestAFilteredStreamIsAskedForAgain hides an instance by ACLs. The streaming backend
// does not report that.
func TestAFilteredStreamIsAskedForAgain(t *testing.T) {
	bothWays(t, func(t *testing.T, address string) {
		state := stateAt(900, webRows, webAt2)
		state["/v1/health/connect/web"] = held{index: 900, text: webAt2, hidden: webAt1}
		c := newBubbleConsul(state)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := needing(ctx, t, NewWatcher(c.client(t, address, nil), WatcherOptions{}), webHealth)
		took(t, func() bool { return portOf(l) == 1 })
		time.Sleep(time.Hour)
		c.set(false, map[string]held{"/v1/health/connect/web": {index: 900, text: webAt2}})
		if t1 := took(t, func() bool { return portOf(l) == 2 }); t1 > 15*time.Second {
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
		state := stateAt(900, webRows, webAt1)
		queries := make([]query, services)
		for i := range queries {
			queries[i] = query{kind: healthKind, name: fmt.Sprint(i)}
			state["/v1/health/connect/"+queries[i].name] = held{index: 900, text: webAt2, hidden: webAt1}
		}
		c := newBubbleConsul(state)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := needing(ctx, t, NewWatcher(c.client(t, "https://consul:8501", nil), WatcherOptions{}), queries...)
		shown := func(port int) bool {
			for _, q := range queries {
				if f := l.need(q); f.value == nil || mustEndpoints(f)[0].Port != port {
					return false
				}
			}
			return true
		}
		took(t, func() bool { return shown(1) })
		time.Sleep(time.Minute)
		before := c.total()
		time.Sleep(time.Minute)
		// Each refresh is a non-blocking query and a blocking one.
		if rate := (c.total() - before) / 60; rate > 3*filteredMost/10 {
			t.Errorf("Consul is asked %d questions a second", rate)
		}
		all := map[string]held{}
		for _, q := range queries {
			all["/v1/health/connect/"+q.name] = held{index: 900, text: webAt2}
		}
		c.set(false, all)
		if t1 := took(t, func() bool { return shown(2) }); t1 > 15*time.Second {
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
		c := newBubbleConsul(stateAt(900, webRows, webAt1))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		l := needing(ctx, t, NewWatcher(c.client(t, "https://consul:8501", nil), WatcherOptions{}), rowsQuery, webHealth)
		time.Sleep(time.Hour)
		for path, most := range map[string]int{rowsPath: 14, "/v1/health/connect/web": 14, "/v1/connect/ca/roots": 915} {
			if n := c.count(path); n > most {
				t.Errorf("%s was asked for %d times in an hour, want at most %d", path, n, most)
			}
		}
		l.close()
		cancel()
	})
}
