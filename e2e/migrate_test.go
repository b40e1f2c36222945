//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestMovingToUsherAndBackLosesNothing follows the README's five-minute path,
// and its way back, with the README's own commands: a gateway on Consul's own
// xDS moves to Usher, its balancer begins to send PROXY protocol, and then all
// of it is undone. Requests come through the balancer all the time, and eight
// hundred a second directly to the gateway while one Envoy replaces the other.
// None fails.
//
// It does not run beside other stories: what it does to the kernel's queues
// shows at a high rate only.
func TestMovingToUsherAndBackLosesNothing(t *testing.T) {
	s := &modesStory{Lab: lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)}
	s.gateway = lab.StartGateway(t, lab.GatewayOptions{Host: s.Gateway, Consul: s.Consul, Envoy: lab.EnvoyNew})
	lab.WaitStatus(t, s.Request("/"), http.StatusOK)
	load := lab.StartLoad(t, s.Request("/"))

	s.usher = lab.StartUsher(t, lab.UsherOptions{Host: s.Gateway, Consul: s.Consul, Config: readme(t, permissiveConfig)})
	readme(t, "-grpc-addr http://127.0.0.1:18000 -admin-bind 127.0.0.1:19001")
	s.replaceEnvoy(t, s.usher.GRPCAddr, 19001)
	s.switchBalancer(t, lab.SendV2)
	s.switchMode(t, "strict", func() { s.writeFile(t, "strict") })
	load.WaitMore(t)

	s.switchMode(t, "permissive", func() { s.writeFile(t, "permissive") })
	s.switchBalancer(t, lab.SendNone)
	s.replaceEnvoy(t, "", 19000)
	s.usher.Stop(t)
	load.WaitMore(t)
	if err := s.checkMode(t, "off"); err != nil {
		t.Errorf("back on Consul's own xDS: %v, want plain 200, with a header 400", err)
	}
	load.WantNoFailures(t)
}

// permissiveConfig is the README's /etc/usher/usher.hcl.
const permissiveConfig = `   gateway "ingress-gateway" {
     usher {
       proxy_protocol { mode = "permissive" }
     }
   }
`

// replaceEnvoy replaces the gateway's Envoy by one with another xDS server, which is
// empty for Consul's own, and another admin port.
func (s *modesStory) replaceEnvoy(t *testing.T, grpcAddr string, adminPort int) {
	t.Helper()
	old := s.gateway
	s.run(t, readme(t, "sysctl -w net.ipv4.tcp_migrate_req=1"))
	var straight []*lab.Load
	for range 4 {
		straight = append(straight, lab.StartLoad(t, lab.Request{From: s.Balancer, To: s.Gateway.Addr(8080)}))
	}
	s.gateway = lab.StartGateway(t, lab.GatewayOptions{
		Host: s.Gateway, Consul: s.Consul, Envoy: lab.EnvoyNew, GRPCAddr: grpcAddr, AdminPort: adminPort,
	})
	s.run(t, onPort(adminPort, readme(t, "until curl -sf http://127.0.0.1:19001/ready; do sleep 0.1; done")))
	straight[0].WaitMore(t)

	s.run(t, onPort(old.AdminPort, readme(t, "curl -sf -X POST http://127.0.0.1:19000/drain_listeners")))
	s.run(t, onPort(old.AdminPort, readme(t, "curl -sf -X POST http://127.0.0.1:19000/healthcheck/fail")))
	counts := onPort(old.AdminPort, readme(t, "curl -sf 'http://127.0.0.1:19000/stats?filter=worker_.*downstream_cx_active'"))
	testprocess.Eventually(t, old.Name+" has no connection any more", testprocess.StartDeadline, func() error {
		if text := s.run(t, counts); text == "" || openConnections.MatchString(text) {
			return errors.New(text)
		}
		return nil
	})
	old.Stop(t)
	straight[0].WaitMore(t)
	for _, load := range straight {
		load.WantNoFailures(t)
	}
}

// openConnections finds a count that is not 0.
var openConnections = regexp.MustCompile(`: [1-9]`)

// readme is text that the README has: what it says is what is tested.
func readme(t *testing.T, text string) string {
	t.Helper()
	if !strings.Contains(testprocess.ReadFile(t, "../README.md"), text) {
		t.Fatalf("README.md no longer says %q", text)
	}
	return text
}

// onPort is a command of the README's for the admin port of one Envoy.
func onPort(port int, command string) string {
	return regexp.MustCompile(`127\.0\.0\.1:1900\d`).ReplaceAllString(command, fmt.Sprintf("127.0.0.1:%d", port))
}

// run runs a command line on the gateway's host.
func (s *modesStory) run(t *testing.T, line string) string {
	t.Helper()
	output, err := testprocess.RunOutput(t, testprocess.Command{
		Name: line, Path: testprocess.Debian(t, "sh", "dash"), Args: []string{"-c", line}, Host: s.Gateway,
	}, "")
	if err != nil {
		t.Fatalf("%s: %v: %s", line, err, output)
	}
	return output
}
