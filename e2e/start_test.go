//go:build e2e

package e2e

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/fakeenvoy"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// TestRefusedStarts starts Usher with settings that cannot work: the process
// ends at once, with one line that names the setting.
func TestRefusedStarts(t *testing.T) {
	t.Parallel()
	h := lab.NewNetwork(t).Gateway
	dir := testprocess.NewDir(t)
	h.Listen(t, "127.0.0.1:18100")
	socket := filepath.Join(dir, "taken.sock")
	listenUnix(t, socket)
	file := lab.WriteFile(t, dir, "file", "not a socket\n")
	cert, key := lab.NewCertificateAuthority(t, "Lab CA").Issue(t, dir, "usher.example.com")
	missing := filepath.Join(dir, "missing")

	const plaintext = "private keys would cross the network unencrypted"
	for name, refused := range map[string]struct {
		args, env []string
		says      []string
	}{
		"plain text on every address":      {args: []string{"--xds-addr", "0.0.0.0:18000"}, says: []string{"--xds-addr 0.0.0.0:18000", plaintext, "--insecure-plaintext"}},
		"plain text on a port alone":       {args: []string{"--xds-addr", ":18000"}, says: []string{"--xds-addr :18000", plaintext}},
		"plain text on IPv6":               {args: []string{"--xds-addr", "[::]:18000"}, says: []string{"--xds-addr [::]:18000", plaintext}},
		"plain text on the network":        {args: []string{"--xds-addr", h.Addr(18000)}, says: []string{h.Addr(18000), plaintext}},
		"plain text on a host name":        {args: []string{"--xds-addr", "usher.example.com:18000"}, says: []string{"usher.example.com:18000", plaintext}},
		"xDS port taken":                   {args: []string{"--xds-addr", "127.0.0.1:18100"}, says: []string{"--xds-addr 127.0.0.1:18100", "address already in use"}},
		"admin port taken":                 {args: []string{"--admin-addr", "127.0.0.1:18100"}, says: []string{"--admin-addr 127.0.0.1:18100", "address already in use"}},
		"socket taken":                     {args: []string{"--xds-addr", "unix://" + socket}, says: []string{"--xds-addr unix://" + socket, "another process"}},
		"socket's path is a file":          {args: []string{"--xds-addr", "unix://" + file}, says: []string{"--xds-addr", file, "not a socket"}},
		"certificate without a key":        {args: []string{"--tls-cert", cert}, says: []string{"--tls-cert and --tls-key"}},
		"certificate missing":              {args: []string{"--tls-cert", missing, "--tls-key", key}, says: []string{missing, "no such file"}},
		"key of something else":            {args: []string{"--tls-cert", cert, "--tls-key", file}, says: []string{cert}},
		"address of Consul":                {args: []string{"--consul-http-addr", "ftp://consul"}, says: []string{"ftp://consul"}},
		"address of Consul in environment": {env: []string{"CONSUL_HTTP_ADDR=8500"}, says: []string{"CONSUL_HTTP_ADDR", "localhost:8500"}},
		"token file missing":               {env: []string{"CONSUL_HTTP_TOKEN_FILE=" + missing}, says: []string{"CONSUL_HTTP_TOKEN_FILE", missing}},
		"CA missing":                       {env: []string{"CONSUL_CACERT=" + missing}, says: []string{"CONSUL_CACERT", missing}},
		"neither true nor false":           {env: []string{"CONSUL_HTTP_SSL=perhaps"}, says: []string{"CONSUL_HTTP_SSL", "perhaps"}},
		"config file missing":              {args: []string{"--config", missing}, says: []string{missing}},
		"log level":                        {args: []string{"--log-level", "loud"}, says: []string{"--log-level", "loud"}},
		"unknown flag":                     {args: []string{"--xds-address", "127.0.0.1:1"}, says: []string{"--xds-address"}},
	} {
		t.Run(name, func(t *testing.T) {
			end := testprocess.Run(t, testprocess.Command{
				Name: "usher serve", Path: testprocess.Usher(t), Args: append([]string{"serve"}, refused.args...),
				Env: refused.env, Host: h,
			}, "")
			output := end.Stdout + end.Stderr
			if end.Code != 1 {
				t.Errorf("usher ended with %d, want exit code 1", end.Code)
			}
			if !strings.HasPrefix(output, "usher: ") || strings.Count(output, "\n") != 1 {
				t.Errorf("usher said %q, want one line of its own", output)
			}
			for _, text := range refused.says {
				if !strings.Contains(output, text) {
					t.Errorf("usher said %q, want %q in it", output, text)
				}
			}
			t.Log(strings.TrimSpace(output))
		})
	}
}

// listenUnix listens on a socket in the file system until the test ends.
func listenUnix(t *testing.T, path string) {
	t.Helper()
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
}

// TestConsulStartsAfterUsher starts Usher before Consul, as on a machine that
// starts everything at once. Usher says what it waits for, sends nothing to
// Envoys that connect, and serves once Consul runs.
func TestConsulStartsAfterUsher(t *testing.T) {
	t.Parallel()
	network := lab.NewNetwork(t)
	address := network.Control.Addr(8500)
	usher := lab.LaunchUsher(t, lab.UsherOptions{Host: network.Gateway, Env: []string{"CONSUL_HTTP_ADDR=" + address}})
	usher.WantNotReady(t, "http://"+address, "connection refused")
	if health, err := usher.Admin("/healthz"); err != nil {
		t.Errorf("/healthz: %v %s", err, health)
	}
	conn := lab.XDSPort{From: network.Gateway}.Dial(t)
	for _, protocol := range fakeenvoy.Protocols {
		e := lab.ConnectFakeEnvoy(t, conn, protocol, "")
		e.Subscribe(resource.ClusterType)
		t.Logf("%s: %v", protocol, e.ExpectEnd(codes.Unavailable))
	}

	l := network.StartLab(t, lab.ConsulNew, lab.EnvoyNew, false)
	start := time.Now()
	usher.WaitReady(t)
	t.Logf("usher was ready %v after Consul and the service", time.Since(start).Round(time.Millisecond))
	l.SetMode(t, "strict")
	l.HAProxy.SetHeader(t, lab.SendV2)
	l.WantClientAddress(t, lab.StartGateway(t, lab.GatewayOptions{
		Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr,
	}))
}
