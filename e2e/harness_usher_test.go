//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// usherOptions describe a `usher serve` in front of a Consul agent.
type usherOptions struct {
	Host    *host
	Consul  *consulAgent // nil where Args have --config-dir
	Token   string       // "" is the agent's management token where it is secure
	Config  string       // content of the file for --config; "" for none
	XDSAddr string       // 127.0.0.1:18000 when empty
	Args    []string
	Env     []string // besides what Consul and Token give
	Log     string   // path of what takes the log in place of a file
	Files   int      // how many files it may open; 0 as the test
	Memory  int      // how many bytes it may have; 0 as the test
}

// usher is a running `usher serve` that its host's Envoys reach on loopback,
// unless it was told to listen elsewhere.
type usher struct {
	*process
	// GRPCAddr is for -grpc-addr and for --xds-addr of `usher bootstrap`.
	GRPCAddr string
	// ConfigFile is the path of the file with the options' Config.
	ConfigFile string

	client *http.Client
}

// startUsher starts Usher and waits until it is ready.
func startUsher(t *testing.T, o usherOptions) *usher {
	t.Helper()
	u := launchUsher(t, o)
	u.waitReady(t)
	return u
}

// launchUsher starts Usher, which may take its time to become ready.
func launchUsher(t *testing.T, o usherOptions) *usher {
	t.Helper()
	env := o.Env
	if o.Consul != nil {
		if o.Token == "" {
			o.Token = o.Consul.managementToken()
		}
		env = append(env, o.Consul.env(o.Token)...)
	}
	if o.XDSAddr == "" {
		o.XDSAddr = "127.0.0.1:18000"
	}
	transport := &http.Transport{DialContext: o.Host.dial}
	t.Cleanup(transport.CloseIdleConnections)
	u := &usher{GRPCAddr: o.XDSAddr, client: &http.Client{Transport: transport}}
	if !strings.Contains(o.XDSAddr, "://") {
		u.GRPCAddr = "http://" + o.XDSAddr
	}
	args := []string{"serve", "--xds-addr", o.XDSAddr, "--admin-addr", "127.0.0.1:18001"}
	if o.Config != "" {
		u.ConfigFile = writeFile(t, newDir(t), "usher.hcl", o.Config)
		args = append(args, "--config", u.ConfigFile)
	}
	c := command{
		Name: "usher on " + o.Host.Name, Path: usherBinary(t), Args: append(args, o.Args...),
		Env: env, Host: o.Host,
	}
	if o.Files > 0 {
		c.Args = append([]string{fmt.Sprintf("--nofile=%d:%d", o.Files, o.Files), c.Path}, c.Args...)
		c.Path = tool(t, "prlimit", "util-linux")
	}
	if o.Memory > 0 {
		c.Path, c.Args = inMemoryGroup(t, o.Memory, c.Path, c.Args)
	}
	if o.Log != "" {
		c.Args = append([]string{"-c", `exec "$@" 2>"$0"`, o.Log, c.Path}, c.Args...)
		c.Path = tool(t, "sh", "dash")
	}
	u.process = startProcess(t, c)
	return u
}

// waitReady waits until /readyz says so.
func (u *usher) waitReady(t *testing.T) {
	t.Helper()
	eventually(t, "usher is ready", startDeadline, func() error {
		_, err := u.admin("/readyz")
		return err
	})
}

// admin asks Usher's admin port; an answer other than 200 is an error with the
// answer's text.
func (u *usher) admin(path string) (string, error) {
	if err := u.Alive(); err != nil {
		return "", err
	}
	response, err := u.client.Get("http://127.0.0.1:18001" + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
	}
	return string(body), err
}

// metrics is what /metrics says.
func (u *usher) metrics(t *testing.T) string {
	t.Helper()
	text, err := u.admin("/metrics")
	if err != nil {
		t.Fatalf("usher's metrics: %v", err)
	}
	return text
}
