//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"testing"

	"github.com/hashicorp/consul/api"
	"github.com/pires/go-proxyproto"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestPROXYProtocolIsSwitchedOnAndOffUnderLoad takes a gateway and its balancer
// from plain connections to strict PROXY protocol, and back, under load. No
// request fails, since the mode is permissive before the balancer changes, in
// both directions. The mode is set in the config file, and in proxy-defaults.
func TestPROXYProtocolIsSwitchedOnAndOffUnderLoad(t *testing.T) {
	t.Parallel()
	for _, place := range []struct {
		name string
		set  func(s *modesStory, t *testing.T, mode string)
	}{
		{"the config file", (*modesStory).writeFile},
		{"proxy-defaults", (*modesStory).writeDefaults},
	} {
		t.Run(place.name, func(t *testing.T) {
			t.Parallel()
			s := startModesStory(t)
			load := lab.StartLoad(t, s.Request("/"))
			mode := func(mode string) {
				s.switchMode(t, mode, func() { place.set(s, t, mode) })
				load.WaitMore(t)
			}
			balancer := func(header lab.ProxyHeader) {
				s.switchBalancer(t, header)
				load.WaitMore(t)
			}
			for range 2 {
				mode("permissive")
				balancer(lab.SendV2)
				mode("strict")

				mode("permissive")
				balancer(lab.SendNone)
				mode("off")
			}
			load.WantNoFailures(t)
		})
	}
}

// modesStory is the lab with a gateway on Usher, whose mode is off.
type modesStory struct {
	*lab.Lab
	usher   *lab.Usher
	gateway *lab.Envoy
}

func startModesStory(t *testing.T) *modesStory {
	t.Helper()
	return startModesStoryOn(t, lab.EnvoyNew)
}

func startModesStoryOn(t *testing.T, envoy string) *modesStory {
	t.Helper()
	s := &modesStory{Lab: lab.Start(t, lab.ConsulNew, envoy, false)}
	s.usher = lab.StartUsher(t, lab.UsherOptions{Host: s.Gateway, Consul: s.Consul, Config: "# nothing yet\n"})
	s.gateway = lab.StartGateway(t, lab.GatewayOptions{
		Host: s.Gateway, Consul: s.Consul, Envoy: envoy, GRPCAddr: s.usher.GRPCAddr,
	})
	s.gateway.WaitListener(t, 8080)
	lab.WaitStatus(t, s.Request("/"), http.StatusOK)
	return s
}

// writeFile sets the mode in the config file.
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

// switchMode sets a mode and waits until connections are treated so.
func (s *modesStory) switchMode(t *testing.T, mode string, set func()) {
	t.Helper()
	if s.checkMode(t, mode) == nil {
		t.Fatalf("the gateway is %s already", mode)
	}
	set()
	testprocess.Eventually(t, "every thread of the gateway is "+mode, testprocess.ChangeDeadline, func() error {
		const consecutive = 10
		for range consecutive {
			if err := s.checkMode(t, mode); err != nil {
				return err
			}
		}
		return nil
	})
}

// checkMode is nil if the gateway treats a connection with and one without a PROXY
// header as the mode says.
func (s *modesStory) checkMode(t *testing.T, mode string) error {
	t.Helper()
	plain := lab.Request{From: s.Balancer, To: s.Gateway.Addr(8080), Path: lab.PollPath}
	headed := plain
	headed.Proxy = &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}
	want := map[string][2]string{
		"off":        {"200", "400"},
		"permissive": {"200", "200"},
		"strict":     {"closed", "200"},
	}[mode]
	if got := [2]string{s.responseTo(t, plain), s.responseTo(t, headed)}; got != want {
		return fmt.Errorf("plain %s, with a header %s", got[0], got[1])
	}
	return nil
}

func (s *modesStory) responseTo(t *testing.T, c lab.Request) string {
	t.Helper()
	got, err := c.Do(t.Context())
	if err != nil {
		return "closed"
	}
	return fmt.Sprint(got.Status)
}

// switchBalancer has the balancer begin connections otherwise, and waits until
// it does: the client's own address is in the access log only where it came
// with a header.
func (s *modesStory) switchBalancer(t *testing.T, header lab.ProxyHeader) {
	t.Helper()
	want := map[lab.ProxyHeader]string{lab.SendNone: lab.BalancerIP, lab.SendV2: lab.ClientIP}[header]
	s.HAProxy.SetHeader(t, header)
	testprocess.Eventually(t, fmt.Sprintf("the balancer sends %s", header), testprocess.ChangeDeadline, func() error {
		request := s.Request(lab.NewPath())
		request.MustDo(t).WantHello(t)
		if got := s.gateway.Log.WaitRequest(t, request.Path).IP(t, "downstream_remote_address"); got != want {
			return errors.New("the log has " + got)
		}
		return nil
	})
}
