package demo

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
)

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
			a := adminThatSays(t, http.StatusOK, tc.dump)
			got, err := a.listener(t.Context(), 8080)
			if err != nil || got != tc.want {
				t.Errorf("got %+v, error %v; want %+v", got, err, tc.want)
			}
		})
	}
}

func TestARefusedListenerEndsTheWait(t *testing.T) {
	a := adminThatSays(t, http.StatusOK, `{"configs":[{"error_state":{"details":"no such filter"}}]}`)
	err := await(t.Context(), "the listener", func(ctx context.Context) (bool, error) {
		s, err := a.listener(ctx, 8080)
		return s.active, err
	})
	const want = "the listener: envoy refused its configuration: no such filter"
	if err == nil || err.Error() != want {
		t.Errorf("got error %v, want %s", err, want)
	}
}

func TestAnEnvoyThatIsNotReadySaysItsState(t *testing.T) {
	ready, err := adminThatSays(t, http.StatusServiceUnavailable, "INITIALIZING\n").ready(t.Context())
	if ready || err == nil || err.Error() != "envoy is in state INITIALIZING" {
		t.Errorf("got %t, error %v", ready, err)
	}
	ready, err = adminThatSays(t, http.StatusOK, "LIVE\n").ready(t.Context())
	if !ready || err != nil {
		t.Errorf("got %t, error %v; want ready", ready, err)
	}
}

func TestTheListenersThatWorkersTookAreCounted(t *testing.T) {
	a := adminThatSays(t, http.StatusOK, `{"stats":[{"name":"listener_manager.listener_create_success","value":3}]}`)
	if n, err := a.listenersTaken(t.Context()); n != 3 || err != nil {
		t.Errorf("got %d, error %v; want 3", n, err)
	}
	a = adminThatSays(t, http.StatusOK, `{"stats":[]}`)
	if _, err := a.listenersTaken(t.Context()); err == nil {
		t.Error("a missing statistic is no error")
	}
}

func TestAWaitEndsWithItsLastReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := await(t.Context(), "the listener", func(context.Context) (bool, error) {
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
	err := await(ctx, "the listener", func(context.Context) (bool, error) {
		cancel()
		return false, nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v, want context.Canceled", err)
	}
}

func adminThatSays(t *testing.T, status int, text string) admin {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}))
	t.Cleanup(s.Close)
	return admin{addr: strings.TrimPrefix(s.URL, "http://")}
}
