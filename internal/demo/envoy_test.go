package demo

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

func TestAnEnvoyThatExitsIsAnErrorWithItsLastLogLine(t *testing.T) {
	e := fakeEnvoy(t, "echo starting >&2; echo 'cannot bind' >&2; echo >&2; exit 7")
	err := e.run(t.Context())
	const want = "envoy exited unexpectedly (exit status 7); its last log line: cannot bind"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestAnEnvoyThatExitsWithoutALogLineIsAnError(t *testing.T) {
	err := fakeEnvoy(t, "exit 0").run(t.Context())
	const want = "envoy exited unexpectedly (exit status 0); its last log line: none"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestTheEndOfTheContextEndsEnvoyEvenIfItsLogIsNotRead(t *testing.T) {
	e := fakeEnvoy(t, "echo first; echo second; echo third; exec sleep 600")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.run(ctx) }()
	if line := <-e.accessLog; line != "first" {
		t.Errorf("got line %q, want %q", line, "first")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
}

func TestEnvoyStartsWithTheBootstrapAndAFileForItsAdminAddress(t *testing.T) {
	admin := serveAdmin(t, http.StatusOK, "LIVE\n")
	e := fakeEnvoy(t, `cat "$2" | tr -d '\n'; echo; echo `+admin+` > "$4"; exec sleep 600`)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.run(ctx) }()
	if line := <-e.accessLog; !strings.Contains(line, `"cluster": "ingress-gateway"`) {
		t.Errorf("the bootstrap is %s", line)
	}
	if err := waitFor(ctx, "the admin interface", e.ready); err != nil {
		t.Errorf("its admin address is not used: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v, want nil", err)
	}
}

// fakeEnvoy is an Envoy whose binary is a shell script.
func fakeEnvoy(t *testing.T, script string) *envoy {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "envoy")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	e, err := newEnvoy(binary, dir, "127.0.0.1:18000", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestTheListenerIsFoundByItsPort(t *testing.T) {
	const other = `{"active_state":{"listener":{"address":{"socket_address":{"port_value":1}},"listener_filters":[{"name":"envoy.filters.listener.proxy_protocol"}]}}}`
	const plain = `{"active_state":{"listener":{"address":{"socket_address":{"port_value":8080}}}}}`
	const proxy = `{"active_state":{"listener":{"address":{"socket_address":{"port_value":8080}},"listener_filters":[{"name":"envoy.filters.listener.proxy_protocol"}]}}}`
	const warming = `{"warming_state":{"listener":{"address":{"socket_address":{"port_value":8080}}}}}`
	for name, tc := range map[string]struct {
		dump                  string
		active, proxyProtocol bool
	}{
		"nothing yet": {`{}`, false, false},
		"another":     {`{"configs":[` + other + `]}`, false, false},
		"warming":     {`{"configs":[` + warming + `]}`, false, false},
		"plain":       {`{"configs":[` + other + `,` + plain + `]}`, true, false},
		"proxy":       {`{"configs":[` + proxy + `]}`, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			active, proxyProtocol, err := envoyWithAdmin(t, http.StatusOK, tc.dump).listener(t.Context(), 8080)
			if err != nil || active != tc.active || proxyProtocol != tc.proxyProtocol {
				t.Errorf("got active %t, proxyProtocol %t, error %v; want %t, %t", active, proxyProtocol, err, tc.active, tc.proxyProtocol)
			}
		})
	}
}

func TestARejectedListenerEndsTheWait(t *testing.T) {
	e := envoyWithAdmin(t, http.StatusOK, `{"configs":[{"error_state":{"details":"no such filter"}}]}`)
	err := waitFor(t.Context(), "the listener", func(ctx context.Context) (bool, error) {
		active, _, err := e.listener(ctx, 8080)
		return active, err
	})
	const want = "the listener: envoy rejected its configuration: no such filter"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestTheErrorOfAnEnvoyThatIsNotReadyHasItsState(t *testing.T) {
	ready, err := envoyWithAdmin(t, http.StatusServiceUnavailable, "INITIALIZING\n").ready(t.Context())
	if ready || err == nil || err.Error() != "envoy is in state INITIALIZING" {
		t.Errorf("got %t, error %v", ready, err)
	}
	ready, err = envoyWithAdmin(t, http.StatusOK, "LIVE\n").ready(t.Context())
	if !ready || err != nil {
		t.Errorf("got %t, error %v; want ready", ready, err)
	}
}

func TestTheListenersThatWorkersStartedAreCounted(t *testing.T) {
	e := envoyWithAdmin(t, http.StatusOK, "listener_manager.listener_create_success: 3\n")
	if n, err := e.listenersCreated(t.Context()); n != 3 || err != nil {
		t.Errorf("got %d, error %v; want 3", n, err)
	}
	e = envoyWithAdmin(t, http.StatusOK, "")
	if _, err := e.listenersCreated(t.Context()); err == nil {
		t.Error("a missing statistic is no error")
	}
}

func TestAWaitEndsWithItsLastReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := waitFor(t.Context(), "the listener", func(context.Context) (bool, error) {
			return false, errors.New("connection refused")
		})
		const want = "the listener: not there after 30s: connection refused"
		if err == nil || err.Error() != want {
			t.Errorf("got error %v, want %s", err, want)
		}
	})
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := waitFor(ctx, "the listener", func(context.Context) (bool, error) {
		cancel()
		return false, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want context.Canceled", err)
	}
}

// envoyWithAdmin is an Envoy that does not run and whose admin interface responds with text.
func envoyWithAdmin(t *testing.T, status int, text string) *envoy {
	t.Helper()
	e := fakeEnvoy(t, "")
	if err := os.WriteFile(e.adminFile, []byte(serveAdmin(t, status, text)), 0o600); err != nil {
		t.Fatal(err)
	}
	return e
}

// serveAdmin runs an admin interface that responds with text, and returns its address.
func serveAdmin(t *testing.T, status int, text string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestAnAccessLogLineIsRead(t *testing.T) {
	for line, want := range map[string]logEntry{
		`{"downstream_remote_address":"127.0.0.2:1","response_code":200,"method":"GET"}`:                                       {Remote: "127.0.0.2:1", Code: 200},
		`{"downstream_remote_address":"127.0.0.7:1","downstream_direct_remote_address":"127.0.0.2:2","response_code":400}`:     {Remote: "127.0.0.7:1", Direct: "127.0.0.2:2", Code: 400},
		`{"downstream_direct_remote_address":null,"response_code":0,"downstream_remote_address":"[2001:db8::7]:1","x":[1,{}]}`: {Remote: "[2001:db8::7]:1"},
	} {
		got, err := parseLogEntry(line)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, error %v; want %+v", line, got, err, want)
		}
	}
}

func TestALineThatIsNoAccessLogIsAnError(t *testing.T) {
	for _, line := range []string{"", "hello", "[]", "{}", `{"response_code":200}`, `{"downstream_remote_address":"x"}`} {
		if e, err := parseLogEntry(line); err == nil {
			t.Errorf("%q: got %+v, want an error", line, e)
		}
	}
}

func TestLinesAreWholeHoweverTheyAreWritten(t *testing.T) {
	var got []string
	w := &lineWriter{put: func(line string) { got = append(got, line) }}
	for _, part := range []string{"one\ntw", "o", "\n\nthr", "ee\n", "not ended"} {
		if n, err := io.WriteString(w, part); n != len(part) || err != nil {
			t.Fatalf("wrote %d of %q, error %v", n, part, err)
		}
	}
	if diff := cmp.Diff([]string{"one", "two", "", "three"}, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}
