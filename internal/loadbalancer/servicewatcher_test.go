package loadbalancer

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/usherproxy/usher/internal/settings"
)

// status answers as an API server that fails.
func status(w http.ResponseWriter, code int, reason string) {
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": %q, "code": %d, "message": "no"}`, reason, code)
}

// When etcd is restored, versions count from a lower number. A watch from a later version then is silent, in the fake as in
// the real API server.
func TestWatchFollowsAServiceAfterARestoreOfEtcd(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(service("true", 0))
	published := a.watchEdge(t, "")
	await(t, published, settings.Strict, "")
	for range 5 {
		a.set(service("false", 1))
	}
	await(t, published, settings.Off, "")
	a.change(func() { a.history, a.cuts = a.history[:1], a.cuts+1 })
	await(t, published, settings.Permissive, "") // a grace period: it was off
	a.set(service("false", 2))
	await(t, published, settings.Off, "")
}

// Before another replica notices that etcd was restored, it may record what it knew.
func TestARecordFromBeforeARestoreOfEtcdDoesNotCount(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	before := serviceState{}.afterRevision(readIntent(service("true", 0)), start)
	before.ResourceVersion = "500"
	a.record = &corev1.ConfigMap{Data: map[string]string{"consul.edge": encodeState(before)}}
	a.record.ResourceVersion = "310"
	a.set(service("false", 1))
	await(t, a.watchEdge(t, "record"), settings.Off, "")
	a.waitRecorded(t, "1")
}

// An answer that does not come is a problem before the request ends, and counts when it comes.
func TestAnAnswerThatIsLateIsAProblem(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(service("true", 0))
	answer := make(chan struct{})
	a.fault = func(_ http.ResponseWriter, _ bool) bool { <-answer; return false }
	published := a.watchEdge(t, "")
	await(t, published, "", "the API server does not answer in time")
	close(answer)
	await(t, published, settings.Strict, "")
}

func TestAServiceThatCanBeReadAndNotWatchedIsFollowed(t *testing.T) {
	t.Parallel()
	a := newAPIServer(t)
	a.set(service("true", 0))
	a.fault = func(w http.ResponseWriter, isWatch bool) bool {
		if isWatch {
			status(w, http.StatusForbidden, "Forbidden")
		}
		return isWatch
	}
	published := a.watchEdge(t, "")
	await(t, published, settings.Strict, "Usher can read this Service and not watch it")
	a.set(service("false", 1))
	await(t, published, settings.Off, "Usher can read this Service and not watch it")
	a.change(func() { a.fault = nil })
	await(t, published, settings.Off, "")
}

// A Service is followed by reads while its watch has no answer, and while each watch ends at once.
func TestAServiceIsFollowedWhileWatchesDoNotLast(t *testing.T) {
	t.Parallel()
	t.Run("no answer", func(t *testing.T) {
		t.Parallel()
		a := newAPIServer(t)
		a.set(service("true", 0))
		published := make(chan struct{})
		a.fault = func(_ http.ResponseWriter, isWatch bool) bool {
			if isWatch {
				<-published
			}
			return isWatch
		}
		defer close(published)
		await(t, a.watchEdge(t, ""), settings.Strict, "")
	})
	t.Run("the end at once", func(t *testing.T) {
		t.Parallel()
		a := newAPIServer(t)
		a.set(service("true", 0))
		a.fault = func(_ http.ResponseWriter, isWatch bool) bool { return isWatch }
		published := a.watchEdge(t, "")
		await(t, published, settings.Strict, "it ends each watch at once")
		a.set(service("false", 1))
		await(t, published, settings.Off, "it ends each watch at once")
		a.change(func() { a.fault = nil })
		await(t, published, settings.Off, "")
	})
}

// Every way in which a watch ends is followed by a read.
func TestAWatchThatEndsIsNoProblem(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w http.ResponseWriter){
		"410 Gone": func(w http.ResponseWriter) {
			fmt.Fprintln(w, `{"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}}`)
		},
		"in mid-body": func(w http.ResponseWriter) { fmt.Fprint(w, `{"type": "MODIFIED", "object": {"kind"`) },
		"garbage":     func(w http.ResponseWriter) { fmt.Fprint(w, `<html>`) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPIServer(t)
			a.set(service("true", 0))
			first := true
			a.fault = func(w http.ResponseWriter, isWatch bool) bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				if !isWatch || !first {
					return false
				}
				first = false
				end(w)
				return true
			}
			published := a.watchEdge(t, "")
			await(t, published, settings.Strict, "")
			a.set(service("false", 1))
			select {
			case b := <-published:
				if len(b.Problems) > 0 || b.ForPort(8080).Mode != settings.Off {
					t.Errorf("after the end of a watch: %+v", b)
				}
			case <-time.After(30 * time.Second):
				t.Error("no change arrived")
			}
		})
	}
}

// TestFaultsOfAnAPIServer lets every request for a Service meet with each fault. The mode stays, one problem says what is
// wrong while it lasts, and the Service is followed afterwards.
func TestFaultsOfAnAPIServer(t *testing.T) {
	t.Parallel()
	text := func(code int, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.WriteHeader(code)
			fmt.Fprint(w, body)
		}
	}
	const anError = "the API server answers with an error: "
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter)
		want   string
	}{
		"500": {text(http.StatusInternalServerError, "oops"), anError},
		"503": {func(w http.ResponseWriter) { status(w, http.StatusServiceUnavailable, "ServiceUnavailable") }, anError},
		"429": {func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "1")
			status(w, http.StatusTooManyRequests, "TooManyRequests")
		}, "the API server has too many requests"},
		"401":              {func(w http.ResponseWriter) { status(w, http.StatusUnauthorized, "Unauthorized") }, "does not accept Usher's credentials"},
		"403":              {text(http.StatusForbidden, "no"), "the API server refuses access"},
		"404":              {text(http.StatusNotFound, "404 page not found"), anError},
		"HTML":             {text(http.StatusOK, "<html>It works!</html>"), anError},
		"null":             {text(http.StatusOK, "null"), anError},
		"[]":               {text(http.StatusOK, "[]"), anError},
		"{}":               {text(http.StatusOK, "{}"), anError},
		"another object":   {text(http.StatusOK, `{"kind": "Pod", "apiVersion": "v1"}`), anError},
		"nothing":          {text(http.StatusOK, ""), anError},
		"half of the JSON": {text(http.StatusOK, `{"kind": "ServiceList", "apiVersion": "v1", "items": [{"metadata": {"na`), anError},
		"cut off": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, `{"kind": "ServiceList"`)
		}, anError},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAPIServer(t)
			a.set(service("true", 0))
			published := a.watchEdge(t, "")
			await(t, published, settings.Strict, "")
			a.change(func() {
				a.cuts++
				a.fault = func(w http.ResponseWriter, _ bool) bool {
					c.answer(w)
					return true
				}
			})
			b := next(t, published)
			if b.ForPort(8080).Mode != settings.Strict || len(b.Problems) != 1 || !strings.Contains(b.Problems[0].What, c.want) {
				t.Fatalf("published is %+v, want a problem with %q", b, c.want)
			}
			a.change(func() { a.fault = nil })
			if b := next(t, published); b.ForPort(8080).Mode != settings.Strict || len(b.Problems) > 0 {
				t.Errorf("after the fault, published is %+v", b)
			}
			a.set(service("false", 1))
			await(t, published, settings.Off, "")
		})
	}
}
