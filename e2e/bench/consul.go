//go:build e2e

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/hashicorp/consul/api"
)

// consulVersion is the Consul that is measured.
const consulVersion = "1.22.7"

// consulServer is a Consul of one node, with its state on disk and its default
// limits.
type consulServer struct {
	*process
	ip     string
	dir    string
	binary string
	client *api.Client // speaks HTTP/2 where the URL is https
	url    string
	caFile string
}

// newConsul writes the certificates and the configuration, and starts the server.
func newConsul(ctx context.Context, o options, dir, ip string) (*consulServer, error) {
	c := &consulServer{
		ip: ip, dir: dir, caFile: filepath.Join(dir, "consul-agent-ca.pem"),
		binary: filepath.Join(o.tools, "consul-"+consulVersion, "consul"),
		url:    "https://" + net.JoinHostPort(ip, "8501"),
	}
	if o.plain {
		c.url = "http://" + net.JoinHostPort(ip, "8500")
	}
	for _, args := range [][]string{{"ca", "create"}, {"cert", "create", "-server", "-dc", "dc1", "-additional-ipaddress", ip}} {
		cmd := exec.CommandContext(ctx, c.binary, append([]string{"tls"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
		}
	}
	ca, err := os.ReadFile(c.caFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	c.client, err = api.NewClient(&api.Config{Address: c.url, HttpClient: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 64,
	}}})
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{
		"server": true, "bootstrap_expect": 1, "node_name": "server", "data_dir": filepath.Join(dir, "data"),
		"bind_addr": ip, "client_addr": ip, "log_level": "warn", "disable_update_check": true,
		"ports": map[string]int{"http": 8500, "https": 8501, "grpc": 8502, "grpc_tls": -1, "dns": -1},
		"tls": map[string]any{"https": map[string]string{
			"ca_file": c.caFile, "cert_file": filepath.Join(dir, "dc1-server-consul-0.pem"), "key_file": filepath.Join(dir, "dc1-server-consul-0-key.pem"),
		}},
		"performance": map[string]int{"raft_multiplier": 1}, // as in production; the default elects later
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "consul.json"), config, 0o600); err != nil {
		return nil, err
	}
	return c, c.start(ctx)
}

// start starts the server. It does not wait until the server answers.
func (c *consulServer) start(ctx context.Context) (err error) {
	c.process, err = launch(ctx, c.dir, "consul", []string{c.binary, "agent", "-config-file", filepath.Join(c.dir, "consul.json")}, nil)
	return err
}

// ready waits until the mesh has a certificate authority.
func (c *consulServer) ready(ctx context.Context) error {
	return poll(ctx, c.process, "consul has roots", func() error {
		keys, err := c.signingKeys(ctx)
		if err == nil && len(keys) == 0 {
			err = errors.New("none yet")
		}
		return err
	})
}

// xds is where Consul's own xDS is served.
func (c *consulServer) xds() string { return net.JoinHostPort(c.ip, "8502") }

// put writes to Consul's API.
func (c *consulServer) put(ctx context.Context, path string, body any) error {
	_, err := c.client.Raw().Write(path, body, nil, (&api.WriteOptions{}).WithContext(ctx))
	return err
}

// signingKeys returns the IDs of the keys of the mesh's roots.
func (c *consulServer) signingKeys(ctx context.Context) (map[string]bool, error) {
	var roots struct {
		Roots []struct{ SigningKeyID string }
	} // api.CARoot does not have it
	if _, err := c.client.Raw().Query("/v1/connect/ca/roots", &roots, (&api.QueryOptions{}).WithContext(ctx)); err != nil {
		return nil, err
	}
	keys := map[string]bool{}
	for _, r := range roots.Roots {
		keys[r.SigningKeyID] = true
	}
	return keys, nil
}

// woken is the result of a bare blocking query.
type woken struct {
	at  time.Time
	err error
}

// watchPort waits for a port at a service with bare blocking queries: the
// earliest moment at which a client of Consul's HTTP API can learn of it. The
// channel gets one result, at the latest when the context ends.
func (c *consulServer) watchPort(ctx context.Context, service string, port int) <-chan woken {
	out := make(chan woken, 1)
	go func() {
		at, err := c.awaitPort(ctx, service, port)
		out <- woken{at, err}
	}()
	return out
}

func (c *consulServer) awaitPort(ctx context.Context, service string, port int) (time.Time, error) {
	wanted := fmt.Appendf(nil, `"Port":%d`, port)
	query := (&api.QueryOptions{AllowStale: true, WaitTime: 5 * time.Minute}).WithContext(ctx)
	for {
		var body json.RawMessage
		meta, err := c.client.Raw().Query("/v1/health/connect/"+service, &body, query)
		if err != nil {
			return time.Time{}, err
		}
		if bytes.Contains(body, wanted) {
			return time.Now(), nil
		}
		query.WaitIndex = meta.LastIndex
	}
}

// usherServer is a running Usher in front of the bench's Consul.
type usherServer struct {
	*process
	addr string // of its xDS
}

// startUsher starts Usher. It does not wait until Usher listens.
func startUsher(ctx context.Context, o options, c *consulServer) (*usherServer, error) {
	addr := net.JoinHostPort(c.ip, "18000")
	p, err := launch(ctx, c.dir, "usher", []string{
		o.usherBin, "serve", "--xds-addr", addr, "--admin-addr", net.JoinHostPort(c.ip, "18001"), "--log-level", "warn",
	}, []string{"CONSUL_HTTP_ADDR=" + c.url, "CONSUL_CACERT=" + c.caFile})
	if err != nil {
		return nil, err
	}
	return &usherServer{process: p, addr: addr}, nil
}
