//go:build e2e

package lab

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// EnvoyOptions describe an Envoy that Consul's CLI bootstraps.
type EnvoyOptions struct {
	Name      string
	Host      *Host
	Consul    *Consul // the agent that it registers at
	Envoy     string  // its version
	AdminPort int
	Token     string   // "" is the agent's management token where it is secure
	GRPCAddr  string   // the xDS server; "" is the agent's own
	Args      []string // of `consul connect envoy`
	EnvoyArgs []string
}

// Envoy is a running Envoy.
type Envoy struct {
	*testprocess.Process
	Host      *Host
	AdminPort int
	Log       *AccessLog // its standard output

	client *http.Client
}

// StartEnvoy runs `consul connect envoy`, which becomes Envoy, and waits for
// Envoy's admin port.
func StartEnvoy(t *testing.T, o EnvoyOptions) *Envoy {
	t.Helper()
	o.Token, o.GRPCAddr = cmp.Or(o.Token, o.Consul.DefaultToken()), cmp.Or(o.GRPCAddr, o.Consul.GRPCAddr)
	args := append([]string{
		"connect", "envoy",
		"-envoy-binary", EnvoyBinary(t, o.Envoy),
		"-ignore-envoy-compatibility",
		"-admin-bind", fmt.Sprintf("127.0.0.1:%d", o.AdminPort),
		"-grpc-addr", o.GRPCAddr,
	}, o.Args...)
	args = append(args, "--", "--file-flush-interval-msec", "20")
	args = append(args, o.EnvoyArgs...)
	return runEnvoy(t, o.AdminPort, testprocess.Command{
		Name: o.Name + " (Envoy " + o.Envoy + ")", Path: o.Consul.Binary, Args: args, Env: o.Consul.Env(o.Token), Host: o.Host,
	}, o.Host)
}

// runEnvoy runs a command that becomes Envoy, and waits for Envoy's admin port.
func runEnvoy(t *testing.T, adminPort int, c testprocess.Command, h *Host) *Envoy {
	t.Helper()
	e := &Envoy{Host: h, AdminPort: adminPort, client: h.httpClient(t), Process: testprocess.Start(t, c)}
	e.Log = &AccessLog{Process: e.Process}
	testprocess.Eventually(t, e.Name+" answers on its admin port", testprocess.StartDeadline, func() error {
		_, err := e.Admin("/server_info")
		return err
	})
	return e
}

// StartEnvoyWith starts an Envoy with a bootstrap in YAML whose admin port is 19000, and waits for that port.
func StartEnvoyWith(t *testing.T, h *Host, version, bootstrap string) *Envoy {
	t.Helper()
	config := WriteFile(t, testprocess.NewDir(t), "bootstrap.yaml", bootstrap)
	return runEnvoy(t, 19000, testprocess.Command{
		Name: "Envoy " + version + " on " + h.Name, Path: EnvoyBinary(t, version), Host: h,
		Args: []string{"-c", config, "--disable-hot-restart", "--file-flush-interval-msec", "20"},
	}, h)
}

