package adminport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/usherproxy/usher/internal/testing/messages"
)

// start serves pages, and one that wants POST. It returns the address.
func start(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /json", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, `{"query": %q}`, r.URL.RawQuery) })
	mux.HandleFunc("GET /broken", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{") })
	mux.HandleFunc("GET /unready", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "not ready: REASON\nmore", http.StatusServiceUnavailable)
	})
	mux.HandleFunc("GET /html", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprint(w, "<html>")
	})
	mux.HandleFunc("GET /half", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "9")
		fmt.Fprint(w, "half")
	})
	mux.HandleFunc("GET /abort", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	mux.HandleFunc("GET /silent", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("POST /quit", func(http.ResponseWriter, *http.Request) {})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func TestAnswers(t *testing.T) {
	address := start(t)
	for _, base := range []string{address, "http://" + address, "http://user:secret@" + address + "/"} {
		c := New(base, Envoy)
		var answer struct{ Query string }
		if err := c.GetJSON(t.Context(), "/json?a=b", &answer); err != nil || answer.Query != "a=b" {
			t.Errorf("%s: got %q, error %v", base, answer.Query, err)
		}
		if err := c.Post(t.Context(), "/quit"); err != nil {
			t.Errorf("%s: POST: %v", base, err)
		}
		if got, want := c.String(), "http://"+address; got != want {
			t.Errorf("its name is %s, want %s", got, want)
		}
	}
}

func TestAnAnswerWithAnotherStatusCanBeWanted(t *testing.T) {
	c := New(start(t), Usher)
	var text bytes.Buffer
	if err := c.Copy(t.Context(), "/unready", &text, http.StatusServiceUnavailable); err != nil || text.String() != "not ready: REASON\nmore\n" {
		t.Errorf("got %q, error %v", &text, err)
	}
	text.Reset()
	refused, ok := errors.AsType[*StatusError](c.Copy(t.Context(), "/unready", &text, http.StatusNotFound))
	if !ok || refused.Line != "not ready: REASON" || refused.Status != "503 Service Unavailable" || refused.Page != c.String()+"/unready" || text.Len() > 0 {
		t.Errorf("got %+v, wrote %q", refused, &text)
	}
}

func TestAnAnswerMayHaveTheLimit(t *testing.T) {
	c := New(start(t), Usher)
	c.Limit = int64(len("{"))
	if text, err := c.Get(t.Context(), "/broken"); err != nil || string(text) != "{" {
		t.Errorf("got %q, error %v", text, err)
	}
}

func TestTheCallerCanEndARequest(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(start(t), Usher).Get(ctx, "/json"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

// TestMessages provokes every error, with a password in each address.
func TestMessages(t *testing.T) {
	address := start(t)
	var lines []string
	add := func(err error) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("it has a password: %v", err)
		}
		lines = append(lines, regexp.MustCompile("within [^;]+").ReplaceAllString(strings.ReplaceAll(err.Error(), address, "ADDRESS"), "within TIME"))
	}
	for _, of := range []Server{Envoy, Usher} {
		c := New("http://user:secret@"+address, of)
		for _, path := range []string{"/none?secret", "/unready", "/html", "/half", "/abort"} {
			_, err := c.Get(t.Context(), path)
			add(err)
		}
		add(c.Post(t.Context(), "/none"))
		add(c.GetJSON(t.Context(), "/broken?secret", &struct{}{}))
		c.Limit = 3
		_, err := c.Get(t.Context(), "/json")
		add(err)
		later, cancel := context.WithTimeout(t.Context(), time.Hour)
		for _, nowhere := range []string{"127.0.0.1:1", "a b", "http://user:secret@a b", "http://user:secret@127.0.0.1:1"} {
			_, err := New(nowhere, of).Get(later, "/json")
			add(err)
		}
		cancel()
		inTime, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err = c.Get(inTime, "/silent")
		cancel()
		add(err)
	}
	if New("a b", Usher).String() != "an address that is none" {
		t.Error("a name of no address")
	}
	messages.Check(t, lines, "fmt.Errorf", "fmt.Sprintf", "errors.New")
}
