//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/pires/go-proxyproto"
)

// TestPROXYProtocolIsSwitchedOnAndOffUnderLoad takes a gateway and its balancer
// from plain connections to strict PROXY protocol, and all the way back, while
// requests come through the balancer. The order is what loses nothing:
// permissive before the balancer is switched, in both directions. The mode is
// set in the operator's own file, and in proxy-defaults.
func TestPROXYProtocolIsSwitchedOnAndOffUnderLoad(t *testing.T) {
	for _, place := range []struct {
		name string
		set  func(s *modesStory, t *testing.T, mode string)
	}{
		{"the operator's file", (*modesStory).writeFile},
		{"proxy-defaults", (*modesStory).writeDefaults},
	} {
		t.Run(place.name, func(t *testing.T) {
			t.Parallel()
			s := startModesStory(t)
			load := startLoad(t, s.call("/"))
			mode := func(mode string) {
				s.tell(t, mode, func() { place.set(s, t, mode) })
				load.waitMore(t)
			}
			balancer := func(header proxyHeader) {
				s.switchBalancer(t, header)
				load.waitMore(t)
			}
			for range 2 {
				mode("permissive")
				balancer(v2Header)
				mode("strict")

				mode("permissive")
				balancer(noHeader)
				mode("off")
			}
			load.wantNoFailures(t)
		})
	}
}

// modesStory is the lab with a gateway on Usher, whose mode is off.
type modesStory struct {
	*meshLab
	usher   *usher
	gateway *envoy
	mode    string
}

func startModesStory(t *testing.T) *modesStory {
	t.Helper()
	s := &modesStory{meshLab: startMeshLab(t, consulNew, envoyNew, false), mode: "off"}
	s.usher = startUsher(t, usherOptions{Host: s.Gateway, Consul: s.Consul, Config: "# nothing yet\n"})
	s.gateway = startGateway(t, gatewayOptions{
		Host: s.Gateway, Consul: s.Consul, Envoy: envoyNew, GRPCAddr: s.usher.GRPCAddr,
	})
	s.gateway.waitListener(t, 8080)
	waitStatus(t, s.call("/"), http.StatusOK)
	return s
}

// writeFile sets the mode in the operator's file.
func (s *modesStory) writeFile(t *testing.T, mode string) {
	t.Helper()
	content := fmt.Sprintf("gateway \"ingress-gateway\" {\n  usher {\n    proxy_protocol { mode = %q }\n  }\n}\n", mode)
	if err := os.WriteFile(s.usher.ConfigFile, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// writeDefaults sets the mode for every gateway.
func (s *modesStory) writeDefaults(t *testing.T, mode string) {
	t.Helper()
	_, _, err := s.Consul.Client.ConfigEntries().Set(&api.ProxyConfigEntry{
		Kind: api.ProxyDefaults, Name: api.ProxyConfigGlobal,
		AccessLogs: &api.AccessLogsConfig{Enabled: true},
		Config: map[string]any{
			"usher": map[string]any{"proxy_protocol": map[string]any{"mode": mode}},
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// tell sets a mode, waits until connections are treated so, and prints how long
// the first one took.
func (s *modesStory) tell(t *testing.T, mode string, set func()) {
	t.Helper()
	if s.treats(t, mode) == nil {
		t.Fatalf("the gateway is %s already", mode)
	}
	begin := time.Now()
	set()
	for s.treats(t, mode) != nil {
		if time.Since(begin) > changeDeadline {
			t.Fatalf("the gateway is not %s after %v", mode, changeDeadline)
		}
		time.Sleep(tightInterval)
	}
	t.Logf("change: usher %3d ms: mode %s -> %s", time.Since(begin).Milliseconds(), s.mode, mode)
	s.mode = mode
	eventually(t, "every thread of the gateway is "+mode, changeDeadline, func() error {
		const row = 10
		for range row {
			if err := s.treats(t, mode); err != nil {
				return err
			}
		}
		return nil
	})
}

// treats is nil if the gateway treats a connection with and one without a PROXY
// header as the mode says.
func (s *modesStory) treats(t *testing.T, mode string) error {
	t.Helper()
	plain := call{From: s.Balancer, To: s.Gateway.addr(8080), Path: waitPrefix}
	headed := plain
	headed.Proxy = &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}
	want := map[string][2]string{
		"off":        {"200", "400"},
		"permissive": {"200", "200"},
		"strict":     {"closed", "200"},
	}[mode]
	if got := [2]string{s.outcome(t, plain), s.outcome(t, headed)}; got != want {
		return fmt.Errorf("plain %s, with a header %s", got[0], got[1])
	}
	return nil
}

func (s *modesStory) outcome(t *testing.T, c call) string {
	t.Helper()
	got, err := c.do(t.Context())
	if err != nil {
		return "closed"
	}
	return fmt.Sprint(got.Status)
}

// switchBalancer has the balancer begin connections otherwise, and waits until
// it does: the client's own address is in the access log only where it came
// with a header.
func (s *modesStory) switchBalancer(t *testing.T, header proxyHeader) {
	t.Helper()
	want := map[proxyHeader]string{noHeader: balancerIP, v2Header: clientIP}[header]
	s.HAProxy.setHeader(t, header)
	eventually(t, fmt.Sprintf("the balancer sends %s", header), changeDeadline, func() error {
		request := s.call(newPath())
		request.must(t).wantHello(t)
		if got := s.gateway.Log.request(t, request.Path).ip(t, "downstream_remote_address"); got != want {
			return errors.New("the log has " + got)
		}
		return nil
	})
}