// GatewayOptions describe an instance of an ingress gateway.
type GatewayOptions struct {
	Host   *Host
	Consul *Consul
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

// StartGateway registers and runs an ingress gateway with `consul connect envoy`.
func StartGateway(t *testing.T, o GatewayOptions) *Envoy {
	t.Helper()
	o.Service = cmp.Or(o.Service, "ingress-gateway")
	o.AdminPort, o.ReadyPort = cmp.Or(o.AdminPort, 19000), cmp.Or(o.ReadyPort, 8443)
	args := []string{
		"-gateway=ingress", "-register", "-service", o.Service,
		"-address", o.Host.Addr(o.ReadyPort), // 1.22.0 needs an address here
	}
	if o.ID != "" {
		args = append(args, "-proxy-id", o.ID)
	}
	return StartEnvoy(t, EnvoyOptions{
		Name: o.Service + " on " + o.Host.Name, Host: o.Host, Consul: o.Consul, Envoy: o.Envoy,
		AdminPort: o.AdminPort, Token: o.Token, GRPCAddr: o.GRPCAddr,
		Args: append(args, o.Args...), EnvoyArgs: o.EnvoyArgs,
	})
}

// Admin asks Envoy's admin interface.
func (e *Envoy) Admin(path string) (string, error) {
	if err := e.Alive(); err != nil {
		return "", err
	}
	return get(e.client, fmt.Sprintf("http://127.0.0.1:%d%s", e.AdminPort, path))
}

// WaitListener waits until Envoy serves a listener on the port that came from
// the xDS server.
func (e *Envoy) WaitListener(t *testing.T, port int) {
	t.Helper()
	testprocess.Eventually(t, fmt.Sprintf("%s listens on port %d", e.Name, port), testprocess.StartDeadline, func() error {
		ports, err := e.ListenerPorts()
		if err != nil {
			return err
		}
		if slices.Contains(ports, port) {
			return nil
		}
		return fmt.Errorf("it has the ports %v", ports)
	})
}

// adminJSON decodes what Envoy's admin interface answers.
func (e *Envoy) adminJSON(path string, answer any) error {
	body, err := e.Admin(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(body), answer); err != nil {
		return testprocess.Permanent(fmt.Errorf("%s of %s: %w", path, e.Name, err))
	}
	return nil
}

// address is an address as Envoy's admin interface writes it.
type address struct {
	Socket struct {
		Port int `json:"port_value"`
	} `json:"socket_address"`
}

// ListenerPorts are the ports of Envoy's active listeners.
func (e *Envoy) ListenerPorts() ([]int, error) {
	var answer struct {
		Statuses []struct {
			Address address `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if err := e.adminJSON("/listeners?format=json", &answer); err != nil {
		return nil, err
	}
	var ports []int
	for _, status := range answer.Statuses {
		ports = append(ports, status.Address.Socket.Port)
	}
	return ports, nil
}

// isStrict is nil if the active listener on the port demands a PROXY header.
func (e *Envoy) isStrict(port int) error {
	type filter struct {
		Name   string
		Config struct {
			AllowWithout bool `json:"allow_requests_without_proxy_protocol"`
		} `json:"typed_config"`
	}
	var dump struct {
		Configs []struct {
			Active struct {
				Listener struct {
					Address address
					Filters []filter `json:"listener_filters"`
				}
			} `json:"active_state"`
		}
	}
	if err := e.adminJSON("/config_dump?resource=dynamic_listeners", &dump); err != nil {
		return err
	}
	demandsHeader := func(f filter) bool {
		return f.Name == "envoy.filters.listener.proxy_protocol" && !f.Config.AllowWithout
	}
	for _, c := range dump.Configs {
		if l := c.Active.Listener; l.Address.Socket.Port == port && slices.ContainsFunc(l.Filters, demandsHeader) {
			return nil
		}
	}
	return errors.New("not yet")
}

// Stat is the value of one of Envoy's counters or gauges, and 0 when Envoy does
// not have it.
func (e *Envoy) Stat(t *testing.T, name string) int {
	t.Helper()
	body, err := e.Admin("/stats?usedonly&filter=" + strings.ReplaceAll(name, ".", `\.`))
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

// OnEachEnvoy runs a story on each Envoy, beside other tests.
func OnEachEnvoy(t *testing.T, story func(t *testing.T, envoy string)) {
	t.Helper()
	t.Parallel()
	for _, envoy := range []string{EnvoyNew, EnvoyOld} {
		t.Run("envoy "+envoy, func(t *testing.T) {
			t.Parallel()
			story(t, envoy)
		})
	}
}

// XDSStreams says how many of an Envoy's streams to its xDS server have ended, or
// could not begin, and whether the latest is open.
type XDSStreams struct {
	Ended, Open int
}

// XDSStreams reads the counts from Envoy's statistics.
func (e *Envoy) XDSStreams(t *testing.T) XDSStreams {
	t.Helper()
	return XDSStreams{
		Ended: e.Stat(t, "cluster_manager.cds.update_failure"), // requests to the cluster are reports, too
		Open:  e.Stat(t, "control_plane.connected_state"),
	}
}
