//go:build e2e

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// consulVersion is the Consul that is measured.
const consulVersion = "1.22.0"

// consulServer is a Consul of one node, with its state on disk and its limits
// as they are by default.
type consulServer struct {
	*process
	ip     string
	dir    string
	binary string
	http   *http.Client // speaks HTTP/2 where the URL is https
	url    string
	id     identity
}

// newConsul makes the configuration, and starts the server.
func newConsul(ctx context.Context, o options, dir, ip string) (*consulServer, error) {
	id, err := newIdentity(dir, ip)
	if err != nil {
		return nil, err
	}
	c := &consulServer{
		ip: ip, dir: dir, id: id,
		binary: filepath.Join(o.tools, "consul-"+consulVersion, "consul"),
		url:    "https://" + net.JoinHostPort(ip, "8501"),
		http: &http.Client{Transport: &http.Transport{
			TLSClientConfig: id.client(), ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 64,
		}},
	}
	if o.plain {
		c.url = "http://" + net.JoinHostPort(ip, "8500")
	}
	config, err := json.Marshal(map[string]any{
		"server": true, "bootstrap_expect": 1, "node_name": "server", "data_dir": filepath.Join(dir, "data"),
		"bind_addr": ip, "client_addr": ip, "log_level": "warn", "disable_update_check": true,
		"ports":       map[string]int{"http": 8500, "https": 8501, "grpc": 8502, "grpc_tls": -1, "dns": -1},
		"tls":         map[string]any{"https": map[string]string{"ca_file": id.ca, "cert_file": id.cert, "key_file": id.key}},
		"performance": map[string]int{"raft_multiplier": 1}, // as production should have it; 5 elects later
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "consul.json"), config, 0o600); err != nil {
		return nil, err
	}
	return c, c.start(ctx)
}

// start starts the server, which may take its time to answer.
func (c *consulServer) start(ctx context.Context) error {
	p, err := launch(ctx, c.dir, "consul", []string{c.binary, "agent", "-config-file", filepath.Join(c.dir, "consul.json")}, nil)
	if err != nil {
		return err
	}
	c.process = p
	return nil
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
	encoded, err := json.Marshal(body)
	if err != nil {
		return err
	}
	_, _, err = c.call(ctx, http.MethodPut, path, encoded)
	return err
}

// get reads Consul's API, and gives the index with the answer.
func (c *consulServer) get(ctx context.Context, path string) (body []byte, index string, err error) {
	return c.call(ctx, http.MethodGet, path, nil)
}

func (c *consulServer) call(ctx context.Context, method, path string, body []byte) (answer []byte, index string, err error) {
	request, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	res, err := c.http.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	answer, err = io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, res.Status, strings.TrimSpace(string(answer)))
	}
	return answer, res.Header.Get("X-Consul-Index"), err
}

// signingKeys gives the ids of the keys of the mesh's roots.
func (c *consulServer) signingKeys(ctx context.Context) (map[string]bool, error) {
	body, _, err := c.get(ctx, "/v1/connect/ca/roots")
	if err != nil {
		return nil, err
	}
	var roots struct {
		Roots []struct{ SigningKeyID string }
	}
	if err := json.Unmarshal(body, &roots); err != nil {
		return nil, err
	}
	keys := map[string]bool{}
	for _, r := range roots.Roots {
		keys[r.SigningKeyID] = true
	}
	return keys, nil
}
