//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// recoveryDeadline is within how many seconds a change in Consul reaches Envoys after a fault has ended, or Usher has found
// an address that answers.
const recoveryDeadline = 20 * time.Second

// TestTheNextConsulAgentIsUsed names two agents of a datacenter to Usher, freezes the first, and lets it go on. Changes reach
// Envoys, an Envoy that Usher has never seen may connect, and log, /readyz, /status and metrics say which agent is in use.
// Then the first is gone, and an Usher that starts uses the other one.
func TestTheNextConsulAgentIsUsed(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("secure %v", secure), func(t *testing.T) {
			t.Parallel()
			l := &lab.Lab{Network: lab.NewNetwork(t)}
			l.Consul = lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.Control, Secure: secure, ACLs: true})
			local := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.Service, ACLs: true, Join: l.Consul})
			l.RegisterCatalog(t, l.Consul)
			registerMany(t, l, []int{20000, 20001})
			rules := testprocess.ReadFile(t, "../docs/usher-policy.hcl")
			options := lab.UsherOptions{
				Host: l.Gateway, Consul: l.Consul, Token: l.Consul.NewToken(t, "usher", rules),
				Args: []string{"--consul-http-addr", local.HTTPAddr + "," + l.Consul.HTTPAddr, "--reauthorize-interval", "1s"},
			}
			usher := lab.StartUsher(t, options)
			envoy := connectShownPorts(t, l, l.Consul.NewToken(t, "gateway", gatewayRules))
			envoy.wait(t, map[string]int{"svc-0000": 20000, "svc-0001": 20001}, testprocess.ChangeDeadline)
			waitAddress(t, usher, local.HTTPAddr, "")

			local.Signal(t, syscall.SIGSTOP)
			registerNumbered(t, l, 0, 21000)
			envoy.wait(t, map[string]int{"svc-0000": 21000, "svc-0001": 20001}, recoveryDeadline)
			warning := "Consul does not answer at " + local.HTTPAddr + ", and Usher uses " + l.Consul.HTTPAddr + ": no answer within 5s"
			waitAddress(t, usher, l.Consul.HTTPAddr, warning)
			connectShownPorts(t, l, l.Consul.NewToken(t, "another", gatewayRules)).wait(t, map[string]int{"svc-0000": 21000, "svc-0001": 20001}, testprocess.ChangeDeadline)

			local.Signal(t, syscall.SIGCONT)
			waitAddress(t, usher, l.Consul.HTTPAddr, "")
			registerNumbered(t, l, 0, 22000)
			envoy.wait(t, map[string]int{"svc-0000": 22000, "svc-0001": 20001}, testprocess.ChangeDeadline)
			log := usher.Output(t)
			if n := strings.Count(log, "usher uses another one"); n != 1 {
				t.Errorf("the log has %d lines about the change of the address, want 1", n)
			}
			if strings.Contains(log, "snapshot seems to have been restored") {
				t.Error("the log says that a snapshot was restored")
			}

			local.Kill()
			usher.Kill()
			usher = lab.StartUsher(t, options)
			waitAddress(t, usher, l.Consul.HTTPAddr, "Consul does not answer at "+local.HTTPAddr)
			connectShownPorts(t, l, l.Consul.NewToken(t, "third", gatewayRules)).wait(t, map[string]int{"svc-0000": 22000, "svc-0001": 20001}, recoveryDeadline)
		})
	}
}

// connectShownPorts connects a fake Envoy.
func connectShownPorts(t *testing.T, l *lab.Lab, token string) *shownPorts {
	t.Helper()
	s := &shownPorts{
		envoy: lab.ConnectFakeEnvoy(t, lab.XDSPort{From: l.Gateway}.Dial(t), fakeenvoy.Delta, token),
		ports: map[string]int{},
	}
	for _, typeURL := range []string{resource.ClusterType, resource.EndpointType, resource.ListenerType, resource.RouteType} {
		s.envoy.Subscribe(typeURL, "*")
	}
	return s
}

// waitAddress waits until Usher says everywhere which of Consul's addresses it uses, and that the other one does not answer:
// with the warning, or with none.
func waitAddress(t *testing.T, u *lab.Usher, address, warning string) {
	t.Helper()
	testprocess.Eventually(t, "usher uses consul at "+address, time.Minute, func() error {
		text, err := u.Admin("/status")
		if err != nil {
			return err
		}
		var state struct {
			Source struct {
				Address string
				Answers bool
			}
		}
		if err := json.Unmarshal([]byte(text), &state); err != nil {
			t.Fatal(err)
		}
		ready, err := u.Admin("/readyz")
		if err != nil {
			return err
		}
		switch {
		case state.Source.Address != address || !state.Source.Answers:
			return fmt.Errorf("/status has the source %+v", state.Source)
		case !strings.Contains(u.Metrics(t), `usher_consul_address_in_use{address="`+address+`"} 1`):
			return errors.New("the metric names another address")
		case warning == "" && strings.Contains(ready, "does not answer"), !strings.Contains(ready, warning):
			return fmt.Errorf("/readyz says %q, want %q", ready, warning)
		}
		return nil
	})
}
