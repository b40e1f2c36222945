//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/usherproxy/usher/e2e/lab"
	"github.com/usherproxy/usher/internal/testing/testprocess"
)

// diagnosis is what the tests read of the output of `usher doctor -o json`.
type diagnosis struct {
	Findings []diagnosed
	Fine     []struct{ Check, What string }
	Unseen   []struct{ Source, Why string } `json:"not_looked_at"`
	text     string
}

// diagnosed is a finding.
type diagnosed struct {
	Check, Severity, What string
	Evidence              []string
	Remedy                struct{ Text, Command, HCL string }
}

// of returns the worst finding of a check.
func (d *diagnosis) of(t *testing.T, check string) diagnosed {
	t.Helper()
	i := slices.IndexFunc(d.Findings, func(f diagnosed) bool { return f.Check == check })
	if i < 0 {
		t.Fatalf("doctor finds nothing about %q:\n%s", check, d.text)
	}
	return d.Findings[i]
}

// wantFinding wants a finding of a check, and this in its text.
func (d *diagnosis) wantFinding(t *testing.T, check, severity, text string) diagnosed {
	t.Helper()
	f := d.of(t, check)
	if f.Severity != severity || !strings.Contains(f.What, text) {
		t.Errorf("doctor finds %s %q, want %s %q:\n%s", f.Severity, f.What, severity, text, d.text)
	}
	return f
}

// wantFine wants that a check has found nothing wrong, with this in its text.
func (d *diagnosis) wantFine(t *testing.T, check, text string) {
	t.Helper()
	if !slices.ContainsFunc(d.Fine, func(f struct{ Check, What string }) bool { return f.Check == check && strings.Contains(f.What, text) }) {
		t.Errorf("doctor does not say about %q that %q:\n%s", check, text, d.text)
	}
}

// doctorLab runs usher doctor on the gateway's host, which has Consul's environment.
type doctorLab struct {
	network *lab.Network
	consul  *lab.Consul
	token   string
	secrets []string // that must not be printed
}

// run runs usher doctor and wants an exit status.
func (l *doctorLab) run(t *testing.T, code int, args ...string) *diagnosis {
	t.Helper()
	args = append([]string{"doctor", "-o", "json", "--observe", "1s"}, args...)
	end := testprocess.Run(t, testprocess.Command{
		Name: "usher doctor", Path: testprocess.Usher(t), Args: args, Env: l.consul.Env(l.token), Host: l.network.Gateway,
	}, "")
	d := &diagnosis{text: end.Stdout + end.Stderr}
	if err := json.Unmarshal([]byte(end.Stdout), d); err != nil {
		t.Fatalf("usher %q: %v: %s", args, err, d.text)
	}
	if end.Code != code {
		t.Errorf("usher %q: exit status %d, want %d: %s", args, end.Code, code, d.text)
	}
	for _, secret := range append(l.secrets, l.token) {
		if secret != "" && strings.Contains(d.text, secret) {
			t.Errorf("usher %q prints a secret:\n%s", args, d.text)
		}
	}
	return d
}

// apply runs a command as it was printed, as an operator with a management token.
func (l *doctorLab) apply(t *testing.T, command string) {
	t.Helper()
	if command == "" {
		t.Fatal("doctor prints no command")
	}
	t.Log(command)
	end := testprocess.Run(t, testprocess.Command{
		Name: "sh", Path: testprocess.Debian(t, "sh", "dash"), Args: []string{"-ec", command}, Host: l.network.Gateway,
		Env: append(l.consul.Env(l.consul.DefaultToken()), lab.Path(l.consul.Binary, testprocess.Usher(t))),
	}, "")
	if end.Code != 0 {
		t.Fatalf("exit status %d: %s%s", end.Code, end.Stdout, end.Stderr)
	}
}

// TestDoctorCorrectsTheLab has a balancer that sends PROXY v2 to a listener that is off, and then one that sends nothing
// to a listener that is strict. Doctor names both causes, and what it prints corrects them.
func TestDoctorCorrectsTheLab(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: "# nothing yet\n"})
	gateway := lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	l.HAProxy.SetHeader(t, lab.SendV2)
	l.WantBadRequest(t)
	d := &doctorLab{network: l.Network, consul: l.Consul}
	target, balancer := []string{l.Gateway.Addr(8080), "--host", lab.ServiceHost}, []string{"--balancer", l.Balancer.Addr(8080)}
	both := slices.Concat(target, balancer)

	found := d.run(t, 1, both...).wantFinding(t, "balancer and listener", "outage",
		`The load balancer sends PROXY headers, and listener 8080 of gateway "ingress-gateway" does not look for them. `+
			"Every request is answered with 400: Envoy reads the header as a broken request. This is the 400 that your clients see.")
	applySetting(t, l, usher, found.Remedy.HCL, "permissive")
	l.WantClientAddress(t, gateway)
	d.run(t, 0, both...).wantFine(t, "balancer and listener", "the mode is permissive, and ")

	applySetting(t, l, usher, strings.Replace(found.Remedy.HCL, "permissive", "strict", 1), "strict")
	d.run(t, 0, both...).wantFine(t, "balancer and listener", "the mode is strict, and it sends PROXY headers")
	l.HAProxy.SetHeader(t, lab.SendNone)
	l.WantPlainRefused(t)
	clients := lab.StartLoadAt(t, l.Request("/"), 20)
	found = d.run(t, 1, target...).wantFinding(t, "balancer and listener", "outage",
		`The load balancer sends no PROXY headers, and listener 8080 of gateway "ingress-gateway" is strict: it closes these connections without an answer.`)
	if evidence := strings.Join(found.Evidence, "\n"); !strings.Contains(evidence, "not_found_disallowed: ") {
		t.Errorf("the evidence has no counter of Envoy: %s", evidence)
	}
	clients.Stop()
	d.apply(t, found.Remedy.Command)
	l.WaitMode(t, l.Gateway, "permissive")
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	d.run(t, 0, both...).wantFine(t, "balancer and listener", "the mode is permissive, and ")
}

