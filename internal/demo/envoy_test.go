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
	e := fakeEnvoy(t, `cat "$2" | tr -d '\n'; echo; echo 127.0.0.1:4711 > "$4"; exec sleep 600`)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- e.run(ctx) }()
	if line := <-e.accessLog; !strings.Contains(line, `"cluster": "ingress-gateway"`) {
		t.Errorf("the bootstrap is %s", line)
	}
	a, err := e.waitAdmin(ctx)
	if err != nil || a.addr != "127.0.0.1:4711" {
		t.Errorf("admin address %q, error %v; want 127.0.0.1:4711", a.addr, err)
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
		dump string
		want listenerState
	}{
		"nothing yet": {`{}`, listenerState{}},
		"another":     {`{"configs":[` + other + `]}`, listenerState{}},
		"warming":     {`{"configs":[` + warming + `]}`, listenerState{}},
		"plain":       {`{"configs":[` + other + `,` + plain + `]}`, listenerState{active: true}},
		"proxy":       {`{"configs":[` + proxy + `]}`, listenerState{active: true, proxyProtocol: true}},
	} {
		t.Run(name, func(t *testing.T) {
			a := adminThatAnswers(t, http.StatusOK, tc.dump)
			got, err := a.listener(t.Context(), 8080)
			if err != nil || got != tc.want {
				t.Errorf("got %+v, error %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestARejectedListenerEndsTheWait(t *testing.T) {
	a := adminThatAnswers(t, http.StatusOK, `{"configs":[{"error_state":{"details":"no such filter"}}]}`)
	err := waitFor(t.Context(), "the listener", func(ctx context.Context) (bool, error) {
		s, err := a.listener(ctx, 8080)
		return s.active, err
	})
	const want = "the listener: envoy rejected its configuration: no such filter"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestTheErrorOfAnEnvoyThatIsNotReadyHasItsState(t *testing.T) {
	ready, err := adminThatAnswers(t, http.StatusServiceUnavailable, "INITIALIZING\n").ready(t.Context())
	if ready || err == nil || err.Error() != "envoy is in state INITIALIZING" {
		t.Errorf("got %t, error %v", ready, err)
	}
	ready, err = adminThatAnswers(t, http.StatusOK, "LIVE\n").ready(t.Context())
	if !ready || err != nil {
		t.Errorf("got %t, error %v; want ready", ready, err)
	}
}

func TestTheListenersThatWorkersStartedAreCounted(t *testing.T) {
	a := adminThatAnswers(t, http.StatusOK, `{"stats":[{"name":"listener_manager.listener_create_success","value":3}]}`)
	if n, err := a.listenersCreated(t.Context()); n != 3 || err != nil {
		t.Errorf("got %d, error %v; want 3", n, err)
	}
	a = adminThatAnswers(t, http.StatusOK, `{"stats":[]}`)
	if _, err := a.listenersCreated(t.Context()); err == nil {
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

func adminThatAnswers(t *testing.T, status int, text string) admin {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(s.Close)
	return admin{addr: strings.TrimPrefix(s.URL, "http://")}
}

func TestAnAccessLogLineIsRead(t *testing.T) {
	for line, want := range map[string]logEntry{
		`{"downstream_remote_address":"127.0.0.2:1","response_code":200,"method":"GET"}`:                                       {remote: "127.0.0.2:1", code: 200},
		`{"downstream_remote_address":"127.0.0.7:1","downstream_direct_remote_address":"127.0.0.2:2","response_code":400}`:     {remote: "127.0.0.7:1", direct: "127.0.0.2:2", code: 400},
		`{"downstream_direct_remote_address":null,"response_code":0,"downstream_remote_address":"[2001:db8::7]:1","x":[1,{}]}`: {remote: "[2001:db8::7]:1"},
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
