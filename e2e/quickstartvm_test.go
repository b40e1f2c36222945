//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/pages"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// gatewayUnit is the unit of a gateway that Consul's own xDS configures, as the quickstart finds it. Envoy writes its access
// log sooner than it would by itself.
const gatewayUnit = `[Unit]
After=network-online.target consul.service

[Service]
ExecStart=/usr/local/bin/consul connect envoy -gateway=ingress -register -service ingress-gateway -address ` + lab.GatewayIP + `:8888 -grpc-addr=https://127.0.0.1:8503 -admin-bind 127.0.0.1:19000 -ignore-envoy-compatibility -- --file-flush-interval-msec 20

[Install]
WantedBy=multi-user.target
`

// gatewayDropIn has the environment of consul connect envoy, with the gateway's token in the place of %s.
const gatewayDropIn = `[Service]
Environment=CONSUL_HTTP_ADDR=https://127.0.0.1:8501 CONSUL_CACERT=/etc/consul.d/ca.pem CONSUL_GRPC_CACERT=/etc/consul.d/ca.pem CONSUL_HTTP_TOKEN=%s
`

// TestQuickstartOnAVM follows docs/quickstart-vm.md on a clean Debian that systemd has booted, from the installation of the
// package to its removal, with a Consul that has ACLs and TLS. While it does, a client makes requests through the load
// balancer, and none fails. In the end, the gateway is what it was before, and nothing of Usher is left.
func TestQuickstartOnAVM(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, true)
	lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.Gateway, Join: l.Consul})
	dir := testprocess.NewDir(t)
	machine := lab.StartMachine(t, l.Gateway,
		map[string]string{"consul": l.Consul.Binary, "envoy": lab.EnvoyBinary(t, lab.EnvoyNew)},
		map[string]string{
			"/etc/systemd/system/gateway.service": lab.WriteFile(t, dir, "gateway.service", gatewayUnit),
			"/etc/systemd/system/gateway.service.d/consul.conf": lab.WriteFile(t, dir, "consul.conf",
				fmt.Sprintf(gatewayDropIn, l.Consul.NewToken(t, "ingress-gateway", gatewayRules))),
			"/etc/consul.d/ca.pem":          l.Consul.Security.CAFile,
			"/root/usher_0.1.0-1_amd64.deb": lab.Release(t, "usher_*_*.deb"),
		})
	r := pages.NewReader(t, pages.Options{
		Shell:     machine.Shell(),
		Elsewhere: map[string]testprocess.Command{"On a client": {Host: l.Client}},
		Replace: []string{
			"<the gateway>", lab.GatewayIP, "<the load balancer>", lab.BalancerIP, "10.0.1.1", lab.GatewayIP, "10.0.16.0/20", lab.BalancerIP + "/32", "<the client>", lab.ClientIP, "<a service>", "static-server", "<your gateway>", "ingress-gateway",
			"<a token with acl:write>", lab.ManagementToken,
		},
	})
	before := r.Type(t, "systemctl enable --quiet --now gateway; "+everyFile)
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	load := lab.StartLoadAt(t, l.Request("/"), 20)

	r.Follow(t, pages.Section(t, "docs/quickstart-vm.md", "Quickstart: a gateway on a VM"))
	r.Follow(t, pages.Section(t, "docs/quickstart-vm.md", "Install Usher"))
	r.Follow(t, pages.Section(t, "docs/quickstart-vm.md", "Say what the gateway should do"))
	r.Follow(t, pages.Section(t, "docs/install.md", "Consul with TLS"))
	r.Follow(t, pages.Section(t, "docs/install.md", "Usher's token"))
	r.Type(t, "unset CONSUL_HTTP_TOKEN")
	r.Follow(t, pages.Section(t, "docs/quickstart-vm.md", "Give Usher access to Consul"))
	r.Follow(t, pages.Section(t, "docs/quickstart-vm.md", "Start Usher"))
	r.Follow(t, pages.Section(t, "docs/quickstart-vm.md", "Move the gateway"))
	r.Follow(t, pages.Find(t, "docs/cutover.md", "old   "))
	r.Follow(t, pages.Section(t, "docs/quickstart-vm.md", "Check it"))
	r.Follow(t, pages.Find(t, "docs/troubleshooting.md", "journalctl -u usher -n 20"))
	load.WaitMore(t)
	l.HAProxy.SetHeader(t, lab.SendV2)
	r.Follow(t, pages.Section(t, "docs/quickstart-vm.md", "Enable PROXY protocol"))
	load.WaitMore(t)
	back := pages.Section(t, "docs/quickstart-vm.md", "The way back")
	r.Follow(t, back[:1])
	l.HAProxy.SetHeader(t, lab.SendNone)
	r.Follow(t, back[1:])
	load.WaitMore(t)
	r.Follow(t, pages.Section(t, "docs/quickstart-vm.md", "Remove Usher"))

	load.WaitMore(t)
	load.WantNoFailures(t)
	l.WaitMode(t, l.Gateway, "off")
	if left := r.Type(t, manage+"consul acl policy list; consul acl token list"); strings.Contains(left, "usher") || !strings.Contains(left, "ingress-gateway") {
		t.Errorf("after the removal of Usher, Consul has\n%s", left)
	}
	if after := r.Type(t, everyFile); after != before {
		t.Errorf("after the removal of Usher, the machine has other files (-before +after):\n%s", cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")))
	}
}

// everyFile lists the files of the machine, except what its programs write at any time.
const everyFile = `find / -xdev \( -path /var/log -o -path /var/cache -o -path /var/lib/apt -o -path /tmp \) -prune -o -type f -print | sort`

// manage lets the shell ask Consul about its ACLs.
const manage = "export CONSUL_HTTP_ADDR=https://127.0.0.1:8501 CONSUL_CACERT=/etc/consul.d/ca.pem CONSUL_HTTP_TOKEN=" + lab.ManagementToken + "; "

// TestInstallationWithoutAPackage follows docs/install.md where Usher comes from the archive of a release,
// on a clean Debian with a Consul whose ACLs are on.
func TestInstallationWithoutAPackage(t *testing.T) {
	t.Parallel()
	l := lab.NewNetwork(t)
	consul := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulNew, Host: l.Gateway, ACLs: true})
	machine := lab.StartMachine(t, l.Gateway, map[string]string{"consul": consul.Binary}, map[string]string{
		"/root/usher_0.1.0_linux_amd64.tar.gz": lab.Release(t, "usher_*.tar.gz"),
		"/root/SHA256SUMS":                     lab.Release(t, "SHA256SUMS"),
	})
	r := pages.NewReader(t, pages.Options{
		Shell:   machine.Shell(),
		Replace: []string{"<your gateway>", "ingress-gateway", "<a token with acl:write>", lab.ManagementToken},
	})
	r.Follow(t, pages.Find(t, "docs/install.md", "sha256sum --check"))
	r.Follow(t, pages.Section(t, "docs/install.md", "tar.gz"))
	r.Type(t, "cd")
	r.Follow(t, pages.Section(t, "docs/install.md", "Usher's token"))
	r.Follow(t, pages.Find(t, "docs/install.md", "systemctl enable --now usher"))
	r.Follow(t, pages.Find(t, "docs/quickstart-vm.md", "$ systemctl enable --now usher"))
	r.Follow(t, pages.Find(t, "docs/cutover.md", "sysctl -w"))
}