// TestDoctorOnABalancerThatIsNotTrusted has trusted_cidrs without the load balancer, which sends headers. Usher and doctor say
// so while a permissive listener ignores the headers, and while a strict one closes the connections.
func TestDoctorOnABalancerThatIsNotTrusted(t *testing.T) {
	t.Parallel()
	setting := func(mode, trusted string) string {
		return fmt.Sprintf("usher {\n  proxy_protocol {\n    mode          = %q\n    trusted_cidrs = [%q]\n  }\n}\n", mode, trusted)
	}
	const wrong, right = "10.0.16.0/20", lab.BalancerIP + "/32"
	l := lab.Start(t, lab.ConsulNew, lab.EnvoyNew, false)
	usher := lab.StartUsher(t, lab.UsherOptions{Host: l.Gateway, Consul: l.Consul, Config: setting("permissive", wrong)})
	lab.StartGateway(t, lab.GatewayOptions{Host: l.Gateway, Consul: l.Consul, Envoy: lab.EnvoyNew, GRPCAddr: usher.GRPCAddr})
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	l.HAProxy.SetHeader(t, lab.SendV2)
	clients := lab.StartLoadAt(t, l.Request("/"), 20)
	usher.WaitProblem(t, testprocess.ChangeDeadline, "PROXY headers come only from outside trusted_cidrs, from "+lab.BalancerIP+": Envoy ignores these headers")
	clients.WantNoFailures(t)

	usher.WriteConfig(t, setting("strict", wrong))
	testprocess.Eventually(t, "the listener closes the balancer's connections", testprocess.ChangeDeadline, func() error {
		if got, err := l.Request("/").Do(t.Context()); err == nil {
			return fmt.Errorf("status %d", got.Status)
		}
		return nil
	})
	d := &doctorLab{network: l.Network, consul: l.Consul}
	flags := []string{l.Gateway.Addr(8080), "--host", lab.ServiceHost, "--balancer", l.Balancer.Addr(8080)}
	d.run(t, 1, flags...).wantFinding(t, "balancer and listener", "outage",
		"Every connection of the probe through the load balancer is closed without an answer, and listener 8080")
	clients = lab.StartLoadAt(t, l.Request("/"), 20)
	usher.WaitProblem(t, testprocess.ChangeDeadline, "PROXY headers come only from outside trusted_cidrs, from "+lab.BalancerIP+": Envoy closes these connections")
	clients.Stop()

	usher.WriteConfig(t, setting("strict", right))
	lab.WaitStatus(t, l.Request("/"), http.StatusOK)
	usher.WaitNoProblem(t, testprocess.ChangeDeadline, "trusted_cidrs")
	d.run(t, 0, flags...).wantFine(t, "balancer and listener", "the mode is strict, and it sends PROXY headers")
}

// TestDoctorOnTokensAndNames has an Usher whose token may do nothing, and then one whose config file misspells the gateway.
func TestDoctorOnTokensAndNames(t *testing.T) {
	t.Parallel()
	n := lab.NewNetwork(t)
	consul := lab.StartConsul(t, lab.ConsulOptions{Version: lab.ConsulOld, Host: n.Control, Secure: true})
	n.RegisterCatalog(t, consul)
	d := &doctorLab{network: n, consul: consul, secrets: []string{lab.ManagementToken, consul.Security.GossipKey}}
	d.token = "00000000-0000-0000-0000-000000000000"
	d.run(t, 1, "--gateway", "ingress-gateway").wantFinding(t, "token", "outage", "Consul does not know the token.")

	d.token = consul.NewToken(t, "usher", `key "unused" { policy = "read" }`)
	usher := lab.LaunchUsher(t, lab.UsherOptions{
		Host: n.Gateway, Consul: consul, Token: d.token, Args: []string{"--gateway", "ingress-gateway"},
		Config: "gateway \"ingres-gateway\" {\n  usher {\n    proxy_protocol { mode = \"strict\" }\n  }\n}\n",
	})
	usher.WaitOutput(t, "msg=serving")
	found := d.run(t, 1, "--gateway", "ingress-gateway").wantFinding(t, "token", "outage", `The token lacks permissions that Usher needs for gateway "ingress-gateway".`)
	for _, right := range []string{`service:write on "ingress-gateway"`, `service_prefix ""`, `node_prefix ""`} {
		if !strings.Contains(strings.Join(found.Evidence, "\n"), right) {
			t.Errorf("the evidence is %q, want %s in it", found.Evidence, right)
		}
	}
	d.apply(t, found.Remedy.Command)
	usher.WaitReady(t)
	usher.WaitOutput(t, "no ingress gateway has this name")

	after := d.run(t, 1, "--gateway", "ingress-gateway")
	after.wantFine(t, "token", `it has what Usher needs for gateway "ingress-gateway"`)
	found = after.wantFinding(t, "problems", "degraded", `no ingress gateway has this name (did you mean "ingress-gateway"?)`)
	d.apply(t, found.Remedy.Command)
	usher.WaitOutput(t, "problem over")
	d.run(t, 1, "--gateway", "ingress-gateway").wantFine(t, "problems", "Usher has no problem")

	found = d.run(t, 1, "--gateway", "ingres-gateway").wantFinding(t, "gateway", "outage", `(did you mean "ingress-gateway"?)`)
	if found.Remedy.Command != "usher doctor --gateway ingress-gateway" {
		t.Errorf("the remedy is %+v", found.Remedy)
	}
}
