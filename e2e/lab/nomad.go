//go:build e2e

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// NomadVersion is the release of Nomad that `make tools` builds.
const NomadVersion = "1.6.3"

// Nomad is an agent of Nomad that is server and client at once, beside an agent of Consul.
type Nomad struct {
	*testprocess.Process
	// Env is what the nomad command and the consul command need to reach the agents, with all rights.
	Env []string

	dir string // its data
}

// StartNomad starts an agent on the host of an agent of Consul, and waits until it can run jobs with the driver raw_exec. A
// job finds the programs consul, envoy and usher in its path. Everything that the agent has started ends with it.
func StartNomad(t *testing.T, consul *Consul, envoyVersion string) *Nomad {
	t.Helper()
	n := &Nomad{dir: testprocess.NewDir(t)}
	binary := testprocess.Tool(t, "nomad-"+NomadVersion, "nomad")
	path := Path(binary, consul.Binary, EnvoyBinary(t, envoyVersion), testprocess.Usher(t))
	n.Env = append(consul.Env(consul.DefaultToken()), path, "NOMAD_ADDR=http://"+consul.Host.Addr(4646))
	n.Process = testprocess.Start(t, testprocess.Command{
		Name: "nomad on " + consul.Host.Name, Path: testprocess.Debian(t, "unshare", "util-linux"), Host: consul.Host,
		// An agent that ends leaves the processes of its jobs, but not without its process namespace.
		Args: []string{"--pid", "--fork", "--kill-child", "--mount-proc", binary, "agent", "-config", n.writeConfig(t, consul)},
		Env:  []string{path},
	})
	client := consul.Host.httpClient(t)
	testprocess.Eventually(t, "nomad runs jobs", testprocess.StartDeadline, func() error {
		return errors.Join(n.ready(client, consul.Host.Addr(4646)), n.Alive())
	})
	return n
}

// writeConfig writes the configuration file of an agent.
func (n *Nomad) writeConfig(t *testing.T, consul *Consul) string {
	t.Helper()
	ofConsul := map[string]any{"address": consul.Host.Addr(8500), "token": consul.DefaultToken()}
	if consul.Security != nil {
		ca := consul.Security.CAFile
		ofConsul = map[string]any{"address": consul.Host.Addr(8501), "token": consul.DefaultToken(), "ssl": true, "ca_file": ca, "grpc_ca_file": ca}
	}
	config, err := json.Marshal(map[string]any{
		"data_dir": n.dir, "bind_addr": consul.Host.IP.String(), "disable_update_check": true,
		"server": map[string]any{"enabled": true, "bootstrap_expect": 1},
		"client": map[string]any{"enabled": true, "network_interface": "eth0"},
		"plugin": map[string]any{"raw_exec": map[string]any{"config": map[string]any{"enabled": true, "no_cgroups": true}}},
		"consul": ofConsul,
	})
	if err != nil {
		t.Fatal(err)
	}
	return WriteFile(t, testprocess.NewDir(t), "nomad.json", string(config))
}

// ready is nil once the agent's own node takes jobs.
func (n *Nomad) ready(client *http.Client, address string) error {
	body, err := get(client, "http://"+address+"/v1/nodes")
	if err != nil {
		return err
	}
	var nodes []struct{ Status string }
	if err := json.Unmarshal([]byte(body), &nodes); err != nil || len(nodes) != 1 || nodes[0].Status != "ready" {
		return fmt.Errorf("its nodes are %s", body)
	}
	return nil
}
