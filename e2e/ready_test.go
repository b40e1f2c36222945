//go:build e2e

package e2e

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
)

// TestReadyWithoutConsul is the story of a Consul that dies: an Usher that can
// serve Envoys what they need stays in its Service, and one that has nothing to
// serve leaves it.
func TestReadyWithoutConsul(t *testing.T) {
	t.Parallel()
	network := newLab(t)
	consul := startConsul(t, consulOptions{Version: consulNew, Host: network.Control})
	network.registerCatalog(t, consul)
	good := startUsher(t, usherOptions{Host: network.Gateway, Consul: consul})
	fetchKey(t, fakeGateway(t, xdsPort{From: network.Gateway}.dial(t), fakeenvoy.Delta, ""))
	empty := startUsher(t, usherOptions{Host: network.Service, Consul: consul}) // no Envoy has asked it
	consul.Kill()

	empty.wantNotReady(t, consul.HTTPAddr, "connection refused")
	good.wantReadyThoughAway(t, consul.HTTPAddr)
	good.Kill()
	again := launchUsher(t, usherOptions{Host: network.Gateway, Consul: consul})
	again.wantNotReady(t, consul.HTTPAddr, "connection refused")
}

// wantReadyThoughAway waits until /readyz says why and since when Consul does
// not answer, and wants it to say all the time that Usher is ready.
func (u *usher) wantReadyThoughAway(t *testing.T, address string) string {
	t.Helper()
	var text string
	remark := regexp.MustCompile(`^ready\nconsul at ` + regexp.QuoteMeta(address) +
		`: .*; it is so since 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ, and Envoys keep the last good configuration\n`)
	eventually(t, "usher says that Consul does not answer", changeDeadline, func() error {
		var err error
		if text, err = u.admin("/readyz"); err != nil {
			t.Fatalf("usher is not ready: %v", err)
		}
		if !remark.MatchString(text) {
			return fmt.Errorf("/readyz says %q", text)
		}
		return nil
	})
	return text
}
