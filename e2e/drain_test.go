//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/bootstrap"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// drainTime is that of the Envoys under test: long enough for some requests.
const drainTime = 3 * time.Second

// TestEnvoyDrainsBeforeItQuits starts Envoys with the template for consul-dataplane, and tells them to quit as
// consul-dataplane does.
func TestEnvoyDrainsBeforeItQuits(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := newStatisticsLab(t, envoy)
		settings := templateSetting(t, bootstrap.DataplaneOptions{XDSAddr: l.usher.GRPCAddr, DrainTime: drainTime})
		for _, tc := range []struct {
			name  string
			begin string // the request that begins the drain, if it is not the one that quits
		}{
			{"quit", ""}, {"drain, then quit", "/drain_listeners?inboundonly&graceful"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				gateway := startTemplate(t, l.Network, l.Consul, envoy, settings)
				d := newDrained(t, gateway, l.Client)
				if tc.begin != "" {
					postToAdmin(t, gateway, tc.begin)
					d.wantDraining(t)
				}
				quit := time.Now()
				postToAdmin(t, gateway, "/quitquitquit")
				if took := time.Since(quit); took >= drainTime {
					t.Errorf("the request to quit was answered after %v, want at once", took)
				}
				d.wantDraining(t)
				d.wantEnd(t, quit)
			})
		}
	})
}

// TestTheAdminInterfaceIsTheSameWithDrain compares answers of the admin interface with those of Consul's bootstrap.
func TestTheAdminInterfaceIsTheSameWithDrain(t *testing.T) {
	lab.OnEachEnvoy(t, func(t *testing.T, envoy string) {
		l := newStatisticsLab(t, envoy)
		requests := []adminRequest{
			{http.MethodGet, "/ready"},
			{http.MethodGet, "/quitquitquit"},
			{http.MethodGet, "/drain_listeners"},
			{http.MethodPost, "/healthcheck/ok"},
			{http.MethodGet, "/no-such-page"},
			{http.MethodPost, "/logging?level=warning"},
			{http.MethodGet, "/stats?filter=server.live&format=json"},
		}
		own := startTemplate(t, l.Network, l.Consul, envoy, templateSetting(t, bootstrap.DataplaneOptions{XDSAddr: l.usher.GRPCAddr}))
		waitLive(t, own)
		want := answersOf(t, own, requests)
		own.Stop(t)
		drains := startTemplate(t, l.Network, l.Consul, envoy, templateSetting(t, bootstrap.DataplaneOptions{XDSAddr: l.usher.GRPCAddr, DrainTime: drainTime}))
		waitLive(t, drains)
		for request, got := range answersOf(t, drains, requests) {
			if got != want[request] {
				t.Errorf("%v is answered\n%v\nwant\n%v", request, got, want[request])
			}
		}
	})
}

// waitLive waits until Envoy serves: it has listeners a moment before.
func waitLive(t *testing.T, e *lab.Envoy) {
	t.Helper()
	testprocess.Eventually(t, "Envoy is live", testprocess.StartDeadline, func() error {
		_, err := e.Admin("/ready")
		return err
	})
}

type adminRequest struct{ method, path string }

// adminAnswer is what differs between answers, and not each time.
type adminAnswer struct {
	status int
	text   string // headers and body
}

// answersOf returns the answers of the admin interface.
func answersOf(t *testing.T, e *lab.Envoy, requests []adminRequest) map[adminRequest]adminAnswer {
	t.Helper()
	answers := map[adminRequest]adminAnswer{}
	for _, r := range requests {
		answers[r] = askAdmin(t, e, r)
	}
	return answers
}

// askAdmin sends a request to the admin interface.
func askAdmin(t *testing.T, e *lab.Envoy, r adminRequest) adminAnswer {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), r.method, fmt.Sprintf("http://127.0.0.1:%d%s", e.AdminPort, r.path), nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: e.Host.Dial, DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	response.Header.Del("Date")
	return adminAnswer{response.StatusCode, fmt.Sprintf("%v %q", response.Header, body)}
}

func postToAdmin(t *testing.T, e *lab.Envoy, path string) {
	t.Helper()
	if got := askAdmin(t, e, adminRequest{http.MethodPost, path}); got.status != http.StatusOK {
		t.Fatalf("POST %s is answered %d", path, got.status)
	}
}

// drained is a gateway with a request in flight and a connection that is kept open.
type drained struct {
	gateway  *lab.Envoy
	request  lab.Request
	kept     *lab.ClientConn
	inFlight *lab.ClientConn
}

func newDrained(t *testing.T, gateway *lab.Envoy, client *lab.Host) *drained {
	t.Helper()
	d := &drained{gateway: gateway, request: lab.Request{From: client, To: gateway.Host.Addr(8080), Path: lab.NewPath()}}
	gateway.WaitListener(t, 8080)
	lab.WaitStatus(t, d.request, http.StatusOK)
	d.kept, d.inFlight = openConnection(t, d.request), openConnection(t, d.request)
	if got, err := d.kept.RoundTrip(d.request, "keep-alive"); err != nil || got.Status != http.StatusOK {
		t.Fatalf("the first request is answered %d (%v)", got.Status, err)
	}
	// The service answers at the end of the request's body.
	if _, err := fmt.Fprintf(d.inFlight, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n\r\nbo", lab.NewPath(), lab.ServiceHost); err != nil {
		t.Fatal(err)
	}
	testprocess.Eventually(t, "Envoy has the request", testprocess.StartDeadline, func() error {
		if n := gateway.Stat(t, "http.ingress_upstream_8080.downstream_rq_active"); n != 1 {
			return fmt.Errorf("%d requests are active", n)
		}
		return nil
	})
	return d
}

// wantDraining wants that Envoy is not ready any more, accepts new connections, and closes each one with its next answer.
// It opens another connection to keep.
func (d *drained) wantDraining(t *testing.T) {
	t.Helper()
	if got := askAdmin(t, d.gateway, adminRequest{http.MethodGet, "/ready"}); got.status != http.StatusServiceUnavailable {
		t.Errorf("/ready is answered %d, want 503", got.status)
	}
	for what, conn := range map[string]*lab.ClientConn{"the open connection": d.kept, "a new connection": openConnection(t, d.request)} {
		got, err := conn.RoundTrip(d.request, "keep-alive")
		if err != nil || got.Status != http.StatusOK {
			t.Errorf("on %s, a request is answered %d (%v), want 200", what, got.Status, err)
		}
		if !conn.Last() {
			t.Errorf("on %s, the answer does not say that it is the last one", what)
		}
	}
	d.kept = openConnection(t, d.request)
}

// wantEnd wants that the request in flight is answered, and that Envoy ends by itself after the drain time.
func (d *drained) wantEnd(t *testing.T, quit time.Time) {
	t.Helper()
	if _, err := io.WriteString(d.inFlight, "dy"); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(d.inFlight.Reader, nil)
	if err != nil {
		t.Fatalf("the request in flight: %v", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("the request in flight is answered %s, want 200", response.Status)
	}
	if code := d.gateway.Wait(t); code != 0 {
		t.Errorf("it ended with code %d, want 0", code)
	}
	if took := time.Since(quit); took < drainTime {
		t.Errorf("it ended after %v, want not before %v", took, drainTime)
	}
}
