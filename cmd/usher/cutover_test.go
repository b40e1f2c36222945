package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

// idleEnvoy is an admin interface of an Envoy with one listener, without connections.
func idleEnvoy(t *testing.T) string {
	t.Helper()
	listener := `{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "a", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 8080}}}`
	answers := map[string]string{
		"/server_info": `{"version": "c0ffee/1.40.0/Clean/RELEASE/BoringSSL", "state": "LIVE", "node": {"id": "edge", "cluster": "edge"}}`,
		"/listeners":   `{"listener_statuses": [{"local_address": {"socket_address": {"address": "0.0.0.0", "port_value": 8080}}}]}`,
		"/config_dump": `{"configs": [{"dynamic_listeners": [{"active_state": {"listener": ` + listener + `}}]}]}`,
		"/stats":       `{"stats": [{"name": "listener_manager.total_listeners_active", "value": 1}, {"name": "listener.a.downstream_cx_active", "value": 0}]}`,
	}
	envoy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, answers[r.URL.Path]) }))
	t.Cleanup(envoy.Close)
	return envoy.URL
}

func TestCutoverAsksUsherWhatItWouldServe(t *testing.T) {
	want := []string{
		"--usher-admin-addr: no Usher answers at http://ADDRESS: ", "--usher-admin-addr: the given address of Usher is none; ", "--usher-admin-addr: http://ADDRESS/readyz answers 503 Service Unavailable: not ready: REASON", "Usher at http://ADDRESS: connection error: ",
	}
	for i, line := range cutoverErrors(t) {
		if !strings.HasPrefix(line, want[i]) {
			t.Errorf("it says %q, want %q", line, want[i])
		}
	}
}

func TestCutoverGoesTheOtherWayWithUndo(t *testing.T) {
	for _, tc := range []struct {
		undo                     bool
		old, new, grpcAddr, hint string
	}{
		{false, "http://127.0.0.1:19000", "http://127.0.0.1:19001", "http://127.0.0.1:18000", "with the command of the old one, and with -grpc-addr http://127.0.0.1:18000 -admin-bind 127.0.0.1:19001"},
		{true, "http://127.0.0.1:19001", "http://127.0.0.1:19000", "", "with the command of the old one, without -grpc-addr, and with -admin-bind 127.0.0.1:19000"},
	} {
		var o cutoverOptions
		cmd := cutoverCommand()
		o.undo, o.Timeout = tc.undo, 1<<40
		if err := o.complete(cmd); err != nil {
			t.Fatal(err)
		}
		target := &xdsTarget{cutoverOptions: &o}
		if o.Old.String() != tc.old || o.New.String() != tc.new || o.grpcAddr != tc.grpcAddr || target.Hint() != tc.hint {
			t.Errorf("undo %t: from %s to %s with %q, hint %q", tc.undo, o.Old, o.New, o.grpcAddr, target.Hint())
		}
	}
}

// cutoverErrors returns why usher cutover is refused where nothing answers for Usher, at no address, where it is not ready,
// and where only its admin port answers.
func cutoverErrors(t *testing.T) (lines []string) {
	t.Helper()
	unready := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "not ready: REASON", http.StatusServiceUnavailable)
	}))
	defer unready.Close()
	ready := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer ready.Close()
	for _, admin := range []string{"127.0.0.1:1", "a b", unready.Listener.Addr().String(), ready.Listener.Addr().String()} {
		out, err := usher(t, "cutover", "--old", idleEnvoy(t), "--grpc-addr", "http://127.0.0.1:1", "--usher-admin-addr", admin)
		if err == nil || !strings.HasSuffix(err.Error(), "target; nothing has changed") {
			t.Errorf("error %v, want one about the target", err)
		}
		_, line, _ := strings.Cut(out, "target       REFUSED: ")
		line, _, _ = strings.Cut(line, "\n")
		lines = append(lines, regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllString(line, "ADDRESS"))
	}
	return lines
}
