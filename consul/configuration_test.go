package consul

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAgent(t *testing.T) {
	for body, want := range map[string]agent{
		`{"Config": {"BindAddr": "::1"}, "DebugConfig": {"DNSDomain": "consul.", "DNSAltDomain": "alt.example"}}`: {
			dualStack: true, domain: "consul.", altDomain: "alt.example",
		},
		`{"Config": {"BindAddr": "10.0.0.1"}}`:                             {},
		`{"Config": {"Version": "1.22.7"}}`:                                {major: 1},
		`{"Config": {"Version": "2.1.0+ent"}}`:                             {major: 2},
		`{"Config": {"BindAddr": "::ffff:10.0.0.1"}}`:                      {},
		`{"Config": {}, "DebugConfig": {"DNSDomain": "mesh."}}`:            {domain: "mesh."}, // Consul 1.15
		`{"Config": {}, "xDS": {"Ports": {"Plaintext": 8502, "TLS": -1}}}`: {grpcPort: 8502},
	} {
		got, err := agentType.decode(nil, response{body: []byte(body)})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(&want, got, cmp.AllowUnexported(agent{})); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", body, diff)
		}
	}
}

// Envoys of Consul 2.0 normalize paths, and those of a Consul before it do not.
func TestPathsAreNormalizedAsByTheAgentsConsul(t *testing.T) {
	for version, want := range map[string]bool{"1.22.7": false, "2.0.0-rc1": true, "2.1.0": true, "": false} {
		c := newFakeGatewayWithInstances(t, "web")
		c.set("/v1/agent/self", reply{body: fmt.Sprintf(`{"Config": {"Version": %q}}`, version)})
		if s := start(t, c.watcher(t), "gateway").next(t, anyOne); s.NormalizePath != want {
			t.Errorf("Consul %q: paths are normalized: %v", version, s.NormalizePath)
		}
	}
}

func TestAgentWithAnIPv6Address(t *testing.T) {
	c := newFakeGatewayWithInstances(t, "web")
	c.set("/v1/agent/self", reply{body: `{"Config": {"BindAddr": "2001:db8::1"}}`})
	if s := start(t, c.watcher(t), "gateway").next(t, anyOne); !s.DualStack {
		t.Error("the agent has an IPv6 address, and the snapshot does not say so")
	}
}

// A token that loses agent:read moves no listener.
func TestAgentThatNoLongerTells(t *testing.T) {
	before := &agent{dualStack: true, domain: "consul."}
	got, err := agentType.decode(before, response{body: []byte("{}"), refused: true})
	if err != nil || got != before {
		t.Errorf("got %+v, %v; want the value before", got, err)
	}
}

// Usher's token may lack agent:read: everything works, and nothing is wrong.
func TestAgentThatRefusesToTell(t *testing.T) {
	for _, status := range []int{http.StatusForbidden, http.StatusNotFound} {
		c := newFakeGatewayWithInstances(t, "web")
		c.set("/v1/agent/self", reply{status: status, body: "Permission denied"})
		log := &logRecorder{}
		w := NewWatcher(c.client(t, log), WatcherOptions{})
		if s := start(t, w, "gateway").next(t, anyOne); s.DualStack {
			t.Error("the snapshot says that the agent has an IPv6 address")
		}
		for _, line := range log.take() {
			if line[:4] == "WARN" {
				t.Errorf("logged: %s", line)
			}
		}
	}
}
