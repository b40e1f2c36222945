//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// overEtc runs a shell for which what is written below /etc is its own.
const overEtc = `dir=$0 && mount -t tmpfs tmpfs "$dir" && mkdir "$dir/upper" "$dir/work" "$dir/home" &&
mount -t overlay -o "lowerdir=/etc,upperdir=$dir/upper,workdir=$dir/work" overlay /etc &&
export HOME=$dir/home && cd && exec bash`

// TestCommandsOfThePages types what the pages about commands print on the host of the lab's gateway, whose load balancer
// begins to send PROXY headers.
func TestCommandsOfThePages(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	// What Envoys report comes some time after the connections, and doctor shows it from then on.
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Args: []string{"--connection-reports=false"}})
	lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	r := pages.NewReader(t, pages.Options{
		Shell: testprocess.Command{
			Host: l.Gateway, Path: testprocess.Debian(t, "unshare", "util-linux"), Env: append(l.Consul.Env(""), programs(t)),
			Args: []string{"--mount", testprocess.Debian(t, "bash", "bash"), "-c", overEtc, testprocess.NewDir(t)},
		},
		Replace: []string{
			"<the gateway>:8080", l.Gateway.Addr(8080), "<the gateway>", lab.GatewayIP, "10.0.1.1", lab.GatewayIP, "gateway.example.com", lab.GatewayIP, "198.51.100.20", lab.GatewayIP,
			"lb.example.com:80", l.Balancer.Addr(8080), "198.51.100.7:80", l.Balancer.Addr(8080), "<the load balancer>:<its port>", l.Balancer.Addr(8080), "<the load balancer>", l.Balancer.Addr(8080),
			"http://127.0.0.1:8500", l.Consul.HTTPAddr,
			"www.example.com", lab.ServiceHost, "web.ingress.consul", lab.ServiceHost, "<a name that it serves>", lab.ServiceHost,
		},
		Fails: map[string]int{
			"usher validate usher.hcl gateways/":                                                                       1,
			"usher diff --gateway ingress-gateway --config usher.hcl":                                                  1,
			"usher doctor 10.0.1.1:8080 --host www.example.com --balancer lb.example.com:80":                           1,
			"usher doctor <the gateway>:8080 --host <a name that it serves> --balancer <the load balancer>:<its port>": 1,
		},
	})
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)

	r.Type(t, misspelt)
	r.Follow(t, pages.Find(t, "docs/commands.md", "$ usher validate"))
	r.Type(t, corrected)
	r.Follow(t, pages.Find(t, "docs/problems.md", "usher validate /etc/usher/usher.hcl"))
	r.Follow(t, pages.Find(t, "docs/commands.md", "usher render"))
	r.Follow(t, pages.Find(t, "docs/commands.md", "$ usher render --gateway edge"))
	r.Follow(t, pages.Find(t, "docs/commands.md", "$ usher diff"))
	r.Follow(t, pages.Find(t, "docs/migration.md", "usher status"))
	r.Follow(t, pages.Find(t, "docs/compatibility.md", "$ curl --silent http://127.0.0.1:8500/v1/agent/self"))
	r.Follow(t, pages.Find(t, "docs/support.md", "usher support-bundle"))
	r.Follow(t, pages.Find(t, "docs/state.md", "openssl rand"))

	l.HAProxy.SetHeader(t, lab.SendV2)
	l.WantBadRequest(t)
	r.Follow(t, pages.Find(t, "docs/probe.md", "usher probe"))
	r.Follow(t, pages.Find(t, "docs/probe.md", "198.51.100.20:8080 does not look"))
	waitPassing(t, l.Consul, "ingress-gateway")
	r.Follow(t, pages.Find(t, "docs/doctor.md", "usher doctor"))
	r.Follow(t, pages.Find(t, "docs/doctor.md", "outage:"))
	r.Follow(t, pages.Find(t, "docs/troubleshooting.md", "usher doctor"))
	l.SetMode(t, "permissive")
	l.WaitMode(t, l.Gateway, "permissive")
	r.Follow(t, pages.Find(t, "docs/client-address.md", "curl --haproxy-protocol"))
	r.Follow(t, pages.Find(t, "docs/migration.md", "usher probe --expect permissive"))
	r.Follow(t, pages.Find(t, "docs/troubleshooting.md", "curl --header 'X-Forwarded-For"))
	l.Consul.WriteEntry(t, pages.Find(t, "docs/settings.md", `Kind = "proxy-defaults"`)[0].Text)
	l.WaitMode(t, l.Gateway, "strict")
}

// waitPassing waits until Consul has checked each instance of a service.
func waitPassing(t *testing.T, consul *lab.Consul, service string) {
	t.Helper()
	testprocess.Eventually(t, "every check of "+service+" passes", testprocess.StartDeadline, func() error {
		checks, _, err := consul.Client.Health().Checks(service, nil)
		if err == nil && checks.AggregatedStatus() != api.HealthPassing {
			err = fmt.Errorf("it is %s", checks.AggregatedStatus())
		}
		return err
	})
}

// misspelt writes the files whose mistakes docs/commands.md shows.
const misspelt = `mkdir -p gateways
cat >usher.hcl <<E
usher {
  proxy_protocol { mode = "strcit" }
}
E
cat >gateways/edge.hcl <<E
Kind = "ingress-gateway"
Name = "edge"
Listeners = [{
  Port = 8080
  Protocol = "http"
  Services = [{ Name = "web" }]
}]
E
cat >gateways/services.hcl <<E
service {
  name = "edge"
  kind = "ingress-gateway"
  address = "127.0.0.1"
}
E
cat >gateways/web.yaml <<E
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceDefaults
metadata:
  name: web
spec:
  protocol: http
E
`

// corrected corrects them, as it says.
const corrected = `sed -i s/strcit/strict/ usher.hcl && mkdir -p /etc/usher && cp usher.hcl /etc/usher/
echo 'service { name = "web", address = "127.0.0.1", port = 80 }' >>gateways/services.hcl
`
