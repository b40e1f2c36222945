package envoyadmin

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestServerInfo has an Envoy that is newer than this Usher, one that says less, and one whose node is none.
func TestServerInfo(t *testing.T) {
	for answer, want := range map[string]string{
		`{"version": "c0ffee/1.40.0/Clean/RELEASE/BoringSSL", "state": "LIVE", "node": {"id": "edge-1", "cluster": "edge", "newer": 1}, "newer": 1}`: "1.40.0 LIVE edge-1 edge",
		`{"version": "1.40.0", "state": "DRAINING"}`: " DRAINING  ",
		`{"node": {"id": 1}}`:                        "",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/server_info" {
				fmt.Fprint(w, answer)
			}
		}))
		defer server.Close()
		info, err := New(server.URL).ServerInfo(t.Context())
		if got := fmt.Sprintf("%s %s %s %s", info.Release(), info.State, info.Node.GetId(), info.Node.GetCluster()); err == nil && got != want || (err != nil) != (want == "") {
			t.Errorf("%s: got %q, error %v, want %q", answer, got, err, want)
		}
	}
}
