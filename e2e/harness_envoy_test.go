//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// envoyOptions describe an Envoy that Consul's CLI bootstraps.
type envoyOptions struct {
	Name      string
	Host      *host
	Consul    *consulAgent // the agent that it registers at
	Envoy     string       // its version
	AdminPort int
	Token     string   // "" is the agent's management token where it is secure
	GRPCAddr  string   // the xDS server; "" is the agent's own
	Args      []string // of `consul connect envoy`
	EnvoyArgs []string
}

// envoy is a running Envoy.
type envoy struct {
	*process
	Host      *host
	AdminPort int
	Log       *accessLog // its standard output

	client *http.Client
}

// startEnvoy runs `consul connect envoy`, which becomes Envoy, and waits for
// Envoy's admin port.
func startEnvoy(t *testing.T, o envoyOptions) *envoy {
	t.Helper()
	if o.Token == "" {
		o.Token = o.Consul.managementToken()
	}
	if o.GRPCAddr == "" {
		o.GRPCAddr = o.Consul.GRPCAddr
	}
	args := append([]string{
		"connect", "envoy",
		"-envoy-binary", envoyBinary(t, o.Envoy),
		"-ignore-envoy-compatibility",
		"-admin-bind", fmt.Sprintf("127.0.0.1:%d", o.AdminPort),
		"-grpc-addr", o.GRPCAddr,
	}, o.Args...)
	args = append(args, "--", "--file-flush-interval-msec", "20")
	args = append(args, o.EnvoyArgs...)
	transport := &http.Transport{DialContext: o.Host.dial}
	t.Cleanup(transport.CloseIdleConnections)
	e := &envoy{
		Host:      o.Host,
		AdminPort: o.AdminPort,
		client:    &http.Client{Transport: transport},
		process: startProcess(t, command{
			Name: o.Name + " (Envoy " + o.Envoy + ")", Path: o.Consul.binary, Args: args,
			Env: o.Consul.env(o.Token), Host: o.Host,
		}),
	}
	e.Log = &accessLog{process: e.process}
	eventually(t, e.Name+" answers on its admin port", startDeadline, func() error {
		_, err := e.admin("/server_info")
		return err
	})
	return e
}

// gatewayOptions describe an instance of an ingress gateway.
type gatewayOptions struct {
	Host   *host
	Consul *consulAgent
	Envoy  string // its version
	// GRPCAddr is the xDS server: "" is Consul's own, or Usher's address.
	GRPCAddr  string
	Service   string // "ingress-gateway" when empty
	ID        string // Service when empty
	AdminPort int    // 19000 when 0
	ReadyPort int    // the port of the registration; 8443 when 0
	Token     string
	Args      []string // more arguments of `consul connect envoy`
	EnvoyArgs []string
}

// startGateway registers and runs an ingress gateway with the command that
// Consul's users have.
func startGateway(t *testing.T, o gatewayOptions) *envoy {
	t.Helper()
	if o.Service == "" {
		o.Service = "ingress-gateway"
	}
	if o.AdminPort == 0 {
		o.AdminPort = 19000
	}
	if o.ReadyPort == 0 {
		o.ReadyPort = 8443
	}
	args := []string{
		"-gateway=ingress", "-register", "-service", o.Service,
		"-address", o.Host.addr(o.ReadyPort), // 1.22.0 needs an address here
	}
	if o.ID != "" {
		args = append(args, "-proxy-id", o.ID)
	}
	return startEnvoy(t, envoyOptions{
		Name: o.Service + " on " + o.Host.Name, Host: o.Host, Consul: o.Consul, Envoy: o.Envoy,
		AdminPort: o.AdminPort, Token: o.Token, GRPCAddr: o.GRPCAddr,
		Args: append(args, o.Args...), EnvoyArgs: o.EnvoyArgs,
	})
}

// admin asks Envoy's admin interface.
func (e *envoy) admin(path string) (string, error) {
	if err := e.Alive(); err != nil {
		return "", err
	}
	response, err := e.client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", e.AdminPort, path))
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return string(body), err
}

// waitListener waits until Envoy serves a listener on the port that came from
// the xDS server.
func (e *envoy) waitListener(t *testing.T, port int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s listens on port %d", e.Name, port), startDeadline, func() error {
		ports, err := e.listeners()
		if err != nil {
			return err
		}
		if slices.Contains(ports, port) {
			return nil
		}
		return fmt.Errorf("it has the ports %v", ports)
	})
}

// listeners are the ports of Envoy's active listeners.
func (e *envoy) listeners() ([]int, error) {
	body, err := e.admin("/listeners?format=json")
	if err != nil {
		return nil, err
	}
	var answer struct {
		Statuses []struct {
			Address struct {
				Socket struct {
					Port int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		return nil, testprocess.Hopeless(fmt.Errorf("/listeners of %s: %w", e.Name, err))
	}
	var ports []int
	for _, status := range answer.Statuses {
		ports = append(ports, status.Address.Socket.Port)
	}
	return ports, nil
}

// stat is the value of one of Envoy's counters or gauges, and 0 when Envoy does
// not have it.
func (e *envoy) stat(t *testing.T, name string) int {
	t.Helper()
	body, err := e.admin("/stats?usedonly&filter=" + strings.ReplaceAll(name, ".", `\.`))
	if err != nil {
		t.Fatalf("stat %s of %s: %v", name, e.Name, err)
	}
	var value int
	for line := range strings.Lines(body) {
		if _, err := fmt.Sscanf(line, name+": %d", &value); err == nil {
			return value
		}
	}
	return 0
}

// onBothEnvoys runs a story on each Envoy.
func onBothEnvoys(t *testing.T, story func(t *testing.T, envoy string)) {
	t.Helper()
	for _, envoy := range []string{envoyNew, envoyOld} {
		t.Run("envoy "+envoy, func(t *testing.T) {
			t.Parallel()
			story(t, envoy)
		})
	}
}
