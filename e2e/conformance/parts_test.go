//go:build e2e

package conformance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// loopback picks an address of 127.0.0.0/8 for one run of the suite, so that
// runs at the same time share no port.
func loopback() string {
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(250), rand.IntN(250), 1+rand.IntN(250))
}

// consulServer is a running Consul.
type consulServer struct {
	version string
	ip      string
	client  *api.Client
	http    string // host:port
	grpc    string // host:port
	token   string // may do everything; "" without ACLs
}

// startConsul starts a server and waits until its mesh has a certificate
// authority. The server takes more connections than by default: the queries of
// an Usher that was killed hold theirs until they time out, minutes later.
func startConsul(t *testing.T, ip, version string, args ...string) *consulServer {
	t.Helper()
	s := &consulServer{version: version, ip: ip, http: net.JoinHostPort(ip, "8500"), grpc: net.JoinHostPort(ip, "8502")}
	client, err := api.NewClient(&api.Config{Address: s.http})
	if err != nil {
		t.Fatal(err)
	}
	s.client = client
	testprocess.Start(t, testprocess.Command{Name: "consul", Path: testprocess.Tool(t, "consul-"+version, "consul"), Args: append([]string{
		"agent", "-dev", "-bind", ip, "-client", ip, "-node", serverNode, "-dns-port", "-1", "-log-level", "warn",
		"-hcl", "ports { grpc_tls = -1 } limits { http_max_conns_per_client = 2000 } disable_update_check = true",
	}, args...)})
	eventually(t, "the mesh has roots", func() error {
		roots, _, err := client.Connect().CARoots(nil)
		if err == nil && len(roots.Roots) == 0 {
			err = errors.New("none yet")
		}
		return err
	})
	return s
}

// startConsulWithACLs starts a server that denies what no token allows.
func startConsulWithACLs(t *testing.T, ip, version string) *consulServer {
	t.Helper()
	const token = "5ec2e7a0-0000-4000-8000-000000000001"
	s := startConsul(t, ip, version, "-hcl",
		`acl { enabled = true, default_policy = "deny", tokens { initial_management = "`+token+`", agent = "`+token+`" } }`)
	s.token = token
	s.client.AddHeader("X-Consul-Token", token)
	eventually(t, "the management token counts", func() error {
		_, _, err := s.client.ACL().TokenReadSelf(nil)
		return err
	})
	return s
}

// notKnown matches a notice of Usher.
var notKnown = regexp.MustCompile(`.*this Usher does not know.*`)

// startUsher starts Usher on a port beside a Consul, and gives its xDS port once
// it listens. The test fails if Consul answers with a field that Usher does not know.
func startUsher(t *testing.T, consul *consulServer, port int, args ...string) string {
	t.Helper()
	xds := net.JoinHostPort(consul.ip, fmt.Sprint(port))
	usher := testprocess.Start(t, testprocess.Command{Name: "usher", Path: testprocess.Usher(t), Args: append([]string{
		"serve", "--consul-http-addr", consul.http, "--xds-addr", xds,
		// Consul has no reports. listeners.TestReportsAreAccessLogsAndNothingElse shows that they change nothing else.
		"--connection-reports=false",
		"--admin-addr", net.JoinHostPort(consul.ip, fmt.Sprint(port+1)),
	}, args...), Env: []string{"CONSUL_HTTP_TOKEN=" + consul.token}})
	t.Cleanup(func() {
		if unknown := notKnown.FindString(testprocess.ReadFile(t, usher.Stderr)); unknown != "" {
			t.Errorf("Consul answers with a field that Usher does not know: %s", unknown)
		}
	})
	eventually(t, "usher listens", func() error {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", xds)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return xds
}

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	testprocess.Eventually(t, what, testprocess.StartDeadline, f)
}
